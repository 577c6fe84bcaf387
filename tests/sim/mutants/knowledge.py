"""Design 5.4 and 5.3.3: what a new owner must know, and what a start must not believe."""

from tests.sim.mutants.modules import OWNER, REPLICA, SERVING, SESSIONS, SIM_DISK
from tests.sim.mutation import Edit, mutant

_READY = "return log is not None and log.answers_reads and log.applied_lsn >= floor_lsn"
_SETTLED = "settled = state.committed_seq == state.last_seq and state.last_lsn <= applied_lsn"
_RAISE_FLOOR = "        self._floor_lsn = max(self._floor_lsn, floor)\n"

KNOWLEDGE = (
    mutant(
        "tail-not-replayed",
        "5.4: a new owner replays what the tables do not have yet",
        Edit(OWNER, "self.serving.replay(attempt.tail[skip:])", "pass"),
    ),
    mutant(
        "tables-not-merged",
        "5.4: a session's state is that of the tables and of the replayed end",
        Edit(
            SESSIONS,
            "self.devices[device] = _joined(mine, last_n, recent)",
            "self.devices.setdefault(device, mine or DeviceState())",
        ),
    ),
    mutant(
        "tables-of-any-age",
        "5.4: a session's state comes from tables that have applied what was not replayed",
        Edit(REPLICA, _READY, "return log is not None and log.answers_reads"),
    ),
    mutant(
        "tables-with-a-hole",
        "5.4, I9: a session's state comes from a replica that has all of its history",
        Edit(REPLICA, _READY, "return log is not None and log.applied_lsn >= floor_lsn"),
        Edit(OWNER, "if state.complete and m in self._up]", "if m in self._up]"),
    ),
    mutant(
        "deleted-is-complete",
        "5.3, I9: a replica that was told to forget a slot does not know that it is empty",
        Edit(REPLICA, "return self.complete and bool(self.epochs)", "return self.complete"),
        # Whoever is asked by a gateway that has not heard of the view without it.
        known=74,
        faults=("pause_controller=0.8", "pause_replica=0.6", "partition"),
    ),
    mutant(
        "not-ready-is-absent",
        "5.4, I9: tables that are not ready say nothing about a session",
        Edit(
            OWNER,
            "or answer.epoch != self.epoch or not answer.ready:",
            "or answer.epoch != self.epoch:",
        ),
        Edit(
            OWNER,
            "        assert len(answer.images) == len(lookup.sessions), "
            '"a session is missing in the answer"\n',
            "        from im_actors.core.messages import SessionImage\n\n"
            "        none = tuple(SessionImage(name, 0, ()) for name in lookup.sessions)\n"
            "        answer = answer._replace(images=answer.images or none)\n",
        ),
    ),
    mutant(
        "old-key-not-found-is-another",
        "5.4, I9: a used key that the tables cannot find yet is unknown, not a conflict",
        Edit(
            REPLICA,
            "        if self._tables_ready(request.slot, request.floor_lsn):\n"
            "            self._effects.append(SendKey(peer, request))",
            "        if True:\n            self._effects.append(SendKey(peer, request))",
        ),
        Edit(
            OWNER,
            "            self._effects.append(\n"
            "                Alarm(\n"
            '                    self.slot, f"no event for the used key {send.session!r}'
            ' {send.device} {send.n}"\n'
            "                )\n"
            "            )\n"
            "            # Unknown is never taken for absent: nobody is told that the key was"
            " free.\n"
            "            self._effects.append(Answered([refused(send.token, Unknown.code)]))\n",
            "            self._effects.append(Answered([refused(send.token, KeyConflict.code)]))\n",
        ),
        faults=("stray=1", "slow_apply=1", "crash_shard", "needless_take"),
    ),
    mutant(
        "key-looked-for-too-early",
        "5.4: a used key is looked for in tables that have applied its session's last record",
        Edit(OWNER, "floor_lsn = max(self._floor_lsn, last_lsn)", "floor_lsn = self._floor_lsn"),
    ),
    mutant(
        "evicts-the-uncommitted",
        "5.4: a session with uncommitted events is not forgotten",
        Edit(SERVING, _SETTLED, "settled = state.last_lsn <= applied_lsn"),
        Edit(
            SERVING,
            "            expected[name] += 1\n",
            "            expected[name] = expected.get(name, event.seq - 1) + 1\n",
        ),
    ),
    mutant(
        "evicts-before-it-is-applied",
        "5.4: a session is forgotten only when the tables hold all of it",
        Edit(SERVING, _SETTLED, "settled = state.committed_seq == state.last_seq"),
        Edit(OWNER, _RAISE_FLOOR, ""),
    ),
    mutant(
        "floor-not-raised",
        "5.4: a forgotten session is loaded from tables that have what it was forgotten with",
        Edit(OWNER, _RAISE_FLOOR, ""),
        known=68,
        faults=("slow_apply", "stuck_disk", "delay"),
    ),
    mutant(
        "evicts-while-loading",
        "5.4: a session whose state is being loaded is not forgotten",
        Edit(SERVING, "if settled and idle and name not in busy:", "if settled and idle:"),
        # The answer has to be later than history, a word of it, and the look at idle sessions.
        by="exhaustive quick-forgetting",
    ),
    mutant(
        "hole-in-the-journal",
        "5.3.3, 5.6: a record that is missing in the journal is not the end of the log",
        Edit(
            REPLICA,
            "            raise CorruptData(\n"
            '                f"slot {slot}: the journal has lsn {head.lsn} where {last + 1} has to'
            ' follow"\n'
            "            )\n",
            "            break\n",
        ),
        Edit(REPLICA, "if meta is not None and last < log.held[-1][1]:", "if False:"),
        faults=("flip_journal", "slow_apply", "stuck_disk", "crash_replica"),
    ),
    mutant(
        "disk-unchecked",
        "5.3.3, 5.6: checksums are checked at the start, before anything is used",
        Edit(SIM_DISK, "        if self.damaged:\n            self.check()\n", ""),
        faults=("flip_journal", "flip_history", "crash_replica"),
    ),
)
