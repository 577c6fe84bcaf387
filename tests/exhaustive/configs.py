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
    r" \[B gets p1's Seal\(epoch=2\)\] hears B's Sealed\([^[]*\) due$",
    r"^p \[D gets p1's Seal\(epoch=2\)\] hears D's",
    r"^p hears A's Prepared.*hears B's Prepared.*hears D's Prepared",
    r"^p .*hears A's Appended.*hears B's Appended.*hears D's Appended.*swap",
)
"""Two records are on their way to C, which is silent and is replaced by D. From here on everything
is explored."""

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
        lazy_history=True,
        needless=False,
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
)


def find(name: str) -> Bounds:
    for bounds in (*CONFIGS, *QUICK):
        if bounds.name == name:
            return bounds
    raise SystemExit(f"no configuration {name!r}: {', '.join(b.name for b in (*CONFIGS, *QUICK))}")
