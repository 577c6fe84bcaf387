"""Design 5.3: changing the view."""

from tests.sim.mutants.modules import (
    OWNER,
    REPLICA,
    SERVING,
    SIM_REPLICA,
    SIM_STORE,
    TAKEOVER,
)
from tests.sim.mutation import Edit, mutant

_FRESH = "fresh = view.owner != self.me or view.epoch != self._lineage"
_UNKNOWN = """\
            # Unknown is not failed: read until it is known which of the two it was.
            self._read_view()
            return
"""

# Nothing is appended but what a member lacks; what follows comes after a record of a former epoch.
_NO_EPOCH_START = (
    Edit(
        OWNER,
        "        records = [*lacking, attempt.opening]\n",
        "        records = lacking if plan.last_lsn else [attempt.opening]\n"
        "        if not records:\n"
        "            last = (from_lsn - 1, epoch_at(plan.epochs, from_lsn - 1))\n"
        "            told = Append(self.slot, self.epoch, *last, plan.commit_lsn, ())\n"
        "            self._effects.append(ToReplica(member, told))\n"
        "            return\n",
    ),
    Edit(
        OWNER,
        "epoch_start(self.slot, plan.last_lsn + 1, self.epoch, key)",
        "epoch_start(self.slot, plan.last_lsn or 1, self.epoch, key)",
    ),
    Edit(
        OWNER,
        "        self._lineage = 0\n        self._promised_max = 0\n",
        "        self._lineage = 0\n        self._promised_max = 0\n"
        "        self._kept_lsn, self._kept_epochs = 0, ()\n",
    ),
    Edit(
        OWNER,
        "        self.last_lsn = self.commit_lsn = opening.lsn\n",
        "        self.last_lsn = self.commit_lsn = opening.lsn\n"
        "        self._kept_lsn = plan.last_lsn\n"
        "        self._kept_epochs = plan.epochs\n",
    ),
    Edit(
        OWNER,
        "fields = (self.slot, epoch, record.lsn - 1, epoch, self.commit_lsn, (record,))",
        "fields = (self.slot, epoch, record.lsn - 1, self._epoch_of(record.lsn - 1),"
        " self.commit_lsn, (record,))",
    ),
    Edit(
        OWNER,
        "Append(self.slot, self.epoch, lsn, self.epoch, lsn, ())",
        "Append(self.slot, self.epoch, lsn, self._epoch_of(lsn), lsn, ())",
    ),
    Edit(
        OWNER,
        "self._append(member, records, self.epoch, self.commit_lsn)",
        "self._append(member, records, self._epoch_of(records[0].lsn - 1), self.commit_lsn)",
    ),
    Edit(
        OWNER,
        "    def _note(self, text: str) -> None:\n",
        "    def _epoch_of(self, lsn: int) -> int:\n"
        "        kept = lsn <= self._kept_lsn\n"
        "        return epoch_at(self._kept_epochs, lsn) if kept else self.epoch\n\n"
        "    def _note(self, text: str) -> None:\n",
    ),
)

TAKEOVERS = (
    mutant(
        "promise-in-memory",
        "5.3.2, 5.6: a promise is on disk before the seal is answered",
        Edit(
            REPLICA,
            "            log.backfill_busy = False\n"
            "            self._store_meta(request.slot, log)\n",
            "            log.backfill_busy = False\n",
        ),
    ),
    mutant(
        "unknown-slots-unsealed",
        "5.3.2, 5.6: a slot that was never seen is sealed too",
        Edit(
            REPLICA,
            "        self.logs[request.slot] = log\n        if not again:",
            "        if request.slot in self.logs and not again:",
        ),
        Edit(
            REPLICA,
            "        self._refuse(peer, request, promised, reason)\n        return None",
            "        if log is None:\n"
            "            self.logs[request.slot] = promised\n"
            "            promised.promised = request.epoch\n"
            "            return promised\n"
            "        self._refuse(peer, request, promised, reason)\n"
            "        return None",
        ),
        known=41,
    ),
    mutant(
        "seal-of-lower-epoch",
        "5.3.2, I8: a replica promises only an epoch above the one that it has promised",
        Edit(
            REPLICA,
            "if request.epoch <= log.promised and not again:",
            "if request.epoch == log.promised and not again:",
        ),
    ),
    mutant(
        "seal-of-two-owners",
        "5.3.2, I2: one epoch is promised to one owner",
        Edit(
            REPLICA,
            "again = request.epoch == log.promised and request.view.owner == log.owner",
            "again = request.epoch == log.promised",
        ),
        faults=("roll_back", "needless_take", "crash_shard"),
    ),
    mutant(
        "measure-before-promising",
        "5.3.2: promise and measurement are one step: nothing is written in between",
        Edit(
            REPLICA,
            "            log.promised, log.owner, log.view = request.epoch, request.view.owner,"
            " request.view\n"
            "            log.backfill_busy = False\n"
            "            self._store_meta(request.slot, log)\n",
            "            log.backfill_busy = False\n",
        ),
        Edit(
            REPLICA,
            "        log = self.logs.get(request.slot)\n"
            "        if log is not None and log.promised == request.epoch:\n",
            "        log = self.logs.get(request.slot)\n"
            "        preparing = isinstance(request, Prepare | Fetch)\n"
            "        if log is not None and log.promised < request.epoch and preparing:\n"
            "            log.promised = request.epoch\n"
            "            self._store_meta(request.slot, log)\n"
            "        if log is not None and log.promised == request.epoch:\n",
        ),
    ),
    mutant(
        "members-before-the-tail",
        "5.3.1, 5.6: a claim leaves the members as they are until the tail is on the new ones",
        Edit(
            OWNER,
            "        claim = View(self.slot, view.epoch + 1, ViewState.RECOVERING, self.me,"
            " view.members)\n",
            "        up = [m for m in view.members if m in self._up]\n"
            "        able = [s for s in self._spares(view.members) if s in self._up]\n"
            "        members = tuple(fill_up(up, able, self._replicas))\n"
            "        members = members if len(members) == COPIES else view.members\n"
            "        claim = View(self.slot, view.epoch + 1, ViewState.RECOVERING, self.me,"
            " members)\n",
        ),
    ),
    mutant(
        "silence-is-empty",
        "5.3.3, I9: a member that does not answer is unknown, never empty",
        Edit(
            OWNER,
            "        usable = [member for member in view.members if member in attempt.sealed]\n"
            "        patient = self._now_ms < attempt.spares_due_ms\n",
            "        patient = self._now_ms < attempt.spares_due_ms\n"
            "        for silent in view.members if not patient else ():\n"
            "            nothing = Sealed(self.slot, self.epoch, 0, (), 0, 1, 0, True)\n"
            "            attempt.sealed.setdefault(silent, nothing)\n"
            "        usable = [member for member in view.members if member in attempt.sealed]\n",
        ),
    ),
    mutant(
        "any-disk-under-the-name",
        "5.2.3, 5.3.3: a replica that came back with another disk is another member",
        Edit(SIM_REPLICA, "if disk is None or disk == self.disk.identity:", "if True:"),
        Edit(
            SIM_REPLICA,
            "return Member(self.name, self.disk.identity)",
            'return Member(self.name, f"{self.name}-disk0")',
        ),
        Edit(
            SIM_REPLICA,
            "ReplicaAddress(self.name, self.disk.identity,",
            'ReplicaAddress(self.name, f"{self.name}-disk0",',
        ),
        Edit(
            "tests.sim.shards",
            "same = replica.running and replica.disk.identity == known.disk",
            "same = replica.running",
        ),
    ),
    mutant(
        "cut-to-the-commit-point",
        "5.3.5, 5.6: a member's log is cut to the common prefix, not to the commit point",
        Edit(
            TAKEOVER,
            "keep = common_prefix(mine.epochs, mine.last_lsn, best.epochs, best.last_lsn)",
            "keep = min(commit_lsn, mine.last_lsn)",
        ),
    ),
    mutant(
        "tail-not-cut",
        "5.3.5: a member's own tail is cut back to the common prefix",
        Edit(
            REPLICA,
            "        if keep_lsn < log.last_lsn:\n            self._cut(slot, log, keep_lsn)\n",
            "",
        ),
    ),
    mutant(
        "own-epoch-is-cut",
        "5.3.5: a replica that holds a record of this epoch refuses to be cut",
        Edit(REPLICA, "if log.epochs and log.epochs[-1][0] == epoch:", "if False:"),
        faults=("duplicate", "delay", "reorder", "needless_take", "crash_shard"),
    ),
    mutant(
        "spare-without-the-tail",
        "5.3.5: a spare gets the uncommitted tail",
        Edit(TAKEOVER, "        start = commit_lsn + 1\n", "        start = best.last_lsn + 1\n"),
    ),
    mutant(
        "opens-before-prepared",
        "5.3.5: nothing is appended before every member is at the kept log",
        Edit(OWNER, "if complete and attempt.prepared >= set(plan.members):", "if complete:"),
        faults=("drop=0.3", "needless_take", "crash_replica"),
    ),
    mutant(
        "tail-unchecked",
        "5.3.5: what is copied is checked before it is used",
        Edit(OWNER, "            and record_intact(self.slot, record)\n", ""),
        faults=("bad_read", "crash_replica", "crash_shard", "partition"),
    ),
    mutant(
        "epoch-start-on-two",
        "5.3.6: the EpochStart is durable on all three before the view is ACTIVE",
        Edit(
            OWNER,
            "if all(state.durable_lsn >= attempt.opening.lsn for state in self.members.values()):",
            "there = [s.durable_lsn >= attempt.opening.lsn for s in self.members.values()]\n"
            "        if sum(there) >= 2:",
        ),
    ),
    mutant(
        "no-epoch-start",
        "5.3.6: an epoch begins with a record of its own",
        *_NO_EPOCH_START,
        # I2 states the rule itself; judged by copies, the damage has to show.
        by="exhaustive quick-takeover --judge copies --crashes 0",
    ),
    mutant(
        "acks-of-former-epochs",
        "5.3.8: acks of former epochs count for nothing",
        # Seals measure after the last such ack, and the longest log of the newest epoch is kept: so
        # the ack has to be of a member that left and came back, two takeovers late.
        Edit(OWNER, "if state is None or answer.epoch != self.epoch:", "if state is None:"),
        by="exhaustive quick-late-acks",
    ),
    mutant(
        "active-without-the-swap",
        "5.3.7: the slot is served when the view is known to be ACTIVE",
        Edit(
            OWNER,
            "            self._effects.append(SwapView(old, new))\n\n    def _activated",
            "            self._effects.append(SwapView(old, new))\n"
            "            self._activated(attempt, new)\n\n    def _activated",
        ),
    ),
    mutant(
        "unknown-swap-is-won",
        "5.3.7, 5.6: the outcome of a swap without an answer is read until it is known",
        Edit(
            OWNER,
            _UNKNOWN,
            "            assert self.attempt is not None\n"
            "            view = self._swap_of(self.attempt)[1]\n",
        ),
        known=75,
    ),
    mutant(
        "lost-swap-is-won",
        "5.3.7: a swap that was lost ends the attempt",
        Edit(OWNER, "        elif view != new:\n            self._view_lost(view)\n", ""),
    ),
    mutant(
        "swap-compares-the-epoch",
        "5.1: the swap compares the whole record, not the epoch alone",
        Edit(
            SIM_STORE,
            "if self.views[old.slot] == old:",
            "if self.views[old.slot].epoch == old.epoch:",
        ),
        known=49,
    ),
    mutant(
        "claim-passes-for-knowledge",
        "5.3.8: an unfinished takeover's claim does not mean that the counters are known",
        Edit(OWNER, _FRESH, "fresh = view.owner != self.me"),
    ),
    mutant(
        "reopened-in-another-order",
        "5.3.8: a live owner proposes its pending events again in their order",
        Edit(
            SERVING,
            "self.open.extendleft(reversed(flight.events))",
            "self.open.extend(flight.events)",
        ),
        # An owner that cannot reach its members has open events, and takes its slot again.
        faults=("partition", "one_way", "needless_take", "crash_replica"),
    ),
    mutant(
        "kept-by-lsn-alone",
        "5.3.8: a live owner's record is in the kept log only when its epoch is there too",
        Edit(
            SERVING,
            "if record.lsn > last_lsn or epochs_at(record.lsn) != record.epoch:",
            "if record.lsn > last_lsn:",
        ),
        by="exhaustive quick-live-owner",
    ),
    mutant(
        "open-events-after-a-later-key",
        "5.3.8: the EpochStart of a live owner takes no key above those of its open events",
        Edit(OWNER, "if attempt.fresh or not key:", "if True:"),
    ),
    mutant(
        "higher-epoch-ignored",
        "5.3: an owner that hears of a higher epoch steps down",
        Edit(
            OWNER,
            "            if self.phase is Phase.SERVING:\n"
            '                self._step_down(f"{member.replica} has promised epoch'
            ' {answer.promised}")\n'
            "            elif",
            "            if",
        ),
        Edit(OWNER, "if newer and self.phase is Phase.SERVING:", "if False:"),
        faults=("pause_shard", "partition", "needless_take"),
    ),
    mutant(
        "roll-back-unnoticed",
        "5.1: a view store that offers an epoch below a promise was rolled back: stop",
        Edit(
            OWNER,
            "            elif view.epoch < self._promised_max:\n"
            "                self._view_is_older(view)\n",
            "",
        ),
        faults=("roll_back", "needless_take", "crash_shard"),
    ),
    mutant(
        "late-read-is-a-roll-back",
        "5.1: the late answer to an earlier read is not a roll-back",
        Edit(
            OWNER,
            "        if view.epoch >= self._read_knowing:\n"
            "            self._read_view()\n"
            "            return\n",
            "",
        ),
        by="exhaustive quick-view-store",
    ),
    mutant(
        "silent-member-stays",
        "5.3: a member that is up and does not answer is replaced",
        Edit(OWNER, "                since = state.silent_since_ms\n", "                pass\n"),
        faults=("dead_disk",),
    ),
)
