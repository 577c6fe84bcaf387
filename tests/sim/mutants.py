"""The safety rules of design section 5, each with the sources in which it is missing.

Read it as a list of what must not be forgotten: ``python -m tests.sim --mutants`` shows that every
one of these rules matters, because without it the simulation, the exhaustive check or a directed
test finds something broken.
"""

from __future__ import annotations

from tests.sim.mutation import Edit, Mutant

OWNER = "im_actors.core.owner"
REPLICA = "im_actors.core.replica"
SERVING = "im_actors.core.serving"
SESSIONS = "im_actors.core.sessions"
TAKEOVER = "im_actors.core.takeover"
REPLICAS = "tests.sim.replicas"
STORE = "tests.sim.store"
DISKS = "tests.sim.disks"
"""The shells of the simulation: what they owe to the machines is a rule too."""


# -- 5.2: writing ----------------------------------------------------------------------------------

WRITING = (
    Mutant(
        "commit-at-two",
        "5.2.4: a record is committed when all three members have it, not when two have",
        (
            Edit(
                OWNER,
                "durable = min(state.durable_lsn for state in self.members.values())",
                "durable = sorted(state.durable_lsn for state in self.members.values())[1]",
            ),
        ),
    ),
    Mutant(
        "commit-at-one",
        "5.2.4: the commit point is the lowest durable lsn of the three, not the highest",
        (
            Edit(
                OWNER,
                "durable = min(state.durable_lsn for state in self.members.values())",
                "durable = max(state.durable_lsn for state in self.members.values())",
            ),
        ),
    ),
    Mutant(
        "answer-before-fsync",
        "5.2.3, 5.6: an answer leaves a replica when what was stored before it is on disk",
        (
            Edit(
                NODES,
                "        self.queue.append((ops, rest))\n",
                "        self.carry_out(rest)\n        self.queue.append((ops, []))\n",
            ),
        ),
    ),
    Mutant(
        "append-of-lower-epoch",
        "5.2.3: a replica refuses an append of an epoch below the one that it has promised",
        (
            Edit(
                REPLICA,
                "        if log is not None and log.promised == request.epoch:\n",
                "        if log is not None and log.promised >= request.epoch:\n",
            ),
        ),
    ),
    Mutant(
        "append-of-higher-epoch",
        "5.2.3: a replica asks to be sealed before it takes an append of a higher epoch",
        (
            Edit(
                REPLICA,
                "        if log is not None and log.promised == request.epoch:\n",
                "        if log is not None and log.promised <= request.epoch:\n",
            ),
        ),
    ),
    Mutant(
        "append-without-prev-lsn",
        "5.2.3: an append that does not join the log is answered with NEED",
        (
            Edit(
                REPLICA,
                "        if prev_lsn > log.last_lsn or prev_lsn < log.from_lsn - 1:\n",
                "        if prev_lsn < log.from_lsn - 1:\n",
            ),
        ),
    ),
    Mutant(
        "append-below-from-lsn",
        "5.2.3, I4: an append that begins below from_lsn does not join the log",
        (
            Edit(
                REPLICA,
                "        if prev_lsn > log.last_lsn or prev_lsn < log.from_lsn - 1:\n",
                "        if prev_lsn > log.last_lsn:\n",
            ),
        ),
    ),
    Mutant(
        "append-without-prev-epoch",
        "5.2.3: an append joins only when the record before it is of the same epoch",
        (
            Edit(
                REPLICA,
                "        if epoch_at(log.epochs, prev_lsn) != prev_epoch:\n",
                "        if False:\n",
            ),
        ),
    ),
    Mutant(
        "append-without-comparing",
        "5.2.3: a different record under the same (lsn, epoch) is an alarm",
        (
            Edit(
                REPLICA,
                "            if not same_epoch or known not in (None, record.checksum):\n",
                "            if False:\n",
            ),
        ),
    ),
    Mutant(
        "append-without-checksum",
        "5.2.3: a record is checked before it is stored",
        (
            Edit(
                REPLICA,
                "            if not fits or not record_intact(slot, record):\n",
                "            if not fits:\n",
            ),
        ),
    ),
    Mutant(
        "commit-point-beyond-the-match",
        "5.2.5: a replica believes a commit point only up to where its log matches the sender's",
        (
            Edit(
                REPLICA,
                "        self._raise_commit(slot, log, min(commit_lsn, prev_lsn + len(records)))\n",
                "        self._raise_commit(slot, log, commit_lsn)\n",
            ),
        ),
    ),
    Mutant(
        "everything-is-committed",
        "5.2.5: replicas apply to history up to the commit point, never beyond",
        (
            Edit(
                REPLICA,
                "        self._raise_commit(slot, log, min(commit_lsn, prev_lsn + len(records)))\n",
                "        self._raise_commit(slot, log, prev_lsn + len(records))\n",
            ),
        ),
    ),
    Mutant(
        "acks-of-former-epochs",
        "5.3.8: acks of former epochs count for nothing",
        (
            Edit(
                OWNER,
                "        if state is None or answer.epoch != self.epoch:\n",
                "        if state is None:\n",
            ),
        ),
    ),
    Mutant(
        "pending-duplicate-is-done",
        "5.2.1, 5.6: a duplicate of a pending message waits for the commit like the first one",
        (
            Edit(
                SERVING,
                "            if pending is not None:\n",
                "            if False:\n",
            ),
        ),
    ),
    Mutant(
        "publish-before-commit",
        "5.2.4, I7: nothing above the commit point is pushed",
        (
            Edit(
                OWNER,
                "            self.last_lsn = record.lsn\n            message",
                "            self.last_lsn = record.lsn\n"
                "            events = self.serving.flights[-1].events\n"
                "            self._effects.append(Published(self.slot, list(events)))\n"
                "            message",
            ),
        ),
    ),
    Mutant(
        "heads-above-commit",
        "5.2.6, I7: the head that is told is the last committed seq",
        (
            Edit(
                OWNER,
                "        return self.serving.sessions[session].committed_seq\n",
                "        return self.serving.sessions[session].last_seq\n",
            ),
        ),
    ),
    Mutant(
        "gap-in-n",
        "5.2.1, I6: a send that leaves a gap in its device's n is OUT_OF_ORDER",
        (
            Edit(
                SESSIONS,
                "            if n != 1:\n",
                "            if n < 1:\n",
            ),
            Edit(
                SESSIONS,
                "        if n == state.last_n + 1:\n",
                "        if n > state.last_n:\n",
            ),
            Edit(
                SESSIONS,
                '        assert n == self.last_n + 1 or not self.recent, f"n {n} follows'
                ' {self.last_n}"\n',
                "",
            ),
        ),
    ),
    Mutant(
        "another-body-under-a-key",
        "5.2.1: another message under a used key is KEY_CONFLICT",
        (
            Edit(
                SESSIONS,
                "        if checksum != known_checksum and kind != EventKind.VOID:\n",
                "        if False:\n",
            ),
        ),
    ),
    Mutant(
        "device-overruns-its-window",
        "5.4: a device's uncommitted sends stay within what the dedup state remembers",
        (
            Edit(
                SESSIONS,
                "            if len(recent) == DEVICE_WINDOW and recent[0][0] >"
                " self.committed_seq:\n",
                "            if False:\n",
            ),
        ),
    ),
    Mutant(
        "keys-start-anew",
        "6: message keys go on above the last one of the log",
        (
            Edit(
                OWNER,
                "        key = record_keys(attempt.tail[-1].payload)[1] if attempt.tail else 0\n",
                "        key = 0\n",
            ),
        ),
    ),
    Mutant(
        "keys-of-one-clock",
        "6: a message key is above the slot's last one, also when the clock goes back",
        (
            Edit(
                SERVING,
                "            self.last_key = key = next_key(self.last_key, now_ms, self.slot)\n",
                "            self.last_key = key = next_key(0, now_ms, self.slot)\n",
            ),
        ),
    ),
)


# -- 5.3: changing the view ------------------------------------------------------------------------

TAKEOVERS = (
    Mutant(
        "promise-in-memory",
        "5.3.2, 5.6: a promise is on disk before the seal is answered",
        (
            Edit(
                REPLICA,
                "            log.backfill_busy = False\n"
                "            self._store_meta(request.slot, log)\n",
                "            log.backfill_busy = False\n",
            ),
        ),
    ),
    Mutant(
        "unknown-slots-unsealed",
        "5.3.2, 5.6: a slot that was never seen is sealed too",
        (
            Edit(
                REPLICA,
                "        self.logs[request.slot] = log\n        if not again:\n",
                "        if request.slot in self.logs and not again:\n",
            ),
            Edit(
                REPLICA,
                "        self._refuse(peer, request, promised, reason)\n        return None\n",
                "        if log is None:\n"
                "            self.logs[request.slot] = promised\n"
                "            promised.promised = request.epoch\n"
                "            return promised\n"
                "        self._refuse(peer, request, promised, reason)\n"
                "        return None\n",
            ),
        ),
    ),
    Mutant(
        "seal-of-lower-epoch",
        "5.3.2, I8: a replica promises only an epoch above the one that it has promised",
        (
            Edit(
                REPLICA,
                "        if request.epoch <= log.promised and not again:\n",
                "        if request.epoch == log.promised and not again:\n",
            ),
        ),
    ),
    Mutant(
        "seal-of-two-owners",
        "5.3.2, I2: one epoch is promised to one owner",
        (
            Edit(
                REPLICA,
                "        again = request.epoch == log.promised and request.view.owner =="
                " log.owner\n",
                "        again = request.epoch == log.promised\n",
            ),
        ),
    ),
    Mutant(
        "measure-before-promising",
        "5.3.2: promise and measurement are one step: nothing is written in between",
        (
            Edit(
                REPLICA,
                "            log.promised, log.owner, log.view = request.epoch,"
                " request.view.owner, request.view\n"
                "            log.backfill_busy = False\n"
                "            self._store_meta(request.slot, log)\n",
                "            log.backfill_busy = False\n",
            ),
            Edit(
                REPLICA,
                "        log = self.logs.get(request.slot)\n"
                "        if log is not None and log.promised == request.epoch:\n"
                "            return log\n",
                "        log = self.logs.get(request.slot)\n"
                "        preparing = isinstance(request, Prepare | Fetch)\n"
                "        if log is not None and log.promised < request.epoch and preparing:\n"
                "            log.promised = request.epoch\n"
                "            self._store_meta(request.slot, log)\n"
                "        if log is not None and log.promised == request.epoch:\n"
                "            return log\n",
            ),
        ),
    ),
    Mutant(
        "members-before-the-tail",
        "5.3.1, 5.6: a claim leaves the members as they are until the tail is on the new ones",
        (
            Edit(
                OWNER,
                "        claim = View(self.slot, view.epoch + 1, ViewState.RECOVERING, self.me,"
                " view.members)\n",
                "        up = [m for m in view.members if m in self._up]\n"
                "        able = [s for s in self._spares(view.members) if s in self._up]\n"
                "        members = tuple(fill_up(up, able, self._replicas))\n"
                "        if len(members) < COPIES:\n"
                "            members = view.members\n"
                "        claim = View(self.slot, view.epoch + 1, ViewState.RECOVERING, self.me,"
                " members)\n",
            ),
        ),
    ),
    Mutant(
        "silence-is-empty",
        "5.3.3, I9: a member that does not answer is unknown, never empty",
        (
            Edit(
                OWNER,
                "        usable = [member for member in view.members if member in"
                " attempt.sealed]\n"
                "        patient = self._now_ms < attempt.spares_due_ms\n",
                "        patient = self._now_ms < attempt.spares_due_ms\n"
                "        for silent in view.members if not patient else ():\n"
                "            nothing = Sealed(self.slot, self.epoch, 0, (), 0, 1, 0, True)\n"
                "            attempt.sealed.setdefault(silent, nothing)\n"
                "        usable = [member for member in view.members if member in"
                " attempt.sealed]\n",
            ),
        ),
    ),
    Mutant(
        "any-disk-under-the-name",
        "5.2.3, 5.3.3: a replica that came back with another disk is another member",
        (
            Edit(
                NODES,
                "        if self.machine is not None and disk == self.disk.identity:\n",
                "        if self.machine is not None:\n",
            ),
            Edit(
                NODES,
                "        return Member(self.name, self.disk.identity)\n",
                '        return Member(self.name, f"{self.name}-disk0")\n',
            ),
        ),
    ),
    Mutant(
        "longest-log",
        "5.3.4, 5.6: the log to keep is that of the highest epoch, not the longest",
        (
            Edit(
                TAKEOVER,
                "    return epoch_at(answer.epochs, answer.last_lsn), answer.last_lsn\n",
                "    return answer.last_lsn, 0\n",
            ),
        ),
    ),
    Mutant(
        "any-log-of-the-epoch",
        "5.3.4: of two logs of one epoch the longer one is kept",
        (
            Edit(
                TAKEOVER,
                "    return epoch_at(answer.epochs, answer.last_lsn), answer.last_lsn\n",
                "    return epoch_at(answer.epochs, answer.last_lsn), -answer.last_lsn\n",
            ),
        ),
    ),
    Mutant(
        "logs-of-spares-count",
        "5.3.4: only members of the view are asked for the log to keep",
        (
            Edit(
                TAKEOVER,
                "    best = choose_log({m: usable[m] for m in view.members if m in usable})\n",
                "    best = choose_log(usable)\n",
            ),
        ),
    ),
    Mutant(
        "kept-log-below-a-commit-point",
        "5.3.4: the kept log reaches every commit point that was reported",
        (
            Edit(
                TAKEOVER,
                "    if commit_lsn > last_lsn:\n",
                "    if False:\n",
            ),
        ),
    ),
    Mutant(
        "cut-below-the-commit-point",
        "5.3.5, I3: a replica never cuts its log below its commit point",
        (
            Edit(
                REPLICA,
                "        if keep_lsn < max(log.commit_lsn, log.from_lsn - 1):\n",
                "        if keep_lsn < log.from_lsn - 1:\n",
            ),
        ),
    ),
    Mutant(
        "cut-to-the-commit-point",
        "5.3.5, 5.6: a member's log is cut to the common prefix, not to its own commit point",
        (
            Edit(
                TAKEOVER,
                "    keep = common_prefix(mine.epochs, mine.last_lsn, best.epochs,"
                " best.last_lsn)\n",
                "    keep = min(commit_lsn, mine.last_lsn)\n",
            ),
        ),
    ),
    Mutant(
        "tail-not-cut",
        "5.3.5: a member's own tail is cut back to the common prefix",
        (
            Edit(
                REPLICA,
                "        if keep_lsn < log.last_lsn:\n            self._cut(slot, log, keep_lsn)\n",
                "",
            ),
        ),
    ),
    Mutant(
        "own-epoch-is-cut",
        "5.3.5: a replica that holds a record of this epoch refuses to be cut",
        (
            Edit(
                REPLICA,
                "        if log.epochs and log.epochs[-1][0] == epoch:\n",
                "        if False:\n",
            ),
        ),
    ),
    Mutant(
        "spare-without-the-tail",
        "5.3.5: a spare gets the uncommitted tail",
        (
            Edit(
                TAKEOVER,
                "        start = commit_lsn + 1\n",
                "        start = best.last_lsn + 1\n",
            ),
        ),
    ),
    Mutant(
        "opens-before-prepared",
        "5.3.5: nothing is appended before every member is at the kept log",
        (
            Edit(
                OWNER,
                "        if complete and attempt.prepared >= set(plan.members):\n",
                "        if complete:\n",
            ),
        ),
    ),
    Mutant(
        "tail-unchecked",
        "5.3.5: what is copied is checked before it is used",
        (
            Edit(
                OWNER,
                "            and record_intact(self.slot, record)\n",
                "",
            ),
        ),
    ),
    Mutant(
        "epoch-start-on-two",
        "5.3.6: the EpochStart is durable on all three before the view is ACTIVE",
        (
            Edit(
                OWNER,
                "        if all(state.durable_lsn >= attempt.opening.lsn for state in"
                " self.members.values()):\n",
                "        there = [state.durable_lsn >= attempt.opening.lsn for state in"
                " self.members.values()]\n"
                "        if sum(there) >= 2:\n",
            ),
        ),
    ),
    Mutant(
        "no-epoch-start",
        "5.3.6: an epoch begins with a record of its own",
        (
            Edit(
                OWNER,
                "        records = [*lacking, attempt.opening]\n",
                "        records = lacking\n"
                "        if not records:\n"
                "            prev = from_lsn - 1\n"
                "            prev_epoch = epoch_at(plan.epochs, prev)\n"
                "            message = Append(self.slot, self.epoch, prev, prev_epoch,"
                " plan.commit_lsn, ())\n"
                "            self._effects.append(ToReplica(member, message))\n"
                "            return\n",
            ),
            Edit(
                OWNER,
                "        attempt.opening = epoch_start(self.slot, plan.last_lsn + 1, self.epoch,"
                " key)\n",
                "        attempt.opening = epoch_start(self.slot, plan.last_lsn, self.epoch,"
                " key)\n",
            ),
        ),
    ),
    Mutant(
        "active-without-the-swap",
        "5.3.7: the slot is served when the view is known to be ACTIVE",
        (
            Edit(
                OWNER,
                "            self._effects.append(SwapView(old, new))\n\n    def _activated",
                "            self._effects.append(SwapView(old, new))\n"
                "            self._activated(attempt, new)\n\n    def _activated",
            ),
        ),
    ),
    Mutant(
        "unknown-swap-is-won",
        "5.3.7, 5.6: the outcome of a swap without an answer is read until it is known",
        (
            Edit(
                OWNER,
                "            # Unknown is not failed: read until it is known which of the two it"
                " was.\n"
                "            self._read_view()\n"
                "            return\n",
                "            assert self.attempt is not None\n"
                "            view = self._swap_of(self.attempt)[1]\n",
            ),
        ),
    ),
    Mutant(
        "unknown-swap-is-lost",
        "5.3.7, 5.6: a swap without an answer is not taken as failed",
        (
            Edit(
                OWNER,
                "            # Unknown is not failed: read until it is known which of the two it"
                " was.\n"
                "            self._read_view()\n"
                "            return\n",
                '            self._retry("no answer from the view store")\n            return\n',
            ),
        ),
    ),
    Mutant(
        "swap-compares-the-epoch",
        "5.1: the swap compares the whole record, not the epoch alone",
        (
            Edit(
                NODES,
                "            if self.views[old.slot] == old:\n",
                "            if self.views[old.slot].epoch == old.epoch:\n",
            ),
        ),
    ),
    Mutant(
        "lost-swap-keeps-state",
        "5.3.7: who lost the view drops everything that it knew",
        (
            Edit(
                OWNER,
                "        if view.owner != self.me:\n            self._forget_state()\n",
                "",
            ),
        ),
    ),
    Mutant(
        "foreign-epoch-in-between",
        "5.3.8: pending events are kept only when no foreign epoch came in between",
        (
            Edit(
                OWNER,
                "        fresh = view.owner != self.me or view.epoch != self._lineage\n",
                "        fresh = not self._lineage\n",
            ),
        ),
    ),
    Mutant(
        "claim-passes-for-knowledge",
        "5.3.8: an unfinished takeover's claim does not mean that the counters are known",
        (
            Edit(
                OWNER,
                "        fresh = view.owner != self.me or view.epoch != self._lineage\n",
                "        fresh = view.owner != self.me\n",
            ),
        ),
    ),
    Mutant(
        "reopened-in-another-order",
        "5.3.8: a live owner proposes its pending events again in their order",
        (
            Edit(
                SERVING,
                "            self.open.extendleft(reversed(flight.events))\n",
                "            self.open.extend(flight.events)\n",
            ),
        ),
    ),
    Mutant(
        "kept-by-lsn-alone",
        "5.3.8: a live owner's record is in the kept log only when its epoch is there too",
        (
            Edit(
                SERVING,
                "            if record.lsn > last_lsn or epochs_at(record.lsn) != record.epoch:\n",
                "            if record.lsn > last_lsn:\n",
            ),
        ),
    ),
    Mutant(
        "open-events-after-a-later-key",
        "5.3.8: the EpochStart of a live owner takes no key above those of its open events",
        (
            Edit(
                OWNER,
                "        if attempt.fresh or not key:\n",
                "        if True:\n",
            ),
        ),
    ),
    Mutant(
        "higher-epoch-ignored",
        "5.3: an owner that hears of a higher epoch steps down",
        (
            Edit(
                OWNER,
                "            if self.phase is Phase.SERVING:\n"
                '                self._step_down(f"{member.replica} has promised epoch'
                ' {answer.promised}")\n'
                "            elif",
                "            if",
            ),
            Edit(
                OWNER,
                "        if newer and self.phase is Phase.SERVING:\n",
                "        if False:\n",
            ),
        ),
    ),
    Mutant(
        "roll-back-unnoticed",
        "5.1: a view store that offers an epoch below a promise was rolled back: stop",
        (
            Edit(
                OWNER,
                "            elif view.epoch < self._promised_max:\n"
                "                self._view_is_older(view)\n",
                "",
            ),
        ),
    ),
    Mutant(
        "late-read-is-a-roll-back",
        "5.1: the late answer to an earlier read is not a roll-back",
        (
            Edit(
                OWNER,
                "        if view.epoch >= self._read_knowing:\n            self._read_view()\n"
                "            return\n",
                "",
            ),
        ),
    ),
)


# -- 5.3: dropping and backfill --------------------------------------------------------------------

COPIES_OF_OLD = (
    Mutant(
        "drop-before-all-complete",
        "5.3: former members' data is deleted only when all three members have everything",
        (
            Edit(
                OWNER,
                "        if self._all_complete():\n            self._dropped_for",
                "        if True:\n            self._dropped_for",
            ),
        ),
    ),
    Mutant(
        "drop-forgets-the-promise",
        "5.3, I8: deleting never forgets the promise",
        (
            Edit(
                REPLICA,
                "        kept = SlotLog(promised=request.epoch, owner=request.view.owner,"
                " view=request.view)\n",
                "        kept = SlotLog()\n",
            ),
        ),
    ),
    Mutant(
        "late-drop",
        "5.3: a replica that has promised a higher epoch refuses a Drop",
        (
            Edit(
                REPLICA,
                "        if request.epoch < log.promised or any(m.disk == self.disk for m in"
                " request.view.members):\n",
                "        if any(m.disk == self.disk for m in request.view.members):\n",
            ),
        ),
    ),
    Mutant(
        "drop-at-a-member",
        "5.3: a member of the view refuses a Drop",
        (
            Edit(
                REPLICA,
                "        if request.epoch < log.promised or any(m.disk == self.disk for m in"
                " request.view.members):\n",
                "        if request.epoch < log.promised:\n",
            ),
        ),
    ),
    Mutant(
        "second-drop",
        "5.3: a second Drop waits for the deletion that is under way",
        (
            Edit(
                REPLICA,
                "        if log.dropping is not None:\n"
                "            return  # The first request's answer is coming; a second deletion"
                " could hit new data.\n",
                "",
            ),
        ),
    ),
    Mutant(
        "joins-while-dropping",
        "5.3: a slot is not prepared while its old data is being deleted",
        (
            Edit(
                REPLICA,
                "        if log.dropping is not None:\n"
                "            self._refuse(peer, request, log, \"the slot's old data is being"
                ' deleted")\n'
                "            return\n",
                "",
            ),
        ),
    ),
    Mutant(
        "applied-while-dropping",
        "5.3: what was applied before a deletion does not count after it",
        (
            Edit(
                REPLICA,
                "        if log.dropping is not None:\n"
                "            return  # Written before the deletion that is under way, and deleted"
                " by it.\n",
                "",
            ),
        ),
    ),
    Mutant(
        "hole-not-remembered",
        "5.1, 5.3.5: from_lsn covers only what is there without a hole",
        (
            Edit(
                REPLICA,
                "            log.held.append([start_lsn, start_lsn - 1])\n",
                "            log.held[-1][1] = start_lsn - 1\n",
            ),
        ),
    ),
    Mutant(
        "complete-before-the-hole-is-closed",
        "5.3: a log is complete when backfill has closed the whole hole",
        (
            Edit(
                REPLICA,
                "        if last_lsn + 1 == log.held[1][0]:\n",
                "        if True:\n",
            ),
        ),
    ),
    Mutant(
        "complete-before-drained",
        "5.3, 5.4: backfill waits until what lies below the hole is in the tables",
        (
            Edit(
                REPLICA,
                "            if log.complete or log.drain_lsn:\n",
                "            if log.complete:\n",
            ),
        ),
    ),
    Mutant(
        "second-hole-forgets-the-first-drain",
        "5.3, 5.4: a second hole keeps the mark up to which the first one is drained",
        (
            Edit(
                REPLICA,
                "            log.drain_lsn = max(log.drain_lsn, keep_lsn if log.applied_lsn <"
                " keep_lsn else 0)\n",
                "            log.drain_lsn = keep_lsn if log.applied_lsn < keep_lsn else 0\n",
            ),
        ),
    ),
    Mutant(
        "backfill-of-another-log",
        "5.3: backfilled records are of the epochs of this log",
        (
            Edit(
                REPLICA,
                "            fits = fits and epoch_at(log.epochs, record.lsn) == record.epoch\n",
                "",
            ),
        ),
    ),
    Mutant(
        "backfill-unchecked",
        "5.3: backfilled records are checked",
        (
            Edit(
                REPLICA,
                "            fits = fits and record.lsn == first + index and"
                " record_intact(answer.slot, record)\n",
                "            fits = fits and record.lsn == first + index\n",
            ),
        ),
    ),
    Mutant(
        "backfill-of-the-uncommitted",
        "5.3: backfill brings committed records only",
        (
            Edit(
                REPLICA,
                "            last = min(last, log.commit_lsn)\n",
                "            last = min(last, log.last_lsn)\n",
            ),
        ),
    ),
    Mutant(
        "backfill-while-storing",
        "5.3: an answer that is being stored is not asked for again",
        (
            Edit(
                REPLICA,
                "        if log.complete or log.held[0][1] + 1 != first_lsn:\n            return\n",
                "        if log.complete:\n            return\n",
            ),
        ),
    ),
)


# -- 5.4: what a new owner must know ---------------------------------------------------------------

KNOWLEDGE = (
    Mutant(
        "tail-not-replayed",
        "5.4: a new owner replays what the tables do not have yet",
        (
            Edit(
                OWNER,
                "            self.serving.replay(attempt.tail[skip:])\n",
                "            pass\n",
            ),
        ),
    ),
    Mutant(
        "tables-not-merged",
        "5.4: a session's state is that of the tables and of the replayed end",
        (
            Edit(
                SESSIONS,
                "            self.devices[device] = _joined(mine, last_n, recent)\n",
                "            self.devices.setdefault(device, mine or DeviceState())\n",
            ),
        ),
    ),
    Mutant(
        "tables-of-any-age",
        "5.4: a session's state comes from tables that have applied what was not replayed",
        (
            Edit(
                REPLICA,
                "        return log is not None and log.complete and log.applied_lsn >="
                " floor_lsn\n",
                "        return log is not None and log.complete\n",
            ),
        ),
    ),
    Mutant(
        "tables-with-a-hole",
        "5.4, I9: a session's state comes from a replica that has all of its history",
        (
            Edit(
                REPLICA,
                "        return log is not None and log.complete and log.applied_lsn >="
                " floor_lsn\n",
                "        return log is not None and log.applied_lsn >= floor_lsn\n",
            ),
            Edit(
                OWNER,
                "        ready = [m for m, state in self.members.items() if state.complete and m"
                " in self._up]\n",
                "        ready = [m for m, state in self.members.items() if m in self._up]\n",
            ),
        ),
    ),
    Mutant(
        "not-ready-is-absent",
        "5.4, I9: tables that are not ready say nothing about a session",
        (
            Edit(
                OWNER,
                "        if self.phase is not Phase.SERVING or answer.epoch != self.epoch or not"
                " answer.ready:\n",
                "        if self.phase is not Phase.SERVING or answer.epoch != self.epoch:\n",
            ),
            Edit(
                OWNER,
                '        assert len(answer.images) == len(lookup.sessions), "a session is missing'
                ' in the answer"\n'
                "        answers: list[Answer] = []\n"
                "        for image in answer.images:\n",
                "        answers: list[Answer] = []\n"
                "        from im_actors.core.messages import SessionImage\n\n"
                "        none = [SessionImage(name, 0, ()) for name in lookup.sessions]\n"
                "        for image in answer.images or none:\n",
            ),
        ),
    ),
    Mutant(
        "old-key-not-ready-is-free",
        "5.4, I9: a key that tables cannot find yet is not free",
        (
            Edit(
                REPLICA,
                "        if self._tables_ready(request.slot, request.floor_lsn):\n"
                "            self._effects.append(SendKey(peer, request))\n",
                "        if True:\n            self._effects.append(SendKey(peer, request))\n",
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
                "            self._effects.append(Answered([refused(send.token,"
                " Unknown.code)]))\n",
                "            self._effects.append(Answered([refused(send.token,"
                " KeyConflict.code)]))\n",
            ),
        ),
    ),
    Mutant(
        "key-looked-for-too-early",
        "5.4: a used key is looked for in tables that have applied its session's last record",
        (
            Edit(
                OWNER,
                "            floor_lsn = max(self._floor_lsn, last_lsn)\n",
                "            floor_lsn = self._floor_lsn\n",
            ),
        ),
    ),
    Mutant(
        "evicts-the-uncommitted",
        "5.4: a session with uncommitted events is not forgotten",
        (
            Edit(
                SERVING,
                "            settled = state.committed_seq == state.last_seq and state.last_lsn"
                " <= applied_lsn\n",
                "            settled = state.last_lsn <= applied_lsn\n",
            ),
        ),
    ),
    Mutant(
        "evicts-before-it-is-applied",
        "5.4: a session is forgotten only when the tables hold all of it",
        (
            Edit(
                SERVING,
                "            settled = state.committed_seq == state.last_seq and state.last_lsn"
                " <= applied_lsn\n",
                "            settled = state.committed_seq == state.last_seq\n",
            ),
            Edit(
                OWNER,
                "        self._floor_lsn = max(self._floor_lsn, floor)\n",
                "",
            ),
        ),
    ),
    Mutant(
        "floor-not-raised",
        "5.4: a forgotten session is loaded from tables that have what it was forgotten with",
        (
            Edit(
                OWNER,
                "        self._floor_lsn = max(self._floor_lsn, floor)\n",
                "",
            ),
        ),
    ),
    Mutant(
        "evicts-while-loading",
        "5.4: a session whose state is being loaded is not forgotten",
        (
            Edit(
                SERVING,
                "            if settled and idle and name not in busy:\n",
                "            if settled and idle:\n",
            ),
        ),
    ),
    Mutant(
        "restarted-member-not-told",
        "5.2.5: a member that restarted hears the commit point again",
        (
            Edit(
                OWNER,
                "            state.commit_lsn = 0\n",
                "",
            ),
        ),
    ),
    Mutant(
        "silent-member-stays",
        "5.3: a member that is up and does not answer is replaced",
        (
            Edit(
                OWNER,
                "                since = state.silent_since_ms\n",
                "                pass\n",
            ),
        ),
    ),
    Mutant(
        "hole-in-the-journal",
        "5.3.3, 5.6: a record that is missing in the journal is not the end of the log",
        (
            Edit(
                REPLICA,
                "        if head.lsn != last + 1:\n"
                "            raise CorruptData(\n"
                '                f"slot {slot}: the journal has lsn {head.lsn} where {last + 1}'
                ' has to follow"\n'
                "            )\n",
                "        if head.lsn != last + 1:\n            break\n",
            ),
            Edit(
                REPLICA,
                "    if meta is not None and last < log.held[-1][1]:\n",
                "    if False:\n",
            ),
        ),
    ),
    Mutant(
        "journal-unchecked",
        "5.3.3, 5.6: the journal's checksums are checked at the start",
        (
            Edit(
                NODES,
                "            if not all(record_intact(slot, record) for _, (record, _) in rows):\n",
                "            if False:\n",
            ),
        ),
    ),
)

MUTANTS = (*WRITING, *TAKEOVERS, *COPIES_OF_OLD, *KNOWLEDGE)


def find(name: str) -> Mutant:
    """The mutant of that name."""
    found = [mutant for mutant in MUTANTS if mutant.name == name]
    if not found:
        raise SystemExit(f"no mutant {name!r}; there are: {', '.join(m.name for m in MUTANTS)}")
    return found[0]
