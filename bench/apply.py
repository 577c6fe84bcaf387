"""``python -m bench.apply [--json]``: CPU µs per event of what a replica does with committed
records: journal, history, index, checkpoints; and other designs of history beside it.

Real files, realistic records: 64 slots, 64 devices, bodies of 128 B. The first half of the events
of each load is written and not measured, so that tables have grown.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.apply_designs import OTHERS, Batch
from bench.machine import describe, fsync_us
from im_actors.core.facts import pack_state
from im_actors.core.model import Event, EventKind, encode_event, make_record, next_key, slot_of
from im_actors.core.storage_ops import StoreRecords
from im_actors.storage import history as history_module
from im_actors.storage.database import Database
from im_actors.storage.history import History
from im_actors.storage.index import IndexFile
from im_actors.storage.journal import Journal
from im_actors.storage.months import MonthFile

SLOTS = 64
DEVICES = 64
START_MS = 1_700_000_000_000
JOURNAL_FRAME_RECORDS = 32
STAGES: tuple[tuple[str, Any, str], ...] = (
    ("checksum", history_module, "record_checksum"),
    ("record index", history_module, "record_index"),
    ("merge", IndexFile, "stage"),
    ("write records", MonthFile, "write"),
    ("write index", IndexFile, "write"),
    ("checkpoint", Database, "checkpoint"),
)


@dataclass(frozen=True)
class Load:
    """``mixed``: every device sends to every session; otherwise four devices share one, as in
    ``im-actors bench``. ``state_every``: every so many events one says a fact, the row of one of
    the 200 conversations of a mailbox."""

    name: str
    sessions: int = 2_000
    record_events: int = 128
    transaction_events: int = 50_000
    mixed: bool = False
    body_bytes: int = 128
    state_every: int = 0


LOADS = (
    Load("full load"),
    Load("every device in every session", mixed=True),
    Load("a fifth of the load", transaction_events=10_000, record_events=32),
    Load("small transactions", transaction_events=2_000, record_events=32),
    Load("records of 4", record_events=4),
    Load("one hot session", sessions=1),
    Load("200,000 sessions", sessions=200_000, mixed=True),
    Load("every tenth event says a fact", state_every=10),
    Load("every event says a fact", state_every=1),
)


class Owners:
    """Writes logs as owners do: events of mixed sessions, in records of one slot each."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.rng = random.Random(1)
        self.names = [f"bench-1234abcd-{number}" for number in range(load.sessions)]
        self.slots = [slot_of(name, SLOTS) for name in self.names]
        self.last_seq = [0] * load.sessions
        self.last_n: dict[tuple[int, int], int] = defaultdict(int)
        self.last_key = [0] * SLOTS
        self.last_lsn = [0] * SLOTS
        self.open: list[list[bytes]] = [[] for _ in range(SLOTS)]
        self.turns = [0] * DEVICES
        self.body = b"x" * load.body_bytes
        self.sent = 0

    def batches(self, events: int) -> Iterator[tuple[int, Batch]]:
        """Transactions of committed records, with the number of events in each."""
        batch: Batch = []
        size = made = 0
        while made < events:
            device = self.rng.randrange(DEVICES)
            for _ in range(16):
                slot = self.send(device)
                if len(self.open[slot]) >= self.load.record_events:
                    self.last_lsn[slot] += 1
                    batch.append((slot, make_record(slot, self.last_lsn[slot], 1, self.open[slot])))
                    size += len(self.open[slot])
                    self.open[slot] = []
                if size >= self.load.transaction_events:
                    yield size, batch
                    made += size
                    batch, size = [], 0

    def send(self, device: int) -> int:
        count = self.load.sessions
        turn = self.turns[device]
        self.turns[device] += 1
        mixed = self.load.mixed
        session = self.rng.randrange(count) if mixed else (device + turn * DEVICES) % count
        slot = self.slots[session]
        self.last_seq[session] += 1
        self.last_n[session, device] += 1
        self.last_key[slot] = next_key(self.last_key[slot], START_MS, slot)
        self.sent += 1
        kind, body = EventKind.MESSAGE, self.body
        if self.load.state_every and self.sent % self.load.state_every == 0:
            row = (f"c/direct:alice/{self.rng.randrange(200)}", self.last_key[slot], b"x" * 60)
            kind, body = EventKind.MAILBOX, pack_state("note", [], [row])
        event = Event(
            self.names[session],
            self.last_seq[session],
            self.last_key[slot],
            int(kind),
            f"bench-{device}/1234abcd",
            self.last_n[session, device],
            body,
        )
        self.open[slot].append(encode_event(event))
        return slot


class Stopwatch:
    """CPU seconds of functions, by stage. What one calls of another counts for both."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def around(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*values: Any, **named: Any) -> Any:
            started = time.process_time()
            try:
                return call(*values, **named)
            finally:
                self.seconds[stage] += time.process_time() - started

        return timed


class Chosen:
    """The history of a replica, without its journal."""

    def __init__(self, path: Path) -> None:
        self.history = History(path)

    def apply(self, batch: Batch) -> None:
        self.history.apply(batch, {slot: record.lsn for slot, record in batch})

    def close(self) -> None:
        self.history.close()


def measured(load: Load, events: int, apply: Callable[[Batch], None]) -> float:
    """CPU µs per event of the second half."""
    seconds, counted, made = 0.0, 0, 0
    for size, batch in Owners(load).batches(events):
        gc.collect()
        started = time.process_time()
        apply(batch)
        took = time.process_time() - started
        made += size
        if made > events // 2:
            seconds += took
            counted += size
    return seconds / counted * 1e6


def in_directory(work: Callable[[Path], Any]) -> Any:
    path = Path(tempfile.mkdtemp(prefix="im-bench-apply-"))
    try:
        return work(path)
    finally:
        shutil.rmtree(path)


def design_us(design: Any, load: Load, events: int) -> float:
    def work(path: Path) -> float:
        store = design(path / "history")
        try:
            return measured(load, events, store.apply)
        finally:
            store.close()

    return round(in_directory(work), 2)


def journal_us(load: Load, events: int) -> dict[str, float]:
    """What the journal costs before history takes over."""
    watch = Stopwatch()

    def work(path: Path) -> None:
        journal = Journal(path / "journal.db")
        commit, trim = watch.around("commit", journal.commit), watch.around("trim", journal.trim)
        checkpoint = watch.around("checkpoint", journal.checkpoint)
        for _, batch in Owners(load).batches(events):
            for start in range(0, len(batch), JOURNAL_FRAME_RECORDS):
                frame = batch[start : start + JOURNAL_FRAME_RECORDS]
                commit([StoreRecords(slot, (record,), record.lsn - 1) for slot, record in frame])
            trim({slot: record.lsn for slot, record in batch})
            if journal.wal_bytes() >= 32 << 20:
                checkpoint()
        journal.close()

    in_directory(work)
    return {stage: round(s / events * 1e6, 2) for stage, s in watch.seconds.items()}


def stages_us(load: Load, events: int) -> dict[str, float]:
    """The parts of applying, with a stopwatch around each (it adds to the small ones)."""
    watch = Stopwatch()
    originals = [(owner, name, getattr(owner, name)) for _, owner, name in STAGES]
    for stage, owner, name in STAGES:
        setattr(owner, name, watch.around(stage, getattr(owner, name)))
    try:
        design_us(Chosen, load, events)
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
    return {stage: round(watch.seconds[stage] / events * 1e6, 2) for stage, _, _ in STAGES}


def run(events: int) -> dict[str, Any]:
    designs: dict[str, Any] = {**OTHERS, "records, and an index of runs (chosen)": Chosen}
    loads = []
    for load in LOADS:
        us = {name: design_us(design, load, events) for name, design in designs.items()}
        loads.append({**asdict(load), "us_per_event": us})
    return {
        "loads": loads,
        "stages_us": stages_us(LOADS[0], events),
        "journal_us": journal_us(LOADS[0], events),
        "events": events,
        "machine": describe(),
        "fsync_us": fsync_us(Path(tempfile.gettempdir())),
    }


def table(report: dict[str, Any]) -> str:
    """The report as the tables of ``bench/README.md``."""
    loads = report["loads"]
    lines = [
        "| CPU µs per event | " + " | ".join(load["name"] for load in loads) + " |",
        "|---|" + "---|" * len(loads),
    ]
    for design in loads[0]["us_per_event"]:
        cells = (f"{load['us_per_event'][design]:.2f}" for load in loads)
        lines.append(f"| {design} | " + " | ".join(cells) + " |")
    for title in ("stages_us", "journal_us"):
        parts = ", ".join(f"{stage} {us:.2f}" for stage, us in report[title].items())
        lines.append(f"{title}: {parts}")
    return "\n".join([*lines, f"{report['machine']}, fsync {report['fsync_us']} µs"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.apply", description=__doc__)
    parser.add_argument("--events", type=int, default=300_000, help="of each load")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    report = run(args.events)
    print(json.dumps(report) if args.json else table(report))


if __name__ == "__main__":
    main()
