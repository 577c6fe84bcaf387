"""What a page of a conversation list costs: from memory, from the tiers, small and large accounts.

    python -m bench.mailbox_view [--json] [--redis URL]

CPU µs of this process per call, the best of several rounds; of a tier's calls also the time
(p50, ms).
``big_over_small`` is the first page of a user with 200,000 conversations against one with 200.
Rows are made up and the format is a small one: this measures the machinery, not the product.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from im_actors.core.facts import Fact
from im_actors.core.model import pack
from im_actors.mailbox.cursor import Query
from im_actors.mailbox.loading import MailboxConfig, Mailboxes
from im_actors.mailbox.rows import END, TOP, Copy, Entry, Flag, Head, Listing, Place, live_rank
from im_actors.mailbox.tier_redis import RedisTier
from im_actors.mailbox.tier_sqlite import SqliteTier
from im_actors.mailbox.tiers import Changed, Put, Tier
from im_actors.mailbox.view import MailboxView

SIZES = {"small": 200, "big": 200_000}
FIRST_ROWS = 200
PAGE_ROWS = 25
ROUNDS = 7


class Rows:
    """The bench's format: the value is what clients get."""

    def entry(self, fact: Fact) -> Entry:
        session = fact.key.removeprefix("c/")
        return Entry(session, fact.seq, fact.rank, fact.seq % 3, 0, "", fact.value)

    def standing(self, user: str) -> list[Entry]:
        return []

    def rank(self, entry: Entry, head: Head | None) -> int:
        return live_rank(entry, head)

    def encode(self, entry: Entry, head: Head | None) -> bytes:
        unread = head.unread if head is not None else entry.unread
        return pack((entry.session, entry.seq, entry.rank, unread, entry.flags, entry.value))


class Groups:
    """Heads of groups, of which one changes now and then."""

    changes = 0

    def __init__(self) -> None:
        self.marks: dict[str, int] = {}

    def change(self, session: str) -> None:
        self.changes += 1
        self.marks[session] = self.changes

    def mark(self, session: str) -> int:
        return self.marks.get(session, 1)

    def head(self, entry: Entry) -> Head | None:
        return Head(1, entry.rank + self.marks.get(entry.session, 0), 1, b"")

    async def load(self, entries: Sequence[Entry]) -> None:
        raise AssertionError("all heads are known")


class Whole:
    """A cold tier that has one copy of each user in memory."""

    name = "cold"

    def __init__(self, copies: dict[str, Copy]) -> None:
        self.copies = copies

    async def first_page(self, user: str, limit: int, at_least: int) -> Copy | None:
        return await self.page(user, TOP, limit, at_least)

    async def page(self, user: str, after: Place, limit: int, at_least: int) -> Copy | None:
        assert after == TOP
        copy = self.copies[user]
        rows = copy.entries[:limit]
        end = (-rows[-1].rank, rows[-1].session) if len(copy.entries) > limit else END
        return Copy(copy.version, rows, {Listing.ALL: end, Listing.LIVE: END})

    async def whole(self, user: str, listing: Listing, at_least: int) -> Copy | None:
        return None

    async def rows(self, user: str, sessions: Sequence[str], at_least: int) -> Copy | None:
        return None

    async def put(self, user: str, update: object) -> Put:
        raise AssertionError("the last tier is told nothing")

    async def drop(self, user: str) -> None:
        raise AssertionError("the last tier forgets nothing")

    async def close(self) -> None:
        pass

    async def since(self, user: str, after: int, upto: int) -> Changed:
        return Changed(after, [])


def a_copy(count: int, groups: int = 0) -> Copy:
    """The newest first."""
    total = count + groups
    rows = [
        Entry(
            f"direct:alice/user-{n:06}" if n < count else f"group:{n:06}",
            *(n + 1, (n + 1) << 22, int(n % 20 == 0), Flag.LIVE if n >= count else 0, ""),
            b"a row with the last event and what else it says" * 2,
        )
        for n in reversed(range(total))
    ]
    return Copy(total, rows, {Listing.ALL: END, Listing.LIVE: END})


def cpu_us(work: Callable[[], object], calls: int) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time_ns()
        for _ in range(calls):
            work()
        best = min(best, (time.process_time_ns() - start) / calls / 1000)
    return round(best, 1)


async def awaited(
    works: dict[str, Callable[[], Awaitable[object]]], calls: int
) -> dict[str, dict[str, float]]:
    """By name: CPU µs, the best of the rounds, and the p50 of the time of one. In turns, so that
    what else the machine does is the same for all."""
    best = dict.fromkeys(works, float("inf"))
    times: dict[str, list[int]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            start = time.process_time_ns()
            for _ in range(calls):
                began = time.perf_counter_ns()
                await work()
                times[name].append(time.perf_counter_ns() - began)
            best[name] = min(best[name], (time.process_time_ns() - start) / calls / 1000)
    return {
        name: {
            "cpu_us": round(best[name], 1),
            "p50_ms": round(statistics.median(times[name]) / 1e6, 3),
        }
        for name in works
    }


def in_memory() -> dict[str, Any]:
    found: dict[str, Any] = {}
    query = Query(limit=PAGE_ROWS)
    for name, (count, groups) in {
        "small": (SIZES["small"], 0),
        "big": (SIZES["big"], 0),
        "groups": (200, 3_000),
    }.items():
        heads = Groups()
        view = MailboxView(a_copy(count, groups), Rows(), heads)
        view.refresh()
        found[name] = {"page_us": cpu_us(lambda view=view: view.page(query), 500)}
        found[name]["totals_us"] = cpu_us(view.totals, 500)
        if groups:

            def changed(view: MailboxView = view, heads: Groups = heads) -> None:
                heads.change(f"group:{200 + heads.changes % 3_000:06}")
                view.refresh()
                view.page(query)

            found[name]["page_after_a_message_us"] = cpu_us(changed, 50)
    ratio = found["big"]["page_us"] / found["small"]["page_us"]
    found["big_over_small"] = round(ratio, 2)
    return found


async def from_tier(tier: Tier) -> dict[str, Any]:
    for name, count in SIZES.items():
        copy = a_copy(count)
        newest = copy.entries[:2_000]
        last = (-newest[-1].rank, newest[-1].session) if count > 2_000 else END
        complete = {Listing.ALL: last, Listing.LIVE: END}
        await tier.put(name, Copy(copy.version, newest, complete))
    reads = {name: partial(tier.first_page, name, FIRST_ROWS, 0) for name in SIZES}
    found: dict[str, Any] = await awaited(reads, 20)
    found["big_over_small_p50"] = round(found["big"]["p50_ms"] / found["small"]["p50_ms"], 2)
    return found


async def through_the_door() -> dict[str, Any]:
    """With everything on, from memory, and loading the view from a tier in memory each time."""
    cold = Whole({name: a_copy(count) for name, count in SIZES.items()})
    boxes = Mailboxes([cold], Rows(), lambda _: Groups(), cold, MailboxConfig())
    query = Query(limit=PAGE_ROWS)

    async def load(name: str) -> None:
        boxes.drop(name)
        await boxes.page(name, query)

    found: dict[str, Any] = await awaited({name: partial(load, name) for name in SIZES}, 30)
    pages = {f"{name}_from_memory": partial(boxes.page, name, query) for name in SIZES}
    found |= await awaited(pages, 500)
    found["big_over_small_p50"] = round(found["big"]["p50_ms"] / found["small"]["p50_ms"], 2)
    await boxes.close()
    return found


async def measure(redis: str) -> dict[str, Any]:
    found: dict[str, Any] = {"memory": in_memory(), "door": await through_the_door()}
    with tempfile.TemporaryDirectory() as directory:
        tiers: list[Tier] = [SqliteTier(Path(directory) / "warm.db")]
        if redis:
            tiers.append(RedisTier(redis, "bench", kept_s=60))
        for tier in tiers:
            found[tier.name] = await from_tier(tier)
            for name in SIZES:
                await tier.drop(name)
            await tier.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--redis", default="", help="the hot tier too, in this Redis")
    options = parser.parse_args()
    found = asyncio.run(measure(options.redis))
    if options.json:
        print(json.dumps(found))
        return
    for part, figures in found.items():
        print(part)
        for name, figure in figures.items():
            print(f"    {name:24} {figure}")


if __name__ == "__main__":
    main()
