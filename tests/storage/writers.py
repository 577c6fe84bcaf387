"""Programs that write to a store and tell what was acknowledged, and what must then be there.

``python -m tests.storage.writers KIND PATH SEED FIRST COUNT [VARIANT]`` carries out steps of a plan
that the seed alone decides, so that whoever reads its lines can work out what the store must hold:

    asked K        step K is on its way
    told K         step K was acknowledged
    disk ID        the identity of the disk (replica)
    failed ERROR   the store gave up; the process ends at once, as the real ones do

VARIANT: ``room-N`` lets no file grow beyond N bytes; others break a rule on purpose, to show that a
check would notice.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from im_actors.core.facts import pack_state
from im_actors.core.messages import Append, Drop, Dropped, Prepare, Refused, Seal
from im_actors.core.model import (
    Event,
    EventKind,
    Member,
    Record,
    View,
    ViewState,
    encode_event,
    epoch_start,
    make_key,
    make_record,
)
from im_actors.core.outbox_words import OutboxRow
from im_actors.core.replica import Send
from im_actors.errors import ImError
from im_actors.net.link import Link, PeerInfo
from im_actors.server.replica import ReplicaConfig, ReplicaNode
from im_actors.server.views_sqlite import SqliteViewStore
from im_actors.storage.client_store import CachedEvent, SqliteStore
from im_actors.wire.links import InsideType, pack_inside, read_inside

SLOTS = (0, 1, 5)
IN_FLIGHT_MAX = 6
FEW_KEYS = 8
MEMBERS = (Member("r", "here"), Member("r2", "d2"), Member("r3", "d3"))
ELSEWHERE = (Member("r2", "d2"), Member("r3", "d3"), Member("r4", "d4"))
DAY_MS = 86_400_000


def say(line: str) -> None:
    # One call a line, unbuffered: a killed process has said all that it said.
    os.write(1, f"{line}\n".encode())


def fail(error: BaseException) -> None:
    say(f"failed {type(error).__name__}: {error}")
    os._exit(3)


# -- a replica and its owner -----------------------------------------------------------------------


class SlotModel:
    """What one slot of the replica must hold."""

    def __init__(self) -> None:
        self.promised = 0
        self.commit_lsn = 0
        self.records: list[Record] = []
        self.dropped = False

    def epochs(self, upto: int) -> tuple[tuple[int, int], ...]:
        found: dict[int, int] = {}
        for record in self.records[:upto]:
            found.setdefault(record.epoch, record.lsn)
        return tuple(found.items())

    def take(self, request: Any) -> None:
        match request:
            case Seal():
                self.promised = request.epoch
            case Prepare():
                del self.records[request.keep_lsn :]
            case Append():
                self.records += request.records
                self.commit_lsn = max(self.commit_lsn, request.commit_lsn)
            case Drop():
                self.records, self.commit_lsn = [], 0


def replica_plan(seed: int) -> Iterator[Any]:
    """Requests of honest owners, one after the other."""
    rng = random.Random(seed)
    slots = {slot: SlotModel() for slot in SLOTS}
    while True:
        slot = rng.choice(SLOTS)
        model = slots[slot]
        for request in _next_requests(rng, slot, model):
            model.take(request)
            yield request


def _next_requests(rng: random.Random, slot: int, model: SlotModel) -> Iterator[Any]:
    dice = rng.random()
    last = len(model.records)
    if model.promised and dice < 0.01:
        epoch = model.promised
        yield Drop(slot, epoch, View(slot, epoch, 1, f"owner-{epoch}", ELSEWHERE))
    elif not model.records or dice < 0.05:
        epoch = model.promised + 1
        keep = rng.randint(model.commit_lsn, last)
        yield Seal(slot, epoch, View(slot, epoch, 0, f"owner-{epoch}", MEMBERS))
        yield Prepare(slot, epoch, keep, keep + 1, model.epochs(keep))
        start = epoch_start(slot, keep + 1, epoch, make_key(_time_ms(keep + 1), slot, 0))
        yield _append(model, slot, [start])
    else:
        epoch = model.promised
        starts = len(model.epochs(last))
        records = [
            make_record(slot, lsn, epoch, [_event(rng, slot, lsn, lsn - starts)])
            for lsn in range(last + 1, last + 1 + rng.randint(0, 3))
        ]
        yield _append(model, slot, records, rng.randint(model.commit_lsn, last))


def _append(model: SlotModel, slot: int, records: list[Record], commit_lsn: int = 0) -> Append:
    last = model.records[-1] if model.records else Record(0, 0, b"", 0)
    return Append(slot, model.promised, last.lsn, last.epoch, commit_lsn, tuple(records))


def _time_ms(lsn: int) -> int:
    return 1_700_000_000_000 + lsn * DAY_MS // 2


def _event(rng: random.Random, slot: int, lsn: int, seq: int) -> bytes:
    body = rng.randbytes(rng.choice((10, 100, 3000, 12_000)))
    kind = EventKind.MESSAGE
    if seq % 3 == 0:
        kind, body = EventKind.GROUP, pack_state("put", [body], _facts(rng, seq))
    key = make_key(_time_ms(lsn), slot, 1)
    return encode_event(Event(f"s{slot}", seq, key, int(kind), "u/d", seq, body))


def _facts(rng: random.Random, seq: int) -> list[tuple[str, int, bytes | None]]:
    """One of a few keys, which change all the time, and one of many."""
    value = rng.choice((None, b"", rng.randbytes(60)))
    return [(f"k{rng.randrange(FEW_KEYS)}", rng.randrange(3), value), (f"m{seq}", seq, b"%d" % seq)]


class HastyNode(ReplicaNode):
    """Answers before it writes: the fault that the trace must show."""

    def _flush(self) -> None:
        if not self._writing and self._effects:
            self._carry_out([e for e in self._effects if type(e) is Send])
            self._effects = [e for e in self._effects if type(e) is not Send]
        super()._flush()


class Owner:
    """Sends a plan's requests to a replica and tells which are answered."""

    def __init__(self, requests: Iterator[Any], first: int) -> None:
        self.requests = requests
        self.number = first
        self.waiting: dict[tuple[int, bool], deque[int]] = defaultdict(deque)
        self.free = asyncio.Semaphore(IN_FLIGHT_MAX)
        self.up = asyncio.Event()

    def answered(self, messages: list[Any]) -> None:
        for message in messages:
            for answer in read_inside(message[1]):
                number = self.waiting[answer.slot, type(answer) is Dropped].popleft()
                if isinstance(answer, Refused):
                    say(f"refused {number} {answer}")
                say(f"told {number}")
                self.free.release()

    async def run(self, link: Link) -> None:
        await self.up.wait()
        for request in self.requests:
            await self.free.acquire()
            say(f"asked {self.number}")
            self.waiting[request.slot, type(request) is Drop].append(self.number)
            self.number += 1
            link.send(pack_inside(InsideType.REQUESTS, [request]))
            if type(request) in (Seal, Drop):
                # What to keep is chosen from the answers to the seals; and while a slot is being
                # deleted its next owner is refused.
                await self.quiet()
        await self.quiet()

    async def quiet(self) -> None:
        for _ in range(IN_FLIGHT_MAX):
            await self.free.acquire()
        for _ in range(IN_FLIGHT_MAX):
            self.free.release()


async def write_replica(path: Path, seed: int, first: int, count: int, variant: str) -> None:
    config = ReplicaConfig(apply_every_ms=5, trim_every_ms=200, checkpoint_bytes=400_000)
    make = HastyNode if variant == "answer-first" else ReplicaNode
    secret, rng = b"s" * 16, random.Random(seed)
    node = make("r", "here", path, "c", 8, secret, rng, fail, config)
    address = await node.start("127.0.0.1")
    if variant == "no-sync":
        for database in (node._storage.journal._db, node._storage.history.index.db):
            database.connection.execute("PRAGMA synchronous=OFF")
    say(f"disk {node.disk}")
    owner = Owner(islice(replica_plan(seed), first, first + count), first)
    link = Link(
        PeerInfo("shard", "o", "x"),
        secret,
        address.address,
        address.port,
        on_up=lambda _: owner.up.set(),
        on_frames=owner.answered,
        on_down=lambda reason: fail(ConnectionError(reason)),
        rng=rng,
        expected_id="r",
    )
    await owner.run(link)
    link.close()
    await node.stop()


# -- a client's store ------------------------------------------------------------------------------

SESSIONS = ("a", "b", "ünï")


def client_row(seed: int, step: int) -> OutboxRow:
    """Step K saves this row. Each session's n goes 1, 2, 3."""
    rng = random.Random(seed * 1_000_003 + step)
    session = SESSIONS[step % len(SESSIONS)]
    body = rng.randbytes(rng.choice((5, 200, 5_000)))
    return OutboxRow(session, step // len(SESSIONS) + 1, 1, body, 1_700_000_000_000 + step)


def client_deletes(step: int) -> bool:
    """Whether the row of this step is deleted (its ACK came) some steps later."""
    return step % 4 == 1


async def write_client(path: Path, seed: int, first: int, count: int, variant: str) -> None:
    store = SqliteStore(path / "client.db", "u", "d")
    step_of: dict[tuple[str, int], int] = {}
    saved = asyncio.Event()

    def on_saved(keys: list[tuple[str, int]]) -> None:
        for key in keys:
            say(f"told {step_of.pop(key)}")
        saved.set()

    await store.open(on_saved, fail)
    rng = random.Random(seed)
    for step in range(first, first + count):
        row = client_row(seed, step)
        step_of[row.session, row.n] = step
        say(f"asked {step}")
        store.save(row)
        if step >= 10 and client_deletes(step - 10):
            old = client_row(seed, step - 10)
            if (old.session, old.n) not in step_of:
                store.delete([(old.session, old.n)])
        if step % 5 == 0:
            event = encode_event(Event("a", step + 1, step + 1, 1, "x/y", step + 1, row.body))
            store.cache([CachedEvent("a", step + 1, event)])
            store.set_cursor("a", step + 1)
        while len(step_of) > rng.randint(0, 4):
            saved.clear()
            await saved.wait()
        if step % 40 == 39:
            await store.flush()
    await store.close()


# -- the view store --------------------------------------------------------------------------------


def view_at(step: int) -> View:
    """Step K puts this view: slot K mod 3 goes through RECOVERING and ACTIVE of epochs 0, 1, 2."""
    slot, turn = step % 3, step // 3
    epoch, state = (turn + 1) // 2, (turn + 1) % 2
    return View(slot, epoch, state, f"shard-{epoch}" if epoch else "", MEMBERS if epoch else ())


async def write_views(path: Path, seed: int, first: int, count: int, variant: str) -> None:
    store = SqliteViewStore(path / "views.db", "c")
    await store.open()
    for step in range(first, first + count):
        say(f"asked {step}")
        view = view_at(step)
        held = await (store.create(view) if step < 3 else store.swap(view_at(step - 3), view))
        assert held == view, (held, view)
        say(f"told {step}")
        if view.state == ViewState.ACTIVE and view.epoch:
            # Who claimed this epoch was late as well: of an old record, so it must change nothing.
            await store.swap(view_at(step - 3), view._replace(members=ELSEWHERE))
    await store.close()


WRITERS: dict[str, Callable[..., Any]] = {
    "replica": write_replica,
    "client": write_client,
    "views": write_views,
}


def main() -> None:
    kind, path, seed, first, count, *variant = sys.argv[1:]
    # A file that may not grow must be an error of a write, as on a full disk, and not our end.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    Path(path).mkdir(exist_ok=True)
    name = variant[0] if variant else ""
    if name.startswith("room-"):
        room = int(name.removeprefix("room-"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        asyncio.run(WRITERS[kind](Path(path), int(seed), int(first), int(count), name))
    except ImError as error:
        fail(error)


if __name__ == "__main__":
    main()
