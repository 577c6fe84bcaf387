"""Rules whose removal alone nobody notices: each says which other rule does the same work.

They are kept, as second lines: most of them turn another defect into an alarm instead of damage.
``NAME`` takes out both rules, and has to be noticed; ``NAME-alone`` only the one.
"""

from tests.sim.mutants.modules import (
    CONVERSATION,
    OWNER,
    REPLICA,
    SIM_REPLICA,
    SIM_STORE,
    TAKEOVER,
    TELLING,
)
from tests.sim.mutation import Edit, Redundant

_ORDER = "return epoch_at(answer.epochs, answer.last_lsn), answer.last_lsn"
_LOWEST_FIRST = "return -epoch_at(answer.epochs, answer.last_lsn), answer.last_lsn"
_SPARES_COUNT = Edit(
    TAKEOVER,
    "best = choose_log({m: usable[m] for m in view.members if m in usable})",
    "best = choose_log(usable)",
)
_DELETED_LATER = Edit(
    SIM_REPLICA,
    "self._in_history(lambda: self._drop_history(slot))",
    "delete = lambda: self.later(self.rng.uniform(0, 3_000), lambda: self._drop_history(slot))\n"
    "                self._in_history(delete)",
)
"""A deletion that things asked for later may overtake."""
_DROP_REFUSED = (
    "if request.epoch < log.promised or any(m.disk == self.disk for m in request.view.members):"
)

REDUNDANT = (
    Redundant(
        "which-log-is-kept",
        "5.3.4, 5.6: the log to keep is that of the highest epoch, not the longest or any other",
        "A record is committed when all three members have it, and members change only when the new"
        " ones have the whole tail. So every member's log holds all that is committed, and any of"
        " them may be kept: the order decides only what becomes of uncommitted records. It matters"
        " as soon as a spare's log can be chosen. And that rule alone is made up for by the order:"
        " members of an ACTIVE view have its EpochStart, a former member has only older ones.",
        edits=(Edit(TAKEOVER, _ORDER, _LOWEST_FIRST),),
        others=(_SPARES_COUNT,),
    ),
    Redundant(
        "kept-log-below-a-commit-point",
        "5.3.4: the kept log reaches every commit point that was reported, or nothing is cut",
        "An alarm: as long as members alone are asked, and are members only with the whole tail,"
        " their logs reach every commit point.",
        edits=(
            Edit(TAKEOVER, "    if commit_lsn > last_lsn:\n", "    if False:\n"),
            Edit(TAKEOVER, "    if keep < mine.commit_lsn:\n", "    if False:\n"),
        ),
        others=(Edit(TAKEOVER, _ORDER, _LOWEST_FIRST), _SPARES_COUNT),
    ),
    Redundant(
        "cut-below-the-commit-point",
        "5.3.5, I3: a replica never cuts its log below its commit point",
        "The seal reports the commit point and the plan keeps more, so only a late Prepare"
        " can ask for less; it meets a record of its own epoch, which refuses it first.",
        edits=(
            Edit(
                REPLICA,
                "if keep_lsn < max(log.commit_lsn, log.from_lsn - 1):",
                "if keep_lsn < log.from_lsn - 1:",
            ),
        ),
        others=(Edit(REPLICA, "if log.epochs and log.epochs[-1][0] == epoch:", "if False:"),),
        faults=("duplicate", "delay", "reorder", "needless_take", "crash_shard"),
    ),
    Redundant(
        "append-without-comparing",
        "5.2.3: (prev_lsn, prev_epoch) has to be in the log, and equal records to be equal",
        "Alarms: Prepare has brought every member to the kept log before anything is appended, and"
        " one epoch has one owner and one attempt, so that what is there already is the same.",
        edits=(
            Edit(REPLICA, "if epoch_at(log.epochs, prev_lsn) != prev_epoch:", "if False:"),
            Edit(REPLICA, "if not same_epoch or known not in (None, checksum):", "if False:"),
        ),
        others=(
            Edit(
                REPLICA,
                "        if keep_lsn < log.last_lsn:\n            self._cut(slot, log, keep_lsn)\n",
                "",
            ),
        ),
    ),
    Redundant(
        "append-of-higher-epoch",
        "5.2.3: a replica asks to be sealed before it takes anything of a higher epoch",
        "An owner prepares and appends only to replicas whose promise it has, on disk; a replica"
        " that forgot it would be another disk.",
        edits=(
            Edit(
                REPLICA,
                "if log is not None and log.promised == request.epoch:",
                "if log is not None and log.promised <= request.epoch:",
            ),
        ),
        others=(
            Edit(
                OWNER,
                "            if spare not in attempt.asked_ms:\n"
                "                self._seal(spare)\n",
                "            empty = Sealed(self.slot, self.epoch, 0, (), 0, 1, 0, True)\n"
                "            attempt.sealed.setdefault(spare, empty)\n",
            ),
        ),
    ),
    Redundant(
        "unknown-swap-is-lost",
        "5.3.7, 5.6: a swap without an answer is not taken as failed",
        "A new attempt reads the view first and swaps the whole record: a swap that takes effect"
        " late either finds its old record gone, or is seen by the next swap, which then fails."
        " Nothing was served meanwhile. Reading until it is known only saves the attempt.",
        edits=(
            Edit(
                OWNER,
                "            # Unknown is not failed: read until it is known which of the two it"
                " was.\n"
                "            self._read_view()\n"
                "            return\n",
                '            self._retry("no answer from the view store")\n            return\n',
            ),
        ),
        faults=("store_slow", "store_reply_lost", "pause_shard", "partition"),
        others=(
            Edit(
                SIM_STORE,
                "if self.views[old.slot] == old:",
                "if self.views[old.slot].epoch == old.epoch:",
            ),
        ),
    ),
    Redundant(
        "lost-swap-keeps-state",
        "5.3.7: who lost the view drops everything that it knew",
        "The next claim drops it: it sees that the last epoch was not its own. Dropping at once"
        " lets the waiting senders hear of it earlier.",
        edits=(
            Edit(
                OWNER, "        if view.owner != self.me:\n            self._forget_state()\n", ""
            ),
        ),
        others=(
            Edit(
                OWNER,
                "fresh = view.owner != self.me or view.epoch != self._lineage",
                "fresh = not self._lineage",
            ),
        ),
        faults=("pause_shard", "needless_take", "partition", "store_slow", "delay"),
    ),
    Redundant(
        "drop-at-a-member",
        "5.3: a member of the view refuses a Drop",
        "An owner sends Drop to replicas that are not members, and a late one meets the higher"
        " promise under which the replica became a member again.",
        edits=(Edit(REPLICA, _DROP_REFUSED, "if request.epoch < log.promised:"),),
        others=(Edit(OWNER, "self._spares(self.view.members):", "self._spares(()):"),),
    ),
    Redundant(
        "second-drop",
        "5.3: a second Drop waits for the deletion that is under way",
        "A replica's history does one thing after the other, in the order in which it was asked: a"
        " second deletion is done before anything of the slot's next life here, and finds nothing.",
        edits=(
            Edit(
                REPLICA,
                "        if log.dropping is not None:\n"
                "            return  # The first request's answer is coming; a second deletion"
                " could hit new data.\n",
                "",
            ),
            Edit(
                REPLICA,
                "self._send(log.dropping, Dropped(slot, log.promised))",
                "log.dropping and self._send(log.dropping, Dropped(slot, log.promised))",
            ),
        ),
        others=(_DELETED_LATER,),
        faults=("late=0.5", "duplicate=0.3", "partition=0.6", "pause_replica=0.6", "needless_take"),
    ),
    Redundant(
        "joins-while-dropping",
        "5.3: a slot is not prepared while its old data is being deleted",
        "History does one thing after the other: what is applied or backfilled after the Prepare is"
        " written after the deletion. What a crash before the deletion leaves is committed, of the"
        " same log.",
        edits=(
            Edit(
                REPLICA,
                "        if log.dropping is not None:\n"
                "            self._refuse(peer, request, log, \"the slot's old data is being"
                ' deleted")\n'
                "            return\n",
                "",
            ),
        ),
        others=(_DELETED_LATER,),
        faults=("partition", "pause_replica", "needless_take", "crash_replica"),
        known=58,
    ),
    Redundant(
        "span-that-leaves-a-gap",
        "9: a row that ends before a span begins refuses it, so that no event is passed over",
        "An alarm: who tells goes on from the cursor, and one note after the other of a"
        " conversation, so a row has had all that comes before a span.",
        edits=(
            Edit(
                CONVERSATION, "        if span.from_seq > self.last_seq + 1:", "        if False:"
            ),
        ),
        others=(
            Edit(TELLING, "dif.Began(cursor_lsn, commit_lsn)", "dif.Began(commit_lsn, commit_lsn)"),
        ),
    ),
)
