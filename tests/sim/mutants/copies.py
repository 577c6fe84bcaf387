"""Design 5.3: backfill, and deleting what former members hold."""

from tests.sim.mutants.modules import OWNER, REPLICA
from tests.sim.mutation import Edit, mutant

_DROP_REFUSED = (
    "if request.epoch < log.promised or any(m.disk == self.disk for m in request.view.members):"
)

COPIES_OF_OLD = (
    mutant(
        "drop-before-all-complete",
        "5.3: former members' data is deleted only when all three members have everything",
        Edit(
            OWNER,
            "        if self._all_complete():\n            self._dropped_for",
            "        if True:\n            self._dropped_for",
        ),
        known=175,
    ),
    mutant(
        "drop-forgets-the-promise",
        "5.3, I8: deleting never forgets the promise",
        Edit(
            REPLICA,
            "SlotLog(promised=request.epoch, owner=request.view.owner, view=request.view)",
            "SlotLog()",
        ),
    ),
    mutant(
        "late-drop",
        "5.3: a replica that has promised a higher epoch refuses a Drop",
        Edit(REPLICA, _DROP_REFUSED, "if any(m.disk == self.disk for m in request.view.members):"),
    ),
    mutant(
        "applied-while-dropping",
        "5.3: what was applied before a deletion does not count after it",
        Edit(
            REPLICA,
            "        if log.dropping is not None:\n"
            "            return  # Written before the deletion that is under way, and deleted by"
            " it.\n",
            "",
        ),
        known=2,
        faults=(
            "slow_history",
            "slow_apply",
            "crash_replica",
            "partition=0.5",
            "needless_take",
            "dead_disk",
        ),
    ),
    mutant(
        "hole-not-remembered",
        "5.1, 5.3.5: from_lsn covers only what is there without a hole",
        Edit(
            REPLICA,
            "log.held.append([start_lsn, start_lsn - 1])",
            "log.held[-1][1] = start_lsn - 1",
        ),
    ),
    mutant(
        "complete-before-the-hole-is-closed",
        "5.3: a log is complete when backfill has closed the whole hole",
        Edit(REPLICA, "if last_lsn + 1 == log.held[1][0]:", "if True:"),
    ),
    mutant(
        "complete-before-drained",
        "5.3, 5.4: backfill waits until what lies below the hole is in the tables",
        Edit(REPLICA, "if log.complete or log.drain_lsn:", "if log.complete:"),
        faults=("slow_apply=0.8", "partition", "pause_replica", "crash_replica"),
    ),
    mutant(
        "second-hole-forgets-the-first-drain",
        "5.3, 5.4: a second hole keeps the mark up to which the first one is drained",
        Edit(
            REPLICA,
            "log.drain_lsn = max(log.drain_lsn, keep_lsn if log.applied_lsn < keep_lsn else 0)",
            "log.drain_lsn = keep_lsn if log.applied_lsn < keep_lsn else 0",
        ),
        # A member that was prepared in vain, and that has a second hole before history is through
        # with what lies below the first one.
        by="exhaustive second-life",
    ),
    mutant(
        "backfill-unchecked",
        "5.3: backfilled records are checked",
        Edit(
            REPLICA,
            "if not same or not record_intact(answer.slot, record):",
            "if not same:",
        ),
        faults=("bad_read", "crash_replica", "wipe_disk"),
    ),
    mutant(
        "backfill-of-another-log",
        "5.3: backfilled records are of the epochs of this log",
        Edit(
            REPLICA,
            "same = record.lsn == lsn and epoch_at(log.epochs, lsn) == record.epoch",
            "same = record.lsn == lsn",
        ),
        # From a former member that goes on with what was never committed.
        known=154,
        faults=(
            *("crash_replica", "crash_shard=0.5", "pause_replica", "partition", "one_way"),
            *("drop", "wipe_disk", "slow_apply"),
        ),
    ),
    mutant(
        "backfill-stored-anywhere",
        "5.3: a backfilled stretch counts only where the hole begins",
        Edit(
            REPLICA,
            "zip(range(first, last + 1), answer.records, strict=False)",
            "enumerate(answer.records, answer.records[0].lsn)",
        ),
        Edit(REPLICA, "if log.complete or log.held[0][1] + 1 != first_lsn:", "if log.complete:"),
        # Within one life of a slot here no answer begins above what was filled once. It takes one
        # from before a deletion, in the middle of the next backfill.
        by="exhaustive second-life",
    ),
)
