"""Compares replicas: what ``im-actors verify`` tells.

A replica's log of a slot is what history and the journal hold together. Only committed records
count: the tail above a replica's commit point may differ from another's and will be cut.
"""

from __future__ import annotations

import hashlib
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from im_actors.errors import CorruptData
from im_actors.storage.directory import DataDirectory, open_existing
from im_actors.storage.history import History
from im_actors.storage.journal import Journal
from im_actors.storage.scan import (
    AWAY,
    CORRUPT,
    TABLES,
    JournalScan,
    Problem,
    SlotScan,
    scan_history,
    scan_journal,
)

BLOCK_LSNS = 1_000
REPORT_VERSION = 1
PROBLEMS_MAX = 1_000

Stretches = Mapping[int, Sequence[Sequence[int]]]
"""slot -> [(first lsn, last lsn)]."""
ChecksumSource = Callable[[str, int, int, int], dict[int, int]]
"""(replica, slot, first lsn, last lsn) -> lsn -> checksum, of what the replica has."""


class Block(NamedTuple):
    """Consecutive records. A whole block of BLOCK_LSNS has a digest over their checksums; a part
    of one, at the ends of what a replica holds, has the checksums themselves."""

    first_lsn: int
    last_lsn: int
    digest: str
    checksums: tuple[int, ...]


@dataclass(slots=True)
class SlotReport:
    """One slot on one replica, up to its commit point; ``missing`` are stretches that it should
    hold and does not have."""

    slot: int
    commit_lsn: int = 0
    records: int = 0
    events: int = 0
    blocks: list[Block] = field(default_factory=list)
    missing: list[tuple[int, int]] = field(default_factory=list)
    dropped: int = 0
    """Events whose content was dropped with their month. Their records are not in ``blocks``: a
    replica that has not heard of the drop yet may have them as they were."""


@dataclass(slots=True)
class ReplicaReport:
    """Everything that one replica holds, in a form that JSON and msgpack carry."""

    replica: str
    disk: str
    slots: list[SlotReport] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    corrupt: int = 0
    bytes_on_disk: int = 0
    divergent: int = 0
    """Facts that are not what the events here say."""
    away: list[str] = field(default_factory=list)
    """Months that could not be looked at: they were moved to where nothing is now."""

    def to_dict(self) -> dict[str, Any]:
        """Plain types only."""
        return {"version": REPORT_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ReplicaReport:
        """The report of ``to_dict``, also after JSON or msgpack."""
        if fields["version"] != REPORT_VERSION:
            raise CorruptData(f"a replica report of version {fields['version']} cannot be read")
        return cls(
            fields["replica"],
            fields["disk"],
            [_slot_report(slot) for slot in fields["slots"]],
            [Problem(*problem) for problem in fields["problems"]],
            fields["corrupt"],
            fields["bytes_on_disk"],
            # The releases before there were facts do not say it.
            fields.get("divergent", 0),
            fields.get("away", []),
        )


def _slot_report(fields: Mapping[str, Any]) -> SlotReport:
    blocks = [Block(first, last, d, tuple(sums)) for first, last, d, sums in fields["blocks"]]
    missing = [(first, last) for first, last in fields["missing"]]
    return SlotReport(**{**fields, "blocks": blocks, "missing": missing})


@dataclass(slots=True)
class VerifyReport:
    """The replicas together. ``records`` and ``events``: of each slot, the replica with the most.

    ``divergent`` committed lsns differ between replicas, or facts from what their events say.
    ``corrupt`` things on disk have changed bytes, ``missing`` records are not where a view says
    they are. ``dropped`` events have lost their content with their month, which is as it should be.
    ``uncompared`` records could not be compared, because only digests of different
    stretches were at hand.
    """

    slots: int = 0
    records: int = 0
    events: int = 0
    divergent: int = 0
    corrupt: int = 0
    missing: int = 0
    uncompared: int = 0
    dropped: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.divergent or self.corrupt or self.missing or self.problems)

    def problem(self, text: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(text)


# -- one replica -----------------------------------------------------------------------------------


def scan_store(
    journal: Journal,
    history: History,
    held: Stretches | None = None,
    commit: Mapping[int, int] | None = None,
    replica: str = "",
    disk: str = "",
) -> ReplicaReport:
    """Scan both in the calling thread. A replica with a thread for each runs ``scan_journal`` in
    one and THEN ``scan_history`` in the other (records only ever move that way), and joins them
    with ``join_scans``."""
    journals = [found for found in scan_journal(journal) if found is not None]
    histories = [found for found in scan_history(history) if found is not None]
    report = join_scans(journals, histories, history.applied(), held, commit, replica, disk)
    report.bytes_on_disk = journal.bytes_on_disk() + history.bytes_on_disk()
    return report


def join_scans(
    journals: Iterable[JournalScan],
    histories: Iterable[SlotScan],
    applied: Mapping[int, int],
    held: Stretches | None = None,
    commit: Mapping[int, int] | None = None,
    replica: str = "",
    disk: str = "",
) -> ReplicaReport:
    """The report of one replica.

    ``commit`` caps each slot (without it: the commit point that the disk knows of); ``held`` are
    the stretches that the replica says it has, from its meta.
    """
    of_journal = {found.slot: found for found in journals}
    of_history = {found.slot: found for found in histories}
    report = ReplicaReport(replica, disk)
    for slot in sorted({*of_journal, *of_history, *(held or {})}):
        tail, past = of_journal.get(slot, JournalScan(slot)), of_history.get(slot, SlotScan(slot))
        known = max(tail.commit_lsn, applied.get(slot, 0))
        commit_lsn = known if commit is None else commit.get(slot, known)
        report.problems += [*past.problems, *tail.problems]
        report.corrupt += sum(p.kind == CORRUPT for p in (*past.problems, *tail.problems))
        report.divergent += past.divergent
        if past.problems_untold:
            text = f"slot {slot}: {past.problems_untold} more problems"
            report.problems.append(Problem(TABLES, slot, 0, text))
        sums = _committed(report, past, tail, commit_lsn)
        whole = {lsn: checksum for lsn, checksum in sums.items() if lsn not in past.dropped}
        slot_report = SlotReport(slot, commit_lsn, len(sums), past.events, blocks_of(whole))
        slot_report.dropped = sum(past.dropped.values())
        last = max(past.runs[-1][0] + len(past.runs[-1][1]) - 1 if past.runs else 0, 0)
        slot_report.events += sum(r.events for r in tail.records if last < r.lsn <= commit_lsn)
        bad = {p.lsn for p in (*past.problems, *tail.problems) if p.kind == CORRUPT}
        if not past.away:
            slot_report.missing = _missing((held or {}).get(slot, ()), {*sums, *bad}, commit_lsn)
        report.slots.append(slot_report)
    report.away = sorted({text for found in of_history.values() for text in found.away})
    report.problems += [Problem(AWAY, -1, 0, text) for text in report.away]
    return report


def _committed(
    report: ReplicaReport, past: SlotScan, tail: JournalScan, commit_lsn: int
) -> dict[int, int]:
    """lsn -> checksum of what the slot has up to its commit point."""
    sums = {
        first + index: checksum
        for first, run in past.runs
        for index, checksum in enumerate(run)
        if first + index <= commit_lsn
    }
    for lsn, checksum, _ in tail.records:
        if lsn > commit_lsn:
            break
        # Of what was dropped the journal may still have the whole, until it is trimmed.
        if sums.setdefault(lsn, checksum) != checksum and lsn not in past.dropped:
            text = f"slot {past.slot}: lsn {lsn} differs between journal and history"
            report.problems.append(Problem(CORRUPT, past.slot, lsn, text))
            report.corrupt += 1
    return sums


def blocks_of(checksums: Mapping[int, int]) -> list[Block]:
    """Blocks of BLOCK_LSNS, cut where a multiple of it ends and at holes."""
    blocks: list[Block] = []
    run: list[int] = []
    first = 0
    for lsn in sorted(checksums):
        if run and (lsn != first + len(run) or (lsn - 1) % BLOCK_LSNS == 0):
            blocks.append(_block(first, run))
            run = []
        if not run:
            first = lsn
        run.append(checksums[lsn])
    if run:
        blocks.append(_block(first, run))
    return blocks


def _block(first: int, checksums: list[int]) -> Block:
    last = first + len(checksums) - 1
    if len(checksums) < BLOCK_LSNS:
        return Block(first, last, "", tuple(checksums))
    packed = struct.pack(f">{len(checksums)}q", *checksums)
    return Block(first, last, hashlib.blake2b(packed, digest_size=16).hexdigest(), ())


def _missing(
    held: Sequence[Sequence[int]], there: set[int], commit_lsn: int
) -> list[tuple[int, int]]:
    gaps: list[tuple[int, int]] = []
    for first, last in held:
        for lsn in range(first, min(last, commit_lsn) + 1):
            if lsn in there:
                continue
            if gaps and gaps[-1][1] == lsn - 1:
                gaps[-1] = (gaps[-1][0], lsn)
            else:
                gaps.append((lsn, lsn))
    return gaps


def scan_directory(
    path: Path, held: Stretches | None = None, commit: Mapping[int, int] | None = None
) -> ReplicaReport:
    """Scan a data directory that no replica runs on. Makes nothing and takes the lock; a damaged
    journal or history is reported and not raised."""
    directory = open_existing(path)
    try:
        report = _scan_opened(directory, held, commit)
    finally:
        directory.close()
    return report


def _scan_opened(
    directory: DataDirectory, held: Stretches | None, commit: Mapping[int, int] | None
) -> ReplicaReport:
    report = ReplicaReport(directory.replica, directory.disk)
    journals: list[JournalScan] = []
    histories: list[SlotScan] = []
    applied: dict[int, int] = {}
    size = 0
    try:
        journal = directory.open_existing_journal()
        if journal is not None:
            journals = [found for found in scan_journal(journal) if found is not None]
            size += journal.bytes_on_disk()
            journal.close()
    except CorruptData as error:
        report.problems.append(Problem(CORRUPT, -1, 0, str(error)))
    try:
        history = directory.open_existing_history()
        if history is not None:
            histories = [found for found in scan_history(history) if found is not None]
            applied = history.applied()
            size += history.bytes_on_disk()
            history.close()
    except CorruptData as error:
        report.problems.append(Problem(CORRUPT, -1, 0, str(error)))
    whole = join_scans(
        journals, histories, applied, held, commit, directory.replica, directory.disk
    )
    whole.corrupt += len(report.problems)
    whole.problems = report.problems + whole.problems
    whole.bytes_on_disk = size
    return whole


# -- all replicas ----------------------------------------------------------------------------------


def compare(
    reports: Sequence[ReplicaReport], checksums: ChecksumSource | None = None
) -> VerifyReport:
    """Compare replicas slot by slot, each only up to the commit point that it knows.

    Equal digests of whole blocks are enough. Where replicas hold different parts of a block,
    ``checksums`` is asked for single records; without it, such records count as ``uncompared``.
    """
    verdict = VerifyReport()
    slots: dict[int, list[tuple[str, SlotReport]]] = defaultdict(list)
    for report in reports:
        verdict.corrupt += report.corrupt
        verdict.divergent += report.divergent
        for problem in report.problems:
            verdict.problem(f"{report.replica}: {problem.text}")
        for slot in report.slots:
            slots[slot.slot].append((report.replica, slot))
            for first, last in slot.missing:
                verdict.missing += last - first + 1
                verdict.problem(f"{report.replica}: slot {slot.slot} lacks lsn {first} to {last}")
    for slot_number, copies in sorted(slots.items()):
        verdict.slots += any(copy.records for _, copy in copies)
        verdict.records += max(copy.records for _, copy in copies)
        verdict.events += max(copy.events for _, copy in copies)
        verdict.dropped += max(copy.dropped for _, copy in copies)
        _compare_slot(verdict, slot_number, copies, checksums)
    return verdict


def _compare_slot(
    verdict: VerifyReport,
    slot: int,
    copies: list[tuple[str, SlotReport]],
    checksums: ChecksumSource | None,
) -> None:
    by_number: dict[int, list[tuple[str, Block]]] = defaultdict(list)
    for replica, copy in copies:
        for block in copy.blocks:
            by_number[(block.first_lsn - 1) // BLOCK_LSNS].append((replica, block))
    for _, blocks in sorted(by_number.items()):
        if len({(b.first_lsn, b.last_lsn, b.digest, b.checksums) for _, b in blocks}) > 1:
            _compare_blocks(verdict, slot, blocks, checksums)


def _compare_blocks(
    verdict: VerifyReport,
    slot: int,
    blocks: list[tuple[str, Block]],
    checksums: ChecksumSource | None,
) -> None:
    known: dict[int, dict[str, int]] = defaultdict(dict)
    closed: list[tuple[str, Block]] = []
    for replica, block in blocks:
        if block.digest and checksums is None:
            closed.append((replica, block))
            continue
        first, last = block.first_lsn, block.last_lsn
        sums = dict(zip(range(first, last + 1), block.checksums, strict=False))
        if block.digest and checksums is not None:
            sums = checksums(replica, slot, first, last)
        for lsn, checksum in sums.items():
            known[lsn][replica] = checksum
    for lsn, said in sorted(known.items()):
        if len(set(said.values())) > 1:
            verdict.divergent += 1
            verdict.problem(f"slot {slot} lsn {lsn} differs: {_told(said)}")
    digests = {block.digest for _, block in closed}
    if len(digests) > 1:
        verdict.divergent += 1
        where = f"lsn {closed[0][1].first_lsn} to {closed[0][1].last_lsn}"
        verdict.problem(f"slot {slot} {where} differs between {[r for r, _ in closed]}")
    elif closed:
        verdict.uncompared += len(known)


def _told(said: dict[str, int]) -> str:
    return ", ".join(
        f"{replica} has {checksum & (1 << 64) - 1:016x}"
        for replica, checksum in sorted(said.items())
    )


def store_checksums(
    journal: Journal, history: History, slot: int, first_lsn: int, last_lsn: int
) -> dict[int, int]:
    """What a store has of a stretch: a ChecksumSource for one replica."""
    found: dict[int, int] = {}
    lsn = first_lsn
    while lsn <= last_lsn:
        records = history.records(slot, lsn, last_lsn, 1 << 20) or journal.read(
            slot, lsn, last_lsn, 1 << 20
        )
        found.update((record.lsn, record.checksum) for record in records)
        lsn = records[-1].lsn + 1 if records else lsn + 1
    return found


def directory_checksums(paths: Iterable[Path]) -> ChecksumSource:
    """A ChecksumSource over data directories that no replica runs on."""
    by_replica: dict[str, Path] = {}
    for path in paths:
        directory = open_existing(path)
        by_replica[directory.replica] = path
        directory.close()

    def read(replica: str, slot: int, first_lsn: int, last_lsn: int) -> dict[int, int]:
        directory = open_existing(by_replica[replica])
        try:
            journal, history = directory.open_journal(), directory.open_history()
            found = store_checksums(journal, history, slot, first_lsn, last_lsn)
            journal.close()
            history.close()
            return found
        finally:
            directory.close()

    return read
