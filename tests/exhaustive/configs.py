"""The configurations that ``python -m tests.exhaustive`` explores, each with its bound.

One bound over everything would take days. Each of these gives room to one kind of trouble and keeps
the others small; within its bound it leaves nothing out.
"""

from __future__ import annotations

from tests.exhaustive.bounds import Bounds

_OUT_AND_BACK = (
    r"^p submit 1$",
    r"^p hears A's SessionsLoaded",
    r"^p submit 2$",
    r"^p take",
    r"^p \[A gets p1's Seal\(epoch=2\)\] hears A's Sealed\([^[]*\)"
    r" \[B gets p1's Seal\(epoch=2\)\] hears B's Sealed\([^[]*\) due attempt$",
    r"^p \[D gets p1's Seal\(epoch=2\)\] hears D's",
    r"^p hears A's Prepared.*hears B's Prepared.*hears D's Prepared",
    r"^p .*hears A's Appended.*hears B's Appended.*hears D's Appended.*swap",
)
"""Two records are on their way to C, which is silent and is replaced by D. From here on everything
is explored."""

_LATER_THAN_THE_TABLES = (
    r"^p submit 1$",
    r"^p hears A's SessionsLoaded",
    r"^p .*hears A's Appended.*hears B's Appended.*hears C's Appended",
    r"^p crashes",
    r"^q take",
    r"^q .*hears A's Sealed.*hears B's Sealed.*hears C's Sealed",
    r"^q hears A's Prepared.*hears B's Prepared.*hears C's Prepared",
    r"^q .*hears A's Appended.*hears B's Appended.*hears C's Appended.* swap$",
)
"""A message is committed, and nobody's history has it when its owner crashes. The next owner
serves: it has replayed the message, and has not loaded the rest of the session's state."""

_PREPARED_IN_VAIN = (
    r"^p take",
    r"^p .*hears A's Sealed.*hears B's Sealed.*hears C's Sealed",
    r"^p hears A's Prepared.*hears B's Prepared.*hears C's Prepared",
    r"^p .*hears A's Appended.*hears B's Appended.*hears C's Appended.*swap",
    # C, whose history has nothing yet, is silent and is replaced by D.
    r"^p take",
    r"^p \[A gets p1's Seal\(epoch=2\)\] hears A's Sealed\([^[]*\)"
    r" \[B gets p1's Seal\(epoch=2\)\] hears B's Sealed\([^[]*\) due attempt$",
    r"^p \[D gets p1's Seal\(epoch=2\)\] hears D's",
    r"^p hears A's Prepared.*hears B's Prepared.*hears D's Prepared",
    r"^p .*hears A's Appended.*hears B's Appended.*hears D's Appended.*swap",
    # D is silent, and C is asked to take its place, with a hole in its log.
    r"^p take",
    r"^p \[A gets p1's Committed\(epoch=2[^[]*"
    r"\[A gets p1's Seal\(epoch=3\)\] hears A's Sealed\([^[]*\)"
    r" \[B gets p1's Seal\(epoch=3\)\] hears B's Sealed\([^[]*\) due attempt$",
    r"^p \[C gets p1's Seal\(epoch=3\)\] hears C's",
    # Before C can answer the attempt is over. In the next one D is back.
    r"^p due attempt",
    r"^p due attempt",
    r"^p .*hears A's Sealed.*hears B's Sealed.*hears D's Sealed",
    r"^p hears A's Prepared.*hears B's Prepared.*hears D's Prepared",
    r"^p .*hears A's Appended.*hears B's Appended.*hears D's Appended.*swap",
    # All three have everything, so C is told to delete what it has; and the next takeover begins.
    r"^p take",
    r"^p \[A gets p1's Seal\(epoch=5\)\] hears A's Sealed\([^[]*\) due attempt$",
)
"""On their way to C are a Prepare that makes a hole, from an attempt that is over, and a Drop; and
perhaps it becomes a member now. From here on everything is explored."""

CONFIGS = (
    Bounds(
        "beginning",
        "the first takeovers of a slot that nobody has seen",
        epochs=2,
        crashes=2,
        settled=None,
    ),
    Bounds(
        "takeover",
        "two owners after each other, over three members",
        epochs=3,
        crashes=0,
        needless=False,
    ),
    Bounds(
        "crashes",
        "crashes of replicas and owners in the middle of a takeover",
        epochs=2,
        crashes=2,
        records=3,
    ),
    Bounds(
        "records",
        "three messages and their resends, two records in flight",
        epochs=2,
        crashes=0,
        records=3,
        settled=1,
        needless=False,
    ),
    Bounds(
        "live-owner",
        "an owner that takes its own slot again proposes anew what it has not committed",
        epochs=3,
        crashes=0,
        records=1,
        rivals=False,
    ),
    Bounds(
        "view-store",
        "answers of the view store that are lost or late, swaps that take effect late",
        epochs=2,
        crashes=1,
        store_faults=2,
    ),
    Bounds(
        "spare",
        "a member that stays silent is replaced, and comes back with what it has",
        replicas=4,
        epochs=2,
        crashes=2,
        records=3,
        needless=False,
    ),
    Bounds(
        "backfill",
        "a spare joins with a hole in its log; who was replaced deletes its data",
        replicas=4,
        epochs=2,
        crashes=0,
        copy_records=0,
        settled=1,
        needless=False,
    ),
    Bounds(
        "late-acks",
        "who was replaced comes back, and the acks of its former membership come late",
        replicas=4,
        crashes=0,
        records=2,
        flights=2,
        rivals=False,
        late_acks=True,
        script=_OUT_AND_BACK,
    ),
    Bounds(
        "history",
        "applying what is committed takes its time",
        epochs=2,
        crashes=0,
        lazy="ABC",
        needless=False,
    ),
    Bounds(
        "forgetting",
        "sessions are forgotten, and loaded from tables that lag behind",
        epochs=2,
        records=2,
        lazy="ABC",
        loads=3,
        needless=False,
        rivals=False,
        script=_LATER_THAN_THE_TABLES,
    ),
    Bounds(
        "second-life",
        "who was prepared in vain is prepared again, with a second hole or after a deletion",
        replicas=4,
        epochs=5,
        records=0,
        crashes=0,
        lazy="C",
        sources=1,
        copy_records=0,
        settled=None,
        rivals=False,
        spare_links=True,
        script=_PREPARED_IN_VAIN,
    ),
)

QUICK = (
    Bounds(
        "quick-takeover",
        "one takeover, with crashes",
        epochs=2,
        crashes=2,
        needless=False,
    ),
    Bounds(
        "quick-view-store",
        "one takeover with an answer of the view store lost or late",
        epochs=2,
        crashes=0,
        store_faults=1,
    ),
    Bounds(
        "quick-late-acks",
        "who was replaced comes back at the next takeover, and its former acks come late",
        replicas=4,
        crashes=0,
        records=2,
        flights=2,
        rivals=False,
        late_acks=True,
        script=(*_OUT_AND_BACK, r"^p take"),
    ),
    Bounds(
        "quick-live-owner",
        "an owner takes its own slot again, twice, with a record on its way",
        crashes=0,
        rivals=False,
        script=(r"^p submit 1$", r"^p hears A's SessionsLoaded", r"^p take"),
    ),
    Bounds(
        "quick-forgetting",
        "a session is forgotten once, and loaded from tables that lag behind",
        epochs=2,
        lazy="ABC",
        loads=2,
        needless=False,
        rivals=False,
        script=_LATER_THAN_THE_TABLES,
    ),
)


def find(name: str) -> Bounds:
    for bounds in (*CONFIGS, *QUICK):
        if bounds.name == name:
            return bounds
    raise SystemExit(f"no configuration {name!r}: {', '.join(b.name for b in (*CONFIGS, *QUICK))}")
