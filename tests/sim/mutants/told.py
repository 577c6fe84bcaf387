"""Design 9: what happens in one slot reaches the mailboxes in others, once and exactly."""

from tests.sim.mutants.modules import (
    CONVERSATION,
    DIFFUSION,
    HEARERS,
    READS,
    SERVING,
    TELLING,
)
from tests.sim.mutation import Edit, mutant

TOLD = (
    mutant(
        "cursor-above-an-untold-note",
        "9: the cursor of a slot stays below every note that is not answered",
        Edit(
            DIFFUSION,
            "return min(open_lsns, default=self.taken_lsn + 1) - 1",
            "return self.taken_lsn",
        ),
        known=39,
    ),
    mutant(
        "notes-forgotten-at-takeover",
        "9: a new owner goes on from the cursor, not from where the log ends",
        Edit(TELLING, "dif.Began(cursor_lsn, commit_lsn)", "dif.Began(commit_lsn, commit_lsn)"),
    ),
    mutant(
        "unanswered-note-is-told",
        "9: a note is told until its hearer says that it holds",
        Edit(DIFFUSION, "        if not holds:\n", "        if False:\n"),
    ),
    mutant(
        "span-taken-twice",
        "9: a row takes from a span only what is new to it",
        Edit(
            CONVERSATION,
            "        if span.to_seq <= self.last_seq:\n            return self\n",
            "",
        ),
        known=61,
    ),
    mutant(
        "note-answered-before-it-commits",
        "9, 5.2.4: a note that changes a row holds when that change has committed",
        Edit(
            SERVING,
            "            if made is PendingChange:\n",
            "            if device == SERVER:\n"
            "                event.waiters.clear()\n"
            "                return Answer(token, OK, seq, epoch, now_ms, 0)\n"
            "            if made is PendingChange:\n",
        ),
    ),
    mutant(
        "own-sends-count",
        "9: unread counts the messages of others only",
        Edit(
            "im_actors.core.spans",
            "if e.kind not in MESSAGE_KINDS or e.sender == user)",
            "if e.kind not in MESSAGE_KINDS)",
        ),
    ),
    mutant(
        "delivered-for-read",
        "9: a receipt that waits keeps what it says when a later one joins it",
        Edit(
            HEARERS,
            "return ReceiptNote(Receipt(session, *map(max, seqs, later.receipt[1:])))",
            "return later",
        ),
        known=50,
    ),
    mutant(
        "who-has-left-has-read",
        "9: only members are counted as readers of a group",
        Edit(
            READS,
            "return self.left_seq < self.joined_seq < self.read_seq",
            "return 0 < self.joined_seq < self.read_seq",
        ),
        known=35,
    ),
    mutant(
        "read-before-joining",
        "9: who joined after a message is not counted as its reader",
        Edit(READS, "joined = changed.joined_seq if changed.counts else 0", "joined = before"),
    ),
)
