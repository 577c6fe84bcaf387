"""Design 5.2: writing."""

from tests.sim.mutants.modules import (
    OWNER,
    REPLICA,
    SERVING,
    SESSIONS,
    SIM_REPLICA,
)
from tests.sim.mutation import Edit, mutant

_DURABLE = "durable = min([state.durable_lsn for state in self.members.values()])"
_PROMISED = "if log is not None and log.promised == request.epoch:"
_BELIEVED = "self._raise_commit(slot, log, min(commit_lsn, prev_lsn + len(records)))"

WRITING = (
    mutant(
        "commit-at-two",
        "5.2.4: a record is committed when all three members have it, not when two have",
        Edit(OWNER, _DURABLE, _DURABLE.replace("min(", "sorted(") + "[1]"),
    ),
    mutant(
        "commit-at-one",
        "5.2.4: the commit point is the lowest durable lsn of the three, not the highest",
        Edit(OWNER, _DURABLE, _DURABLE.replace("min(", "max(")),
    ),
    mutant(
        "answer-before-fsync",
        "5.2.3, 5.6: an answer leaves a replica when what was stored before it is on disk",
        Edit(
            SIM_REPLICA,
            "            self._sync(batch)\n            return\n",
            "            for effects in batch:\n"
            "                self._carry_out([e for e in effects if type(e) is not rep.Store])\n"
            "            self._sync([[e for e in effects if type(e) is rep.Store]"
            " for effects in batch])\n"
            "            return\n",
        ),
    ),
    mutant(
        "append-of-lower-epoch",
        "5.2.3: a replica refuses an append of an epoch below the one that it has promised",
        Edit(REPLICA, _PROMISED, _PROMISED.replace("==", ">=")),
    ),
    mutant(
        "append-without-prev-lsn",
        "5.2.3: an append that does not join the log is answered with NEED",
        Edit(REPLICA, "if prev_lsn > last_lsn or prev_lsn <", "if prev_lsn <"),
    ),
    mutant(
        "append-without-checksum",
        "5.2.3: a record is checked before it is stored",
        Edit(REPLICA, "if not fits or not record_intact(slot, record):", "if not fits:"),
        faults=("garbled",),
    ),
    mutant(
        "commit-point-beyond-the-match",
        "5.2.5: a replica believes a commit point only up to where its log matches the sender's",
        Edit(REPLICA, _BELIEVED, "self._raise_commit(slot, log, commit_lsn)"),
        faults=("small_frames", "crash_replica", "crash_shard", "partition"),
    ),
    mutant(
        "everything-is-committed",
        "5.2.5: replicas apply to history up to the commit point, never beyond",
        Edit(REPLICA, _BELIEVED, "self._raise_commit(slot, log, prev_lsn + len(records))"),
    ),
    mutant(
        "pending-duplicate-is-done",
        "5.2.1, 5.6: a duplicate of a pending message waits for the commit like the first one",
        Edit(SERVING, "if pending is not None:", "if False:"),
    ),
    mutant(
        "publish-before-commit",
        "5.2.4, I7: nothing above the commit point is pushed",
        Edit(
            OWNER,
            "            self.last_lsn = record.lsn\n            fields",
            "            self.last_lsn = record.lsn\n"
            "            cut = list(self.serving.flights[-1].events)\n"
            "            self._effects.append(Published(self.slot, record.lsn, record.lsn, cut))\n"
            "            fields",
        ),
    ),
    mutant(
        "heads-above-commit",
        "5.2.6, I7: the head that is told is the last committed seq",
        Edit(OWNER, "sessions[session].committed_seq", "sessions[session].last_seq"),
    ),
    mutant(
        "gap-in-n",
        "5.2.1, I6: a send that leaves a gap in its device's n is OUT_OF_ORDER",
        Edit(SESSIONS, "if n > last_n + 1:", "if n < 1:"),
        Edit(
            SESSIONS,
            '        assert n == self.last_n + 1 or not sent, f"n {n} follows {self.last_n}"\n',
            "",
        ),
    ),
    mutant(
        "another-body-under-a-key",
        "5.2.1: another message under a used key is KEY_CONFLICT",
        Edit(SESSIONS, "if checksum != known_checksum and kind != EventKind.VOID:", "if False:"),
    ),
    mutant(
        "device-overruns-its-window",
        "5.4: a device's uncommitted sends stay within what the dedup state remembers",
        Edit(
            SESSIONS,
            "if len(sent) == 2 * DEVICE_WINDOW and sent[0] > self.committed_seq:",
            "if False:",
        ),
    ),
    mutant(
        "keys-start-anew",
        "6: message keys go on above the last one of the log",
        Edit(
            OWNER,
            "key = record_keys(attempt.tail[-1].payload)[1] if attempt.tail else 0",
            "key = 0",
        ),
    ),
    mutant(
        "conflict-before-commit",
        "5.2.4, P6: no conflict is told that rests on what has not committed",
        Edit(SERVING, "        if state.last_seq != state.committed_seq:\n", "        if False:\n"),
        # A refused send's copy is taken and lost, and its VOID comes in between.
        known=241,
        faults=("drop=0.1", "crash_replica=1", "slow_apply=1", "slow_history"),
    ),
    mutant(
        "keys-of-one-clock",
        "6: a message key is above the slot's last one, also when the clock goes back",
        Edit(
            SERVING, "next_key(self.last_key, now_ms, self.slot)", "next_key(0, now_ms, self.slot)"
        ),
    ),
    mutant(
        "restarted-member-not-told",
        "5.2.5: a member that restarted hears the commit point again",
        Edit(OWNER, "            state.commit_lsn = 0\n", ""),
        # Only where the last commit is told in vain: nothing that follows makes up for it.
        known=16,
        faults=("drop=0.1", "crash_replica=1", "slow_apply=1", "slow_history"),
    ),
)
