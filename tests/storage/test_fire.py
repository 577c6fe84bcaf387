"""A little of ``tests.storage.fire``, and proof that its checks would notice."""

from __future__ import annotations

from pathlib import Path

import pytest

from im_actors.core.messages import Appended
from im_actors.wire.codec import FrameDecoder
from im_actors.wire.links import LINK_FRAME_BYTES_MAX, InsideType, read_inside
from tests.storage import fire
from tests.storage.syscalls import SYNCS, Call, run_traced
from tests.storage.writers import replica_plan


@pytest.mark.parametrize("kind", fire.KINDS)
def test_a_power_cut_at_any_moment(kind: str, tmp_path: Path) -> None:
    """Only what was synced is there, and any sectors of what was not."""
    assert fire.power_cuts(kind, tmp_path, seed=5, steps=80, cuts=18) > 4


@pytest.mark.parametrize("variant", ["no-sync", "answer-first"])
def test_a_power_cut_finds_a_replica_that_does_not_sync(variant: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"is in no state|another disk|is damaged"):
        fire.power_cuts("replica", tmp_path, seed=5, steps=80, cuts=40, variant=variant)


@pytest.mark.parametrize("kind", fire.KINDS)
def test_kill_9_loses_nothing_that_was_told(kind: str, tmp_path: Path) -> None:
    assert fire.kills(kind, tmp_path, seed=7, rounds=2, steps_max=100) > 30


@pytest.mark.parametrize(
    ("kind", "inject"),
    [
        ("replica", "fdatasync:error=EIO:when=25"),
        ("replica", "pwrite64:error=EIO:when=70"),
        ("replica", "pwrite64:error=ENOSPC:when=80+"),
        ("client", "fdatasync:error=EIO:when=15"),
        ("client", "pwrite64:error=ENOSPC:when=60+"),
        ("views", "fdatasync:error=EIO:when=20"),
        ("views", "pwrite64:error=EIO:when=40"),
    ],
)
def test_a_failed_call_is_told_and_not_tried_again(kind: str, inject: str, tmp_path: Path) -> None:
    """After EIO the kernel has dropped the pages, and the next sync would say that all is well."""
    assert fire.failing_calls(kind, tmp_path, 3, 150, inject).code == 3


OPENER = """
import pathlib, sys
from im_actors.storage.journal import Journal
Journal(pathlib.Path(sys.argv[1]))
"""


def test_a_failed_sync_while_a_file_is_made_is_told(tmp_path: Path) -> None:
    """SQLite goes on with a rollback journal when the change to a write-ahead log fails, and says
    so only to who reads its answer to the end. Then a power cut can bring an old journal back."""
    failed = 0
    for when in range(1, 7):
        path = tmp_path / f"{when}.db"
        inject = f"fdatasync:error=EIO:when={when}"
        run = run_traced(["-c", OPENER, str(path)], tmp_path / "calls", inject)
        if run.code:
            assert "DiskFailed" in run.errors
            failed += 1
        else:
            # The file's own word for a write-ahead log (or a directory's sync, which SQLite leaves
            # to us).
            assert path.read_bytes()[18:20] == b"\x02\x02", when
    assert failed >= 3


@pytest.mark.parametrize(
    ("kind", "room"), [("replica", 400_000), ("client", 200_000), ("views", 90_000)]
)
def test_a_full_disk_loses_nothing_that_was_told(kind: str, room: int, tmp_path: Path) -> None:
    assert fire.full_disk(kind, tmp_path, seed=4, steps=1 << 20, room=room).done > 0


# -- each answer after its sync --------------------------------------------------------------------


class Journaled:
    """Which records a trace shows to be synced, and which answers left too early."""

    def __init__(self, records: dict[tuple[int, int], list[bytes]]) -> None:
        self._records = records
        self._written: set[bytes] = set()
        self._synced: set[bytes] = set()
        self._decoders: dict[str, FrameDecoder] = {}
        self.answers = 0
        self.early: list[Appended] = []

    def take(self, call: Call) -> None:
        if not call.ok:
            return
        if call.path.endswith("journal.db-wal") and call.name == "pwrite64":
            # A frame of the write-ahead log is the image of a page: small payloads are whole.
            known = (p for payloads in self._records.values() for p in payloads)
            self._written.update(p for p in known if p in call.data)
        elif call.path.endswith("journal.db-wal") and call.name in SYNCS:
            self._synced |= self._written
        elif call.name == "sendto" and call.data.strip(b"\0"):
            # (An event loop wakes itself up with zeros.)
            self._sent(call)

    def _sent(self, call: Call) -> None:
        decoder = self._decoders.get(call.path)
        if decoder is None:
            decoder = self._decoders[call.path] = FrameDecoder(LINK_FRAME_BYTES_MAX)
        for message in decoder.feed(call.data):
            if message[0] == InsideType.ANSWERS:
                for answer in read_inside(message[1]):
                    if isinstance(answer, Appended):
                        self._answered(answer)

    def _answered(self, answer: Appended) -> None:
        self.answers += 1
        there = self._records.get((answer.slot, answer.durable_lsn), [])
        if there and not self._synced.intersection(there):
            self.early.append(answer)


def _answers_and_syncs(root: Path, variant: str) -> Journaled:
    seed, steps = 9, 100
    program = ["-m", fire.MODULE, "replica", str(root / "data"), str(seed), "0", str(steps)]
    run = run_traced([*program, variant], root / "calls")
    assert run.code == 0, run.errors
    plan = replica_plan(seed)
    records: dict[tuple[int, int], list[bytes]] = {}
    for request in (next(plan) for _ in range(steps)):
        for record in getattr(request, "records", ()):
            # An EpochStart's few bytes could be anywhere.
            if len(record.payload) > 20:
                key = request.slot, record.lsn
                records.setdefault(key, []).append(record.payload)
    journaled = Journaled(records)
    for call in run.calls:
        journaled.take(call)
    return journaled


def test_every_answer_leaves_after_the_sync_of_its_record(tmp_path: Path) -> None:
    seen = _answers_and_syncs(tmp_path, "")
    assert seen.answers > 70
    assert not seen.early


@pytest.mark.parametrize("variant", ["no-sync", "answer-first"])
def test_the_trace_shows_an_answer_without_a_sync(variant: str, tmp_path: Path) -> None:
    assert len(_answers_and_syncs(tmp_path, variant).early) > 20
