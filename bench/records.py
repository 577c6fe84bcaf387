"""What a record costs, whatever it holds: ``python -m bench.records``.

The real nodes of a shard and a replica without sockets: frames in, frames out, files on a disk. One
replica does the work of a member, and the shard gets its answers three times. CPU of the two event
loops, and of the replica's storage threads beside them. For two versions side by side run this file
with the one and the other first on the path of imports.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from im_actors.core import owner as own
from im_actors.core.model import SLOTS_DEFAULT, Member, View, ViewState, slot_of
from im_actors.core.takeover import ReplicaInfo
from im_actors.server.replica import ReplicaConfig, ReplicaNode
from im_actors.server.shard import ShardNode
from im_actors.wire.codec import FrameDecoder
from im_actors.wire.links import LINK_FRAME_BYTES_MAX, InsideType, pack_frame

LOADS = "8x1,40x1,64x1,64x16,64x128"
SESSIONS = 2_000
BODY = bytes(128)
SECRET = bytes(16)
SETTLE_S = 0.02


class Pipe:
    """Stands for a link or a connection, and keeps what is sent."""

    up = is_open = True

    def __init__(self) -> None:
        self._frames: list[bytes] = []

    def send_now(self, frame: bytes) -> bool:
        self._frames.append(frame)
        return True

    send = send_now

    def take(self) -> list[bytes]:
        frames, self._frames = self._frames, []
        return frames

    def close(self) -> None:
        """There is nothing to close."""

    async def wait_closed(self) -> None:
        """There is nothing to wait for."""


class Views:
    """A view store in memory."""

    def __init__(self, members: tuple[Member, ...]) -> None:
        slots = range(SLOTS_DEFAULT)
        self._views = {slot: View(slot, 1, ViewState.ACTIVE, "", members) for slot in slots}

    async def read(self, slot: int) -> View:
        return self._views[slot]

    async def swap(self, old: View, new: View) -> View:
        if self._views[old.slot] == old:
            self._views[old.slot] = new
        return self._views[old.slot]


class Stopwatch:
    """CPU of this thread, added up over many times."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.thread_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.thread_time() - self._began


def decoded(frames: list[bytes]) -> list[Any]:
    decoder = FrameDecoder(LINK_FRAME_BYTES_MAX)
    return [message for frame in frames for message in decoder.feed(frame)]


def fail(error: Exception) -> None:
    raise error


class Course:
    """A shard that owns all slots, and one replica that answers for three members."""

    def __init__(self, directory: Path) -> None:
        # Every commit in the event loop, so that its CPU is in the loop's.
        config = ReplicaConfig(commit_here_bytes=1 << 30, commit_here_ms=1 << 30)
        where = ("replica", "host", directory, "bench", SLOTS_DEFAULT, SECRET)
        self.replica = ReplicaNode(*where, random.Random(1), fail, config)
        self.links: dict[Member, Any] = {}
        self.from_replica: Any = Pipe()
        self.gateway: Any = Pipe()
        self.of_shard, self.of_replica = Stopwatch(), Stopwatch()
        self._sent: dict[str, int] = {}

    async def start(self) -> None:
        await self.replica.start("127.0.0.1")
        members = tuple(Member(f"replica-{number}", self.replica.disk) for number in range(3))
        rng = random.Random(2)
        views = Views(members)
        self.shard = ShardNode("shard", SLOTS_DEFAULT, SECRET, views, rng, lambda _: None)
        await self.shard.start("127.0.0.1")
        self.links = {member: Pipe() for member in members}
        self.shard._links.update(self.links)
        infos = tuple(ReplicaInfo(name, disk, name) for name, disk in members)
        for slot in range(SLOTS_DEFAULT):
            self.shard._handle(slot, own.ReplicasKnown(infos))
        for member in members:
            self.shard._up(member)
        self.shard.take(list(range(SLOTS_DEFAULT)), "bench")
        while len(self.shard.status()["serving"]) < SLOTS_DEFAULT:
            await self.settle()

    async def stop(self) -> None:
        await self.shard.stop()
        await self.replica.stop()

    async def settle(self) -> None:
        """Let what works in the background come to an end."""
        await asyncio.sleep(SETTLE_S)
        self.shard._flush()
        await self.carry()

    async def carry(self) -> None:
        """Requests to the replica and its answers to the shard, until there are none."""
        while any(
            requests := {member: pipe.take() for member, pipe in self.links.items()}.values()
        ):
            answers: dict[bytes, list[bytes]] = {}
            for member, frames in zip(self.links, requests, strict=True):
                same = b"".join(frames)
                if same not in answers:
                    answers[same] = await self._asked(frames)
                with self.of_shard:
                    self.shard._answers(member, decoded(answers[same]))
                    self.shard._flush()

    async def _asked(self, frames: list[bytes]) -> list[bytes]:
        with self.of_replica:
            self.replica._frames(self.from_replica, decoded(frames))
            self.replica._flush()
        while self.replica._writing:  # Its thread has the journal, for a while.
            await asyncio.sleep(0)
        return self.from_replica.take()  # type: ignore[no-any-return]

    async def submit(self, sessions: list[list[str]], messages: int) -> None:
        """So many messages to each of these groups of sessions, in one frame."""
        rows = [self._row(names[n % len(names)]) for names in sessions for n in range(messages)]
        frame = pack_frame((InsideType.SUBMIT, rows))
        with self.of_shard:
            self.shard._frames(self.gateway, decoded([frame]))
            self.shard._flush()
        await self.carry()
        self.gateway.take()

    def _row(self, session: str) -> tuple[Any, ...]:
        n = self._sent[session] = self._sent.get(session, 0) + 1
        return 0, slot_of(session, SLOTS_DEFAULT), session, "user/device", n, 1, BODY

    async def follow(self, sessions: list[str]) -> None:
        """One follower each; afterwards the shard knows them."""
        self.shard._frames(self.gateway, [[int(InsideType.WATCH), sessions]])
        while not self._loaded().issuperset(sessions):
            await self.settle()

    def _loaded(self) -> set[str]:
        owners = self.shard._owners.values()
        return {name for owner in owners for name in owner.serving.sessions}


async def measure(directory: Path, records: int, messages: int, seconds: float) -> dict[str, float]:
    """CPU µs of a record, in frames of so many records with so many messages each."""
    by_slot: dict[int, list[str]] = {}
    for session in (f"session-{number}" for number in range(SESSIONS)):
        by_slot.setdefault(slot_of(session, SLOTS_DEFAULT), []).append(session)
    course = Course(directory)
    await course.start()
    await course.follow([session for group in by_slot.values() for session in group])
    # As in an actor's process.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    course.of_shard.seconds = course.of_replica.seconds = 0.0
    acked, here, whole = course.shard.acked, time.thread_time(), time.process_time()
    rng = random.Random(3)
    frames = 0
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        slots = rng.sample(range(SLOTS_DEFAULT), records)
        await course.submit([by_slot[slot] for slot in slots], messages)
        frames += 1
        await asyncio.sleep(0)
    threads = time.process_time() - whole - (time.thread_time() - here)
    if course.shard.acked - acked != frames * records * messages:
        raise RuntimeError("not everything was acknowledged: the figures mean nothing")
    await course.stop()
    us = 1e6 / (frames * records)
    return {
        "records": records,
        "messages": messages,
        "shard_us": round(course.of_shard.seconds * us, 2),
        "replica_us": round(course.of_replica.seconds * us, 2),
        "replica_threads_us": round(threads * us, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.records", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load")
    parser.add_argument(
        "--loads", default=LOADS, help="records in a frame x messages in a record, ..."
    )
    parser.add_argument("--json", action="store_true", help="a line of JSON for each load")
    args = parser.parse_args()
    for load in args.loads.split(","):
        records, messages = map(int, load.split("x"))
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "replica"
            found = asyncio.run(measure(path, records, messages, args.seconds))
        if args.json:
            print(json.dumps(found), flush=True)
        else:
            each = f"{records} records of {messages}: CPU us a record: shard {found['shard_us']},"
            threads = found["replica_threads_us"]
            print(f"{each} replica {found['replica_us']} and {threads} in its threads", flush=True)


if __name__ == "__main__":
    main()
