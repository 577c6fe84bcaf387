"""Four rules of design 5.3 whose removal is hard to see, and where the explorer sees it.

A small model of the design did not notice within three epochs that one of these was gone: a promise
on disk, promise and measurement in one step, the EpochStart, and epochs before lengths in the
choice of a log. Each is taken out of the real sources here. ``python -m tests.exhaustive
--missing`` runs the cases below, each in a process of its own; ``CASES`` says what has to come out.

- **A promise kept only in memory** is noticed at once by I8: a promise that was given is on disk.
  By its consequences: with one crash a member cuts off what was committed (its seal is forgotten,
  the old owner's append gets in, the repeated seal and the late Prepare cut it), so that only two
  disks have it. For a record to be gone from *all* disks each of the three has to forget, so
  it takes three crashes; with two, nothing is lost in any state: Prepare makes the promise durable,
  and is refused by who has forgotten it.
- **Measuring before promising**: what is written between the two is cut. Two epochs, no crash, one
  record, and an ACKed record is gone from all three disks.
- **Without an EpochStart** the tail of a former epoch is committed by the view change alone. A late
  copy of the attempt's own Prepare then cuts it off again: "a replica that already holds a record
  of this epoch refuses to be cut" has nothing to go by. Two epochs, no crash, one record, one
  repeated message. Nothing is gone from all disks within two epochs: who was read from keeps it.
- **The longest log, whatever its epochs**, is a second line of defence and not the first. A record
  is committed when all three members have it; members change only when the new ones have the whole
  kept log; what an attempt keeps is the log of *some* member. So by induction every log of a member
  of the view holds everything committed, and whichever is chosen, nothing committed is lost. What a
  longer, older tail may win over was never committed. The rule works where somebody else's log can
  be chosen: a former member may hold an old tail that is as long as what was committed since. That
  is kept out by another rule, that only members of the view are asked (``make_plan``). Without both
  it breaks within three epochs, with a spare and two records in flight, two steps after the owner
  that was deposed takes over again; without one of them nothing breaks within four.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.sim.mutants import find as find_mutant
from tests.sim.mutants.modules import REPLICA, TAKEOVER
from tests.sim.mutation import Edit


@dataclass(frozen=True, slots=True)
class Case:
    """Rules to take out, a bound, and what comes of it."""

    name: str
    edits: tuple[Edit, ...]
    bounds: dict[str, Any] = field(default_factory=dict)
    """Fields of ``space.Bounds``."""
    broken: str = ""
    """How the text of what breaks begins; empty: nothing breaks."""


PROMISE_IN_MEMORY = find_mutant("promise-in-memory").edits
MEASURE_BEFORE_PROMISING = (
    *find_mutant("measure-before-promising").edits,
    # And what was measured before Prepare may be measured again, as after it.
    Edit(
        REPLICA,
        "if request.epoch <= log.promised and not again:",
        "if request.epoch < log.promised:",
    ),
)
NO_EPOCH_START = find_mutant("no-epoch-start").edits
LONGEST_LOG = (
    Edit(
        TAKEOVER,
        "return epoch_at(answer.epochs, answer.last_lsn), answer.last_lsn",
        "return 0, answer.last_lsn",
    ),
)
SPARES_COUNT = (
    Edit(
        TAKEOVER,
        "best = choose_log({m: usable[m] for m in view.members if m in usable})",
        "best = choose_log(usable)",
    ),
)

_TWO_OWNERS = (
    r"^p submit 1$",
    r"^p hears A's SessionsLoaded",
    r"^p submit 2$",
    r"^q take",
    r"^q \[A gets q1's Seal\(epoch=2\)\] hears A's Sealed\([^[]*\)"
    r" \[B gets q1's Seal\(epoch=2\)\] hears B's Sealed\([^[]*\) due attempt$",
    r"^q \[D gets q1's Seal\(epoch=2\)\] hears D's",
    r"^q hears A's Prepared.*hears B's Prepared.*hears D's Prepared",
    r"^q .*hears A's Appended.*hears B's Appended.*hears D's Appended.*swap",
    r"^q submit 1$",
    r"^q hears A's SessionsLoaded",
    r"^q \[A gets q1's Append[^]]*n \[1\]\]\)\] hears A's Appended",
    r"^q .*hears B's Appended.*hears D's Appended",
    r"^p .*hears .*Refused",
    r"^p take",
)
"""One owner has two records on their way to C, which is silent; the other one replaces C by D and
commits; then the first one takes over again. From here on everything is explored."""
_SHORT: dict[str, Any] = {"epochs": 2, "needless": False}
_SPARE: dict[str, Any] = {
    "replicas": 4,
    "epochs": 3,
    "crashes": 0,
    "records": 2,
    "flights": 2,
    "needless": False,
    "judge": "copies",
    "script": _TWO_OWNERS,
}
_SPARE_ALONE = {**_SPARE, "steps": 4}
"""Twice as many steps as it takes without both rules."""

CASES = (
    Case("promise-in-memory", PROMISE_IN_MEMORY, {**_SHORT, "crashes": 0}, "I8"),
    Case(
        "promise-in-memory, one crash",
        PROMISE_IN_MEMORY,
        {**_SHORT, "crashes": 1, "judge": "copies"},
        "I3",
    ),
    Case(
        "promise-in-memory, three crashes",
        PROMISE_IN_MEMORY,
        {**_SHORT, "crashes": 3, "judge": "loss"},
        "P2",
    ),
    Case(
        "promise-in-memory, two crashes: nothing is lost on all disks",
        PROMISE_IN_MEMORY,
        {**_SHORT, "crashes": 2, "judge": "loss"},
    ),
    Case(
        "measure-before-promising",
        MEASURE_BEFORE_PROMISING,
        {**_SHORT, "crashes": 0, "judge": "loss"},
        "P2",
    ),
    Case(
        "no-epoch-start",
        NO_EPOCH_START,
        {**_SHORT, "crashes": 0, "judge": "copies"},
        "I3",
    ),
    Case("longest-log", LONGEST_LOG, _SPARE_ALONE),
    Case("logs-of-spares-count", SPARES_COUNT, _SPARE_ALONE),
    Case("longest-log and logs-of-spares-count", LONGEST_LOG + SPARES_COUNT, _SPARE, "alarm"),
)


def find(name: str) -> Case:
    return next(case for case in CASES if case.name == name)
