"""Design 9: batch messages reach whom they are said to reach, and groups keep their rules."""

from tests.sim.mutants.modules import BATCH_RULES, BATCH_RUN, BATCHES, GROUP_RULES, NOTES
from tests.sim.mutation import Edit, mutant

TAKEN = ("crash_shard=1", "pause_shard", "delay")
"""Batches go from one executor to the next."""

USERS = (
    mutant(
        "fenced-is-not-sent",
        "9: a fence that holds says nothing: n = 1 is asked for after it",
        Edit(
            BATCH_RUN,
            "                run.asks.append(Ask(run, chunk, position, Step.CHECK))\n",
            "                chunk.settle(position, NOT_SENT)\n",
        ),
        faults=TAKEN,
        known=18,
    ),
    mutant(
        "looked-at-is-taken-back",
        "9: a message is taken back when its recall has been answered",
        Edit(
            BATCH_RUN,
            "                run.asks.append(Ask(run, chunk, position, Step.RECALL, seq))\n",
            "                chunk.settle(position, OK)\n",
        ),
        faults=TAKEN,
        known=3,
    ),
    mutant(
        "progress-before-all-have-answered",
        "9: a chunk is done when it is known of each of its recipients what became of him",
        Edit(BATCH_RUN, "if chunk is None or chunk.open or", "if chunk is None or"),
        faults=TAKEN,
        known=3,
    ),
    mutant(
        "later-is-an-outcome",
        "9, P6: what may be tried again is no outcome",
        Edit(
            BATCH_RUN, "return error.retryable or not error.definite", "return not error.definite"
        ),
        faults=TAKEN,
        known=3,
    ),
    mutant(
        "skips-a-chunk",
        "9: a new executor goes on at the first chunk that is not done",
        Edit(
            BATCH_RULES,
            "        chunks=known.chunks + len(outcomes),\n",
            "        chunks=known.chunks + len(outcomes) + (known.chunks == 2),\n",
        ),
        known=4,
    ),
    mutant(
        "batches-forgotten-at-takeover",
        "9: a new owner looks after the batches that its slot lists",
        Edit(BATCHES, "words.Began(tuple(listed))", "words.Began(())"),
        faults=TAKEN,
        known=79,
    ),
    mutant(
        "progress-counted-twice",
        "9: of outcomes that are said again only those count that are new",
        Edit(BATCH_RULES, "for row in rows][done - chunk :]", "for row in rows]"),
        faults=TAKEN,
        known=39,
    ),
    mutant(
        "who-leaves-stays",
        "9: who leaves a group, or is removed, may do nothing in it any more",
        Edit(
            GROUP_RULES,
            "row._replace(role=STRANGER, left_seq=acting.lookup.next_seq)",
            "row._replace(left_seq=acting.lookup.next_seq)",
        ),
    ),
    mutant(
        "comes-back-unmuted",
        "9: a mute outlives going out and coming back",
        Edit(
            GROUP_RULES, "until_ms = row.muted_until_ms if row is not None else 0", "until_ms = 0"
        ),
        known=4,
    ),
    mutant(
        "two-owners",
        "9: who hands a group over is its owner no more",
        Edit(
            GROUP_RULES,
            "acting.user: acting.row._replace(role=ADMIN)",
            "acting.user: acting.row",
        ),
        known=39,
    ),
    mutant(
        "removal-is-not-told",
        "9: the mailbox of who was let out of a group hears of it",
        Edit(
            NOTES,
            "            notes.append((mailbox_of(user), left_note(event.session, event.seq)))\n",
            "            pass\n",
        ),
    ),
)
