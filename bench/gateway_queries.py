"""What a QUERY costs a gateway when everything is in memory, from the question to the frame.

    python -m bench.gateway_queries [--json]

CPU µs of this process per answer, the best of several rounds, for users with 200 direct sessions,
and with 20 or 200 groups besides; ``busy``: with an event in one of the groups before each one.
Of a real gateway's work only the socket and the decoding of the question are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from functools import partial
from typing import Any

from im_actors.core.conversation import Conversation, conversation_key
from im_actors.core.facts import Fact
from im_actors.core.model import Event, encode_event, make_key
from im_actors.core.spans import Preview
from im_actors.gateway.config import GatewayConfig
from im_actors.gateway.live import LiveSessions
from im_actors.gateway.queries import Queries
from im_actors.gateway.rows import MailboxRows, UserHeads
from im_actors.mailbox.loading import MailboxConfig, Mailboxes
from im_actors.mailbox.rows import END, Copy, Flag, Listing
from im_actors.mailbox.tiers import Changed
from im_actors.wire.queries import Query

USER = "alice"
NOW_MS = 1_767_225_600_000
DIRECT = 200
GROUP_COUNTS = (0, 20, 200)
UNREAD = 50
ROUNDS, ANSWERS = 6, 300


class Everything:
    """The only tier: it has it all."""

    name = "all"

    def __init__(self, copy: Copy) -> None:
        self._copy = copy

    async def first_page(self, user: str, limit: int, at_least: int) -> Copy:
        return self._copy

    async def since(self, user: str, after: int, upto: int) -> Changed:
        return Changed(upto, [])

    async def close(self) -> None:
        pass


class Owners:
    """In the place of ``Followers``: all sessions begin empty."""

    def listen(self, session: str, listener: LiveSessions, now_ms: int) -> None:
        listener.told(session, 0)

    def followers_of(self, session: str) -> list[Any]:
        return []


class Asker:
    """A connection that reads everything at once."""

    user, queries, buffered_bytes = USER, 0, 0

    def __init__(self) -> None:
        self.answers = 0
        self.size = 0

    def send(self, frame: bytes) -> bool:
        self.answers += 1
        self.size = len(frame)
        return True

    def page_sent(self, size: int) -> None:
        pass

    async def ready(self, user: str) -> None:
        pass


def a_copy(groups: int) -> Copy:
    form, entries = MailboxRows(), []
    for n in range(DIRECT):
        row = Conversation(
            last_seq=n + 5,
            last_key=make_key(NOW_MS + n, 0, 0),
            preview=Preview(n + 5, n + 5, 1, f"user{n}", "the beginning of a message " * 3),
            read_seq=n + 5 - n % 3,
        )
        key = conversation_key(f"direct:{USER}/user{n}")
        entries.append(form.entry(Fact(key, n + 1, row.rank(), row.to_bytes())))
    for n in range(groups):
        row = Conversation(joined_seq=1, read_seq=1, last_key=make_key(NOW_MS + n, 0, 0))
        key = conversation_key(f"group:g{n}")
        entries.append(form.entry(Fact(key, DIRECT + n + 1, row.rank(), row.to_bytes())))
    assert all(entry.flags & Flag.LIVE for entry in entries[DIRECT:])
    return Copy(DIRECT + groups, entries, dict.fromkeys(Listing, END))


def an_event(session: str, seq: int) -> bytes:
    key = make_key(NOW_MS + seq, 0, 0)
    return encode_event(Event(session, seq, key, 1, "bob/phone", seq, b"the text of a message"))


async def measure_one(groups: int, what: str, args: list[Any], busy: bool) -> dict[str, Any]:
    config = GatewayConfig()
    live = LiveSessions(Owners(), None, config, lambda: 0)  # type: ignore[arg-type]
    tier = Everything(a_copy(groups))
    heads = partial(UserHeads, live)
    boxes = Mailboxes([tier], MailboxRows(), heads, tier, MailboxConfig())  # type: ignore[arg-type]
    asker = Asker()
    queries = Queries(boxes, live, None, asker, None, config, lambda _: 0)  # type: ignore[arg-type]
    for n in range(groups):
        await live.current(f"group:g{n}")
        live.pushed(f"group:g{n}", [an_event(f"group:g{n}", seq) for seq in range(1, UNREAD)])
    seq, best = UNREAD, float("inf")
    for _ in range(ROUNDS):
        spent = 0.0
        for _ in range(ANSWERS):
            if busy:
                live.pushed("group:g0", [an_event("group:g0", seq)])
                seq += 1
            before = time.process_time()
            queries.ask(asker, Query(1, what, args))
            while asker.queries:
                await asyncio.sleep(0)
            spent += time.process_time() - before
        best = min(best, spent / ANSWERS)
    assert queries.failed == 0
    await boxes.close()
    return {"cpu_us": round(best * 1e6, 1), "bytes": asker.size}


async def measure() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for groups in GROUP_COUNTS:
        for busy in (False, True) if groups else (False,):
            name = f"{groups}_groups" + "_busy" * busy
            page = [None, 25, False, ""]
            found[f"conversations_{name}"] = await measure_one(groups, "conversations", page, busy)
            found[f"unread_{name}"] = await measure_one(groups, "unread", [], busy)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = asyncio.run(measure())
    if options.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        print(f"{name:32} {figures['cpu_us']:8.1f} µs {figures['bytes']:8} bytes")


if __name__ == "__main__":
    main()
