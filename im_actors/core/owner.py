"""A slot's owner: the takeover (design 5.3) and the write path (design 5.2), one machine.

A crashed shard, a lost replica, a planned move, a scale-out: all of them are ``Take``, also when
the new owner is the old one. The phases of one attempt:

    IDLE ──Take──▶ READING ──view──▶ CLAIMING ──swapped──▶ SEALING ──usable──▶ COPYING
      ▲                                                                          │ tail copied
      └── somebody else's ── (any) ── fails ──▶ WAITING ──▶ READING …            ▼
                                            SERVING ◀──swapped── ACTIVATING ◀── OPENING

One attempt, one epoch: whatever has to be chosen again is chosen in a new attempt.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from im_actors.core.epochs import epoch_at
from im_actors.core.fact_lists import FACT_KEYS_MAX
from im_actors.core.facts import Fact
from im_actors.core.messages import (
    Append,
    Appended,
    Committed,
    Drop,
    Dropped,
    EventFound,
    FactsLoaded,
    Fetch,
    Fetched,
    KeyFound,
    Need,
    Prepared,
    Refused,
    ReplicaAnswer,
    Seal,
    Sealed,
    SessionsLoaded,
)
from im_actors.core.model import (
    COPIES,
    EventKind,
    Member,
    Record,
    View,
    ViewState,
    body_checksum,
    epoch_start,
    key_time_ms,
    next_key,
    record_intact,
    record_keys,
)
from im_actors.core.owner_lookups import Lookup, LookupAnswer, ask_for
from im_actors.core.owner_words import (
    Activated,
    Alarm,
    Answered,
    FactsAsked,
    FactsKnown,
    FrameLeaves,
    HeadsAsked,
    HeadsKnown,
    LogAsked,
    LogKnown,
    MemberDown,
    MemberUp,
    Noted,
    OwnerEffect,
    OwnerEvent,
    OwnerSettings,
    Published,
    ReadView,
    ReplicaAnswered,
    ReplicasKnown,
    SteppedDown,
    Submitted,
    SwapView,
    Take,
    Tick,
    ToReplica,
    ViewRead,
    ViewSeen,
    ViewSwapped,
)
from im_actors.core.placement import ranked_replicas
from im_actors.core.rules import SERVER, Decide, EventHead, messages_only
from im_actors.core.serving import OK, Answer, Send, Serving, ServingLimits, refused
from im_actors.core.story import Story
from im_actors.core.takeover import (
    Plan,
    ReplicaInfo,
    choose_members,
    fill_up,
    make_plan,
)
from im_actors.errors import (
    InvariantBroken,
    KeyConflict,
    Overloaded,
    SlotMoving,
    Unknown,
)

__all__ = [
    "Activated",
    "Alarm",
    "Answered",
    "FactsAsked",
    "FactsKnown",
    "FrameLeaves",
    "HeadsAsked",
    "HeadsKnown",
    "LogAsked",
    "LogKnown",
    "MemberDown",
    "MemberUp",
    "Noted",
    "OwnerEffect",
    "OwnerEvent",
    "OwnerSettings",
    "Phase",
    "Published",
    "ReadView",
    "ReplicaAnswered",
    "ReplicasKnown",
    "SlotOwner",
    "SteppedDown",
    "Submitted",
    "SwapView",
    "Take",
    "Tick",
    "ToReplica",
    "ViewRead",
    "ViewSeen",
    "ViewSwapped",
]

FETCH_BYTES_MAX = 512 * 1024
APPEND_BYTES_MAX = 1024 * 1024
LOAD_SESSIONS_MAX = 512
LOAD_DOUBLINGS_MAX = 3
"""How often the wait for the answer to a read doubles: each time that all members were asked."""
HEADS_WAITING_MAX = 100_000
"""Asked heads whose sessions are still being loaded; more are not answered, and asked again."""
KEY_LOOKUPS_MAX = 256
"""Very old resends that history is asked about at the same time; more are told to come later."""
FIND_AGAIN_MS = 50
"""After so long an event that the tables did not have yet is asked about again."""
FORGET_FACTS_MS = 250
"""How often sessions of which too many facts are known are looked at."""
NEED_AGAIN_MS = 50
"""A member that asks for the same records again within this gets them once."""
NEEDS_MAX = 20
"""So often in a row a member may ask for what it has acknowledged before that is an alarm."""

_new = tuple.__new__
"""Makes a named tuple from a tuple in half the time of a call of its class."""


class Phase(Enum):
    IDLE = "idle"
    WAITING = "waiting"
    READING = "reading"
    CLAIMING = "claiming"
    SEALING = "sealing"
    COPYING = "copying"
    OPENING = "opening"
    ACTIVATING = "activating"
    SERVING = "serving"
    HALTED = "halted"
    """An invariant does not hold: an operator has to look. Nothing is written any more."""


OPENING, SERVING = Phase.OPENING, Phase.SERVING
"""An enum member costs a slow path at each look-up; these are asked for with each record."""


@dataclass(slots=True)
class Attempt:
    """One try to take the slot over, under one epoch."""

    expected: View
    claim: View
    fresh: bool
    """This incarnation does not know the slot's counters: it never served the slot, or somebody
    else has claimed it since."""
    sealed: dict[Member, Sealed] = field(default_factory=dict)
    asked_ms: dict[Member, int] = field(default_factory=dict)
    spares_due_ms: int = 0
    plan: Plan | None = None
    prepared: set[Member] = field(default_factory=set)
    tail: list[Record] = field(default_factory=list)
    opening: Record | None = None
    due_ms: int = 0


@dataclass(slots=True)
class MemberState:
    """What the owner knows of one member while it serves."""

    durable_lsn: int = 0
    applied_lsn: int = 0
    complete: bool = False
    commit_lsn: int = 0
    down_since_ms: int | None = None
    silent_since_ms: int | None = None
    """It has not answered since, although records were sent again."""
    needs: int = 0
    """Times in a row that it asked for records which it has acknowledged."""
    need_lsn: int = 0
    """What it asked for last, and got; until then nothing up to it is sent once more."""
    need_until_ms: int = 0


class SlotOwner:
    """One slot as one shard incarnation sees it. ``me`` names the incarnation."""

    def __init__(
        self,
        slot: int,
        me: str,
        rng: random.Random,
        settings: OwnerSettings | None = None,
        limits: ServingLimits | None = None,
        decide: Decide = messages_only,
    ) -> None:
        self.slot = slot
        self.me = me
        self.phase = Phase.IDLE
        self.reason = ""
        self.epoch = 0
        self.commit_lsn = 0
        self.last_lsn = 0
        self.members: dict[Member, MemberState] = {}
        self.view: View | None = None
        self.attempt: Attempt | None = None
        self.story = Story()
        self._rng = rng
        self._settings = settings or OwnerSettings()
        self.serving = Serving(slot, limits or ServingLimits(), decide)
        self._replicas: tuple[ReplicaInfo, ...] = ()
        self._up: set[Member] = set()
        self._lineage = 0
        self._promised_max = 0
        self._floor_lsn = 0
        self._tries = 0
        self._due_ms: int | None = None
        self._resend_ms: int | None = None
        self._commit_told = 0
        self._tell_commit_ms: int | None = None
        self._lookups: dict[int, Lookup] = {}
        self._lookup_number = 0
        self._loading: set[str] = set()
        self._needed: dict[str, int] = {}
        """How many lookups a session's first waiting send needs."""
        self._heads: dict[str, list[Any]] = {}
        """Who asked for the heads of sessions that are being loaded."""
        self._heads_waiting = 0
        self._log_asked = 0
        """The first record that somebody waits for; 0: nobody does."""
        self._log_tries = 0
        self._reads_open = 0
        self._read_knowing = 0
        """The highest promise that was known when the view was last asked for."""
        self._member_is_down = False
        self._dropped_for = 0
        self._evict_ms = 0
        self._forget_ms = 0
        self._now_ms = 0
        self._effects: list[OwnerEffect] = []

    # -- the door ------------------------------------------------------------------------------

    def handle(self, event: OwnerEvent, now_ms: int) -> list[OwnerEffect]:
        """Take in one event; the effects are to be carried out in order."""
        self._now_ms = now_ms
        effects: list[OwnerEffect] = []
        self._effects = effects
        # Compared by type: what comes with each record need not wait for a match statement.
        if type(event) is ReplicaAnswered:
            answer = event.answer
            if type(answer) is Appended:
                self._appended(event.member, answer)
            else:
                self._replica_answered(event.member, answer)
            return effects
        if type(event) is Submitted:
            self._submitted(event.sends)
            return effects
        match event:
            case FrameLeaves():
                if self.untold:
                    self._tell_commit()
            case Tick():
                self._tick()
            case Noted(notes):
                assert all(note.device == SERVER and not note.n for note in notes)
                self._submitted(notes)
            case HeadsAsked(token, sessions):
                self._heads_asked(token, sessions)
            case FactsAsked(token, session, keys):
                self._facts_asked(token, session, keys)
            case LogAsked(first_lsn, last_lsn):
                self._log_wanted(first_lsn, last_lsn)
            case MemberUp(member):
                self._member_up(member)
            case MemberDown(member):
                self._member_down(member)
            case ReplicasKnown(replicas):
                self._replicas = replicas
                self._replace_lost()
            case Take(reason, force):
                self._take(reason, force)
            case ViewRead(view):
                self._view_read(view)
            case ViewSwapped(view):
                self._view_swapped(view)
            case ViewSeen(view):
                self._view_seen(view)
        return effects

    def deadline_ms(self) -> int | None:
        """When the machine next wants a Tick."""
        # Asked after every event: what is rare is looked at only when it is there.
        dues = [due for due in (self._due_ms, self._resend_ms, self._tell_commit_ms) if due]
        if self.phase is SERVING:
            if self._lookups:
                dues += [lookup.due_ms for lookup in self._lookups.values()]
            if len(self.serving.sessions) > self.serving.limits.sessions_max:
                dues.append(self._evict_ms)
            if self.serving.crowded:
                dues.append(self._forget_ms)
            if self._member_is_down and self._spare_is_up():
                dues += [
                    state.down_since_ms + self._settings.replace_after_ms
                    for state in self.members.values()
                    if state.down_since_ms is not None
                ]
        return min(dues) if dues else None

    @property
    def untold(self) -> bool:
        """Whether the members do not know the commit point yet and no record is about to tell."""
        return self._tell_commit_ms is not None

    @property
    def flying(self) -> bool:
        """Whether records have left and not committed, and commit soon if nothing is wrong."""
        return self.phase is SERVING and bool(self.serving.flights)

    def validate(self) -> None:
        """Check the invariants that one owner can see."""
        self.serving.validate()
        if self.phase is Phase.SERVING:
            assert self.view is not None
            durable = [state.durable_lsn for state in self.members.values()]
            if len(durable) != COPIES or min(durable) < self.commit_lsn:
                raise InvariantBroken(
                    f"I1: slot {self.slot}: commit {self.commit_lsn} with durable {durable}\n"
                    + "\n".join(self.story.story(self.slot))
                )

    # -- attempts ------------------------------------------------------------------------------

    def _take(self, reason: str, force: bool) -> None:
        idle = self.phase in (Phase.IDLE, Phase.WAITING)
        if idle or (force and self.phase is Phase.SERVING):
            self._start(reason)

    def _start(self, reason: str) -> None:
        self._note(f"takeover: {reason}")
        self.reason = reason
        self.phase = Phase.READING
        self.attempt = None
        self._resend_ms = self._tell_commit_ms = None
        self._due_ms = self._now_ms + self._settings.attempt_ms
        self._read_view()

    def _read_view(self) -> None:
        self._reads_open += 1
        self._read_knowing = self._promised_max
        self._effects.append(ReadView(self.slot))

    def _retry(self, reason: str) -> None:
        """This attempt is over; the next one has a new epoch. With jitter: others try too."""
        self._note(f"attempt ends: {reason}")
        self.phase = Phase.WAITING
        self.reason = reason
        self.attempt = None
        settings = self._settings
        ceiling = min(settings.retry_ms_max, settings.retry_ms_min << min(self._tries, 10))
        self._tries += 1
        self._due_ms = self._now_ms + int(ceiling * self._rng.uniform(0.5, 1.5))

    def _halt(self, text: str) -> None:
        self._note(f"HALTED: {text}")
        self.phase = Phase.HALTED
        self.reason = text
        self.attempt = None
        self._due_ms = self._resend_ms = self._tell_commit_ms = None
        self._effects.append(Alarm(self.slot, text))
        self._forget_state()

    def _step_down(self, reason: str) -> None:
        self._note(f"steps down: {reason}")
        self.phase = Phase.IDLE
        self.reason = reason
        self.attempt = None
        self._due_ms = self._resend_ms = self._tell_commit_ms = None
        self._forget_state()
        self._effects.append(SteppedDown(self.slot, reason))

    def _forget_state(self) -> None:
        """Nothing in memory may outlive a foreign epoch."""
        answers = self.serving.abandon()
        asked = [lookup.send for lookup in self._lookups.values() if lookup.send is not None]
        answers += [refused(send.token, Unknown.code) for send in asked]
        if answers:
            self._effects.append(Answered(answers))
        self.members = {}
        self._lookups = {}
        self._needed = {}
        self._loading = set()
        self.serving.unloaded = list(self.serving.waiting)
        self._heads = {}
        self._heads_waiting = 0
        self._log_asked = 0
        self._lineage = 0

    def _view_read(self, view: View | None) -> None:
        self._reads_open = max(0, self._reads_open - 1)
        if self.phase is Phase.READING:
            if view is None:
                self._retry("the view store does not answer, or has no view of the slot")
            elif view.epoch < self._promised_max:
                self._view_is_older(view)
            else:
                self._claim(view)
        elif self.phase in (Phase.CLAIMING, Phase.ACTIVATING):
            self._swap_outcome(view)

    def _view_is_older(self, view: View) -> None:
        """A replica has promised more than the store offers: either the store was rolled back, or
        this is the late answer to a read from before that promise."""
        if self._reads_open:
            return
        if view.epoch >= self._read_knowing:
            self._read_view()
            return
        self._halt(
            f"the view store offers epoch {view.epoch}, a replica has promised"
            f" {self._promised_max}: the store was rolled back: bring its newest data back"
        )

    def _claim(self, view: View) -> None:
        fresh = view.owner != self.me or view.epoch != self._lineage
        claim = View(self.slot, view.epoch + 1, ViewState.RECOVERING, self.me, view.members)
        if fresh:
            self._forget_state()
        self.attempt = Attempt(view, claim, fresh)
        self.phase = Phase.CLAIMING
        self._effects.append(SwapView(view, claim))

    def _view_swapped(self, view: View | None) -> None:
        if self.phase not in (Phase.CLAIMING, Phase.ACTIVATING):
            return
        if view is None:
            # Unknown is not failed: read until it is known which of the two it was.
            self._read_view()
            return
        self._swap_outcome(view)

    def _swap_outcome(self, view: View | None) -> None:
        attempt = self.attempt
        assert attempt is not None
        old, new = self._swap_of(attempt)
        if view is None:
            self._read_view()
        elif view == old:
            # Not there (yet): the same swap again can take effect only once.
            self._effects.append(SwapView(old, new))
        elif view != new:
            self._view_lost(view)
        elif self.phase is Phase.CLAIMING:
            self._claimed(attempt)
        else:
            self._activated(attempt, new)

    def _swap_of(self, attempt: Attempt) -> tuple[View, View]:
        if self.phase is Phase.CLAIMING:
            return attempt.expected, attempt.claim
        assert attempt.plan is not None
        active = attempt.claim._replace(state=ViewState.ACTIVE, members=attempt.plan.members)
        return attempt.claim, active

    def _view_lost(self, view: View) -> None:
        if view.owner != self.me:
            self._forget_state()
        self._retry(f"the view is {view.owner}'s at epoch {view.epoch}")

    def _claimed(self, attempt: Attempt) -> None:
        self.epoch = attempt.claim.epoch
        if not attempt.fresh:
            self._lineage = self.epoch
        self._promised_max = max(self._promised_max, self.epoch)
        self.phase = Phase.SEALING
        self._due_ms = attempt.spares_due_ms = self._now_ms + self._settings.seal_wait_ms
        for member in attempt.claim.members:
            self._seal(member)
        self._seal_progress()

    def _seal(self, member: Member) -> None:
        attempt = self.attempt
        assert attempt is not None
        if member in self._up and member not in attempt.sealed:
            attempt.asked_ms.setdefault(member, self._now_ms)
            message = Seal(self.slot, attempt.claim.epoch, attempt.claim)
            self._effects.append(ToReplica(member, message))

    def _seal_progress(self) -> None:
        """Choose the log once there are three to keep it on, and not before."""
        attempt = self.attempt
        assert attempt is not None
        view = attempt.claim
        usable = [member for member in view.members if member in attempt.sealed]
        patient = self._now_ms < attempt.spares_due_ms
        if not usable or (patient and len(usable) < len(view.members)):
            return
        spares = self._spares(view.members)
        if len(usable) < COPIES:
            self._seal_spares(attempt, usable, spares)
        members = choose_members(view, attempt.sealed, self._replicas, spares)
        if members is not None:
            self._copy(attempt, members)

    def _seal_spares(
        self, attempt: Attempt, usable: list[Member], spares: tuple[Member, ...]
    ) -> None:
        """Ask as many spares as are lacking. One that stays silent is not waited for alone."""
        overdue_ms = self._now_ms - self._settings.seal_wait_ms
        able = [
            spare
            for spare in spares
            if spare in attempt.sealed
            or (spare in self._up and attempt.asked_ms.get(spare, self._now_ms) > overdue_ms)
        ]
        for spare in fill_up(usable, able, self._replicas):
            if spare not in attempt.asked_ms:
                self._seal(spare)

    def _spares(self, members: tuple[Member, ...]) -> tuple[Member, ...]:
        ranked = [info.member for info in ranked_replicas(self.slot, self._replicas)]
        return tuple(member for member in ranked if member not in members)

    def _spare_is_up(self) -> bool:
        others = (info.member for info in self._replicas)
        return any(spare in self._up and spare not in self.members for spare in others)

    def _sealed(self, member: Member, answer: Sealed) -> None:
        attempt = self.attempt
        if self.phase is Phase.SEALING and attempt and answer.epoch == attempt.claim.epoch:
            attempt.sealed[member] = answer
            self._seal_progress()

    # -- bringing three members to one log -----------------------------------------------------

    def _copy(self, attempt: Attempt, members: tuple[Member, ...]) -> None:
        copied = self._settings.copy_records_max
        try:
            plan = make_plan(attempt.claim, self.epoch, attempt.sealed, members, copied)
        except InvariantBroken as broken:
            self._halt(str(broken))
            return
        self._note(f"keeps the log of {plan.best.replica} up to {plan.last_lsn}")
        self.phase = Phase.COPYING
        self._due_ms = self._now_ms + self._settings.attempt_ms
        attempt.plan = plan
        for member, prepare in plan.prepares:
            self._effects.append(ToReplica(member, prepare))
        self._fetch_tail(attempt, plan)
        self._copy_progress(attempt, plan)

    def _fetch_tail(self, attempt: Attempt, plan: Plan) -> None:
        first = plan.fetch_from + len(attempt.tail)
        if first <= plan.last_lsn:
            request = Fetch(self.slot, self.epoch, first, plan.last_lsn, FETCH_BYTES_MAX, False)
            self._effects.append(ToReplica(plan.best, request))

    def _fetched(self, member: Member, answer: Fetched) -> None:
        if self.phase is SERVING:
            self._log_read(member, answer)
            return
        attempt = self.attempt
        if self.phase is not Phase.COPYING or attempt is None or answer.epoch != self.epoch:
            return
        plan = attempt.plan
        assert plan is not None
        expected = plan.fetch_from + len(attempt.tail)
        if member != plan.best or answer.first_lsn != expected:
            return
        if not answer.records:
            self._retry(f"{member.replica} does not give its records from {expected} on")
            return
        if not self._is_of_log(plan, expected, answer.records):
            self._retry(f"{member.replica} gives damaged records from {expected} on")
            return
        attempt.tail.extend(answer.records)
        self._fetch_tail(attempt, plan)
        self._copy_progress(attempt, plan)

    def _is_of_log(self, plan: Plan, first_lsn: int, records: tuple[Record, ...]) -> bool:
        return all(
            record.lsn == first_lsn + index
            and record.lsn <= plan.last_lsn
            and record.epoch == epoch_at(plan.epochs, record.lsn)
            and record_intact(self.slot, record)
            for index, record in enumerate(records)
        )

    def _prepared(self, member: Member, answer: Prepared) -> None:
        attempt = self.attempt
        if self.phase is Phase.COPYING and attempt and answer.epoch == self.epoch:
            assert attempt.plan is not None
            attempt.prepared.add(member)
            self._copy_progress(attempt, attempt.plan)

    def _copy_progress(self, attempt: Attempt, plan: Plan) -> None:
        complete = plan.fetch_from + len(attempt.tail) > plan.last_lsn
        if complete and attempt.prepared >= set(plan.members):
            self._open(attempt, plan)

    def _open(self, attempt: Attempt, plan: Plan) -> None:
        """Append what each member lacks, and the EpochStart: it makes the kept log win over any
        older tail, whatever its length."""
        key = record_keys(attempt.tail[-1].payload)[1] if attempt.tail else 0
        if attempt.fresh or not key:
            self.serving.last_key = key = next_key(key, self._now_ms, self.slot)
        # A live owner's open events have their keys already, and they come after this record.
        attempt.opening = epoch_start(self.slot, plan.last_lsn + 1, self.epoch, key)
        self.phase = Phase.OPENING
        self.members = {
            member: MemberState(
                prepare.start_lsn - 1,
                attempt.sealed[member].applied_lsn,
                attempt.sealed[member].complete and prepare.start_lsn == prepare.keep_lsn + 1,
            )
            for member, prepare in plan.prepares
        }
        for member in plan.members:
            if self.phase is Phase.OPENING:
                self._send_opening(member, self.members[member].durable_lsn + 1)

    def _send_opening(self, member: Member, from_lsn: int) -> None:
        attempt = self.attempt
        assert attempt is not None
        assert attempt.plan is not None
        assert attempt.opening is not None
        plan = attempt.plan
        if from_lsn > plan.last_lsn or not attempt.tail:
            from_lsn = plan.last_lsn + 1
        elif from_lsn < plan.fetch_from:
            self._retry(f"{member.replica} lacks more than it said")
            return
        lacking = attempt.tail[from_lsn - plan.fetch_from :] if from_lsn <= plan.last_lsn else []
        records = [*lacking, attempt.opening]
        self._append(member, records, epoch_at(plan.epochs, from_lsn - 1), plan.commit_lsn)

    def _append(
        self, member: Member, records: list[Record], prev_epoch: int, commit_lsn: int
    ) -> None:
        """Send records in frames of bounded size."""
        batch: list[Record] = []
        size = 0
        for record in records:
            if batch and size + len(record.payload) > APPEND_BYTES_MAX:
                self._append_batch(member, batch, prev_epoch, commit_lsn)
                prev_epoch, batch, size = batch[-1].epoch, [], 0
            batch.append(record)
            size += len(record.payload)
        self._append_batch(member, batch, prev_epoch, commit_lsn)

    def _append_batch(
        self, member: Member, batch: list[Record], prev_epoch: int, commit_lsn: int
    ) -> None:
        prev_lsn = batch[0].lsn - 1
        message = Append(self.slot, self.epoch, prev_lsn, prev_epoch, commit_lsn, tuple(batch))
        self._effects.append(ToReplica(member, message))

    def _opened(self, attempt: Attempt) -> None:
        assert attempt.opening is not None
        if all(state.durable_lsn >= attempt.opening.lsn for state in self.members.values()):
            self.phase = Phase.ACTIVATING
            old, new = self._swap_of(attempt)
            self._effects.append(SwapView(old, new))

    def _activated(self, attempt: Attempt, view: View) -> None:
        plan, opening = attempt.plan, attempt.opening
        assert plan is not None
        assert opening is not None
        self.phase = Phase.SERVING
        self.reason = ""
        self.view = view
        self.attempt = None
        self._tries = 0
        self._due_ms = None
        self.last_lsn = self.commit_lsn = opening.lsn
        self._lineage = self.epoch
        self._floor_lsn = max(plan.floor_lsn, 0 if attempt.fresh else self._floor_lsn)
        for member, state in self.members.items():
            state.down_since_ms = None if member in self._up else self._now_ms
        self._note_down_members()
        self._note(f"serves epoch {view.epoch} from lsn {opening.lsn}")
        self._effects.append(Activated(view))
        if attempt.fresh:
            skip = max(0, plan.floor_lsn + 1 - plan.fetch_from)
            self.serving.replay(attempt.tail[skip:])
        else:
            self.serving.keep(lambda lsn: epoch_at(plan.epochs, lsn), plan.last_lsn)
            self._publish(plan.last_lsn)
        self._commit_told = plan.commit_lsn
        self._tell_commit_soon()
        self._watch_members()
        self._continue_serving()

    # -- serving -------------------------------------------------------------------------------

    def _submitted(self, sends: list[Send]) -> None:
        if self.phase is not SERVING:
            refusals = [refused(send.token, SlotMoving.code) for send in sends]
            self._effects.append(Answered(refusals))
            return
        lagging = self._apply_lag() > self.serving.limits.apply_lag_lsns_max
        if lagging:
            self._watch_members()
        answers = self.serving.submit(sends, self.epoch, self._now_ms, closed=lagging)
        if answers:
            self._effects.append(Answered(answers))
        self._continue_serving()

    def _apply_lag(self) -> int:
        return self.last_lsn - min([state.applied_lsn for state in self.members.values()])

    def _continue_serving(self) -> None:
        if self.serving.unloaded:
            unloaded, self.serving.unloaded = self.serving.unloaded, []
            self._load_sessions(s for s in unloaded if not self._is_loaded(s))
        if self.serving.needs:
            self._load_needs()
        if self.serving.ancient:
            self._find_keys()
        self._flush()

    def _flush(self) -> None:
        """What is open becomes the next record, as soon as there is room in flight. No timer: what
        arrives while records are in flight is the next batch."""
        epoch = self.epoch
        while (record := self.serving.cut_record(self.last_lsn + 1, epoch)) is not None:
            self.last_lsn = record.lsn
            fields = (self.slot, epoch, record.lsn - 1, epoch, self.commit_lsn, (record,))
            message = _new(Append, fields)
            self._effects += [ToReplica(member, message) for member in self.members]
            self._commit_told = self.commit_lsn
            self._tell_commit_ms = None
            self._watch_members()

    def _replica_answered(self, member: Member, answer: ReplicaAnswer) -> None:
        match answer:
            case SessionsLoaded():
                self._sessions_loaded(answer)
            case Sealed():
                self._sealed(member, answer)
            case Prepared():
                self._prepared(member, answer)
            case Fetched():
                self._fetched(member, answer)
            case Refused():
                self._refused(member, answer)
            case Need():
                self._need(member, answer)
            case KeyFound():
                self._key_found(answer)
            case FactsLoaded():
                self._facts_loaded(answer)
            case EventFound():
                self._event_found(answer)
            case Dropped():
                pass

    def _appended(self, member: Member, answer: Appended) -> None:
        """Without an effect it changes nothing that the shell asks about: deadline, ``flying`` and
        ``untold`` stay as they were."""
        state = self.members.get(member)
        # Acks of former epochs count for nothing.
        if state is None or answer.epoch != self.epoch:
            return
        _, _, durable_lsn, commit_lsn, applied_lsn, complete = answer
        if durable_lsn > state.durable_lsn:
            state.durable_lsn = durable_lsn
        if commit_lsn > state.commit_lsn:
            state.commit_lsn = commit_lsn
        if applied_lsn > state.applied_lsn:
            state.applied_lsn = applied_lsn
        state.needs = 0
        state.silent_since_ms = None
        became_complete = complete and not state.complete
        state.complete = complete
        if self.phase is OPENING:
            assert self.attempt is not None
            self._opened(self.attempt)
        elif self.phase is SERVING:
            self._commit_progress()
            if became_complete or self._dropped_for != self.epoch:
                self._drop_spares()

    def _commit_progress(self) -> None:
        durable = min([state.durable_lsn for state in self.members.values()])
        if durable <= self.commit_lsn:
            return
        self.commit_lsn = durable
        self._resend_ms = None
        self._watch_members()
        self._publish(durable)
        self._flush()
        self._tell_commit_soon()

    def _watch_members(self) -> None:
        """Ask again after a while, as long as something is expected of a member."""
        if self._resend_ms is None and any(map(self._lags, self.members.values())):
            self._resend_ms = self._now_ms + self._settings.resend_ms

    def _lags(self, state: MemberState) -> bool:
        known = state.durable_lsn >= self.last_lsn and state.commit_lsn >= self.commit_lsn
        # While its lag holds up admission, no append would bring the news that it has caught up.
        applied = self.last_lsn - state.applied_lsn <= self.serving.limits.apply_lag_lsns_max
        return not (known and applied and state.complete)

    def _all_complete(self) -> bool:
        return all(state.complete for state in self.members.values())

    def _publish(self, lsn: int) -> None:
        flights = self.serving.flights
        first_lsn = flights[0].record.lsn if flights else 0
        last_lsn = first_lsn - 1 + len(flights)
        answers, events = self.serving.commit(lsn, self.epoch)
        if answers:
            self._effects.append(Answered(answers))
        if events:
            last_lsn -= len(flights)
            self._effects.append(Published(self.slot, first_lsn, last_lsn, events))

    def _tell_commit_soon(self) -> None:
        if self._commit_told < self.commit_lsn and self._tell_commit_ms is None:
            self._tell_commit_ms = self._now_ms + self._settings.idle_commit_ms

    def _tell_commit(self) -> None:
        self._tell_commit_ms = None
        self._commit_told = self.commit_lsn
        message = Committed(self.slot, self.epoch, self.commit_lsn)
        self._effects += [ToReplica(member, message) for member in self.members]

    def _resend(self, member: Member) -> None:
        """Everything above the commit point, again; equal records again are fine."""
        records = [flight.record for flight in self.serving.flights]
        if records:
            self._append(member, records, self.epoch, self.commit_lsn)
        else:
            lsn = self.commit_lsn
            nothing = Append(self.slot, self.epoch, lsn, self.epoch, lsn, ())
            self._effects.append(ToReplica(member, nothing))

    def _need(self, member: Member, answer: Need) -> None:
        if answer.epoch != self.epoch or member not in self.members:
            return
        state = self.members[member]
        if self.phase is Phase.OPENING and self._is_new_need(state, answer.from_lsn):
            self._send_opening(member, answer.from_lsn)
        elif self.phase is Phase.SERVING:
            self._serve_need(member, state, answer.from_lsn)

    def _is_new_need(self, state: MemberState, from_lsn: int) -> bool:
        """Every frame behind a lost one asks for the same, or for what was sent since. Answered one
        by one, each with as many frames again, they would never end."""
        if from_lsn <= state.need_lsn and self._now_ms < state.need_until_ms:
            return False
        state.need_lsn, state.need_until_ms = from_lsn, self._now_ms + NEED_AGAIN_MS
        return True

    def _serve_need(self, member: Member, state: MemberState, from_lsn: int) -> None:
        if from_lsn <= state.durable_lsn:
            # Overtaken by its own acknowledgement, or a disk that lost what it had acknowledged.
            state.needs += 1
        if state.needs > NEEDS_MAX:
            text = f"{member.replica} lost records from {from_lsn} that it had acknowledged"
            self._effects.append(Alarm(self.slot, text))
            self._start(text)
        elif self._is_new_need(state, from_lsn):
            self._resend(member)

    def _refused(self, member: Member, answer: Refused) -> None:
        self._promised_max = max(self._promised_max, answer.promised)
        if answer.epoch != self.epoch or self.phase in (Phase.IDLE, Phase.HALTED):
            return
        if answer.promised > self.epoch:
            if self.phase is Phase.SERVING:
                self._step_down(f"{member.replica} has promised epoch {answer.promised}")
            elif self.phase not in (Phase.READING, Phase.WAITING):
                self._retry(f"{member.replica} has promised epoch {answer.promised}")
        elif self.phase is Phase.SEALING and answer.promised == self.epoch:
            self._halt(
                f"{member.replica} has promised epoch {self.epoch} to another owner: the view store"
                " gave one epoch twice, it was rolled back: bring its newest data back"
            )
        elif self.phase is Phase.SERVING and member in self.members:
            self._start(f"{member.replica} refuses: {answer.reason}")
        elif self.phase in (Phase.COPYING, Phase.OPENING):
            self._retry(f"{member.replica} refuses: {answer.reason}")

    def _drop_spares(self) -> None:
        """All three have everything: what former members still hold may go."""
        assert self.view is not None
        if self._all_complete():
            self._dropped_for = self.epoch
            for spare in self._spares(self.view.members):
                self._effects.append(ToReplica(spare, Drop(self.slot, self.epoch, self.view)))

    def _view_seen(self, view: View) -> None:
        newer = view.epoch > self.epoch and view.owner != self.me
        if newer and self.phase is Phase.SERVING:
            self._step_down(f"the view is {view.owner}'s at epoch {view.epoch}")

    # -- session states ------------------------------------------------------------------------

    def _heads_asked(self, token: Any, sessions: tuple[str, ...]) -> None:
        if self.phase is not Phase.SERVING:
            return  # The asker hears of the new view, and asks again.
        known = [s for s in sessions if self._is_loaded(s)]
        if known:
            self._effects.append(HeadsKnown(token, [(s, self._head(s)) for s in known]))
        unknown = [s for s in sessions if not self._is_loaded(s)]
        room = HEADS_WAITING_MAX - self._heads_waiting
        for session in unknown[:room]:
            self._heads.setdefault(session, []).append(token)
            self._heads_waiting += 1
        self._load_sessions(unknown[:room])

    def _head(self, session: str) -> int:
        return self.serving.sessions[session].committed_seq

    def _answer_heads(self, sessions: Iterable[str]) -> None:
        heads: dict[Any, list[tuple[str, int]]] = {}
        for session in sessions:
            tokens = self._heads.pop(session, [])
            self._heads_waiting -= len(tokens)
            for token in tokens:
                heads.setdefault(token, []).append((session, self._head(session)))
        self._effects += [HeadsKnown(token, known) for token, known in heads.items()]

    def _is_loaded(self, session: str) -> bool:
        state = self.serving.sessions.get(session)
        return state is not None and state.loaded

    def _load_sessions(self, wanted: Iterable[str]) -> None:
        fresh = sorted({session for session in wanted if session not in self._loading})
        for start in range(0, len(fresh), LOAD_SESSIONS_MAX):
            names = tuple(fresh[start : start + LOAD_SESSIONS_MAX])
            self._loading.update(names)
            self._ask(Lookup(self._next_lookup(), self._floor_lsn, names))

    def _next_lookup(self) -> int:
        self._lookup_number += 1
        return self._lookup_number

    def _find_keys(self) -> None:
        ancient, self.serving.ancient = self.serving.ancient, []
        room = KEY_LOOKUPS_MAX - sum(look.send is not None for look in self._lookups.values())
        for send in ancient[:room]:
            # It is committed, perhaps only just: the tables must have come so far.
            last_lsn = self.serving.sessions[send.session].last_lsn
            floor_lsn = max(self._floor_lsn, last_lsn)
            self._ask(Lookup(self._next_lookup(), floor_lsn, send=send))
        refusals = [refused(send.token, Overloaded.code) for send in ancient[room:]]
        if refusals:
            self._effects.append(Answered(refusals))

    def _facts_asked(self, token: Any, session: str, keys: tuple[str, ...]) -> None:
        """Answer from what is known; ask the tables when that does not say it all."""
        assert len(keys) <= FACT_KEYS_MAX, len(keys)
        if self.phase is not SERVING:
            return  # The asker hears of the new view, and asks again.
        known = self.serving.committed_facts(session, keys)
        if len(known) == len(keys):
            self._effects.append(FactsKnown(token, known))
            return
        # A change that has not committed hides what is: the tables say that when they are so far.
        hidden_lsn = self.serving.hidden_lsn(session, keys)
        floor_lsn = max(self._floor_lsn, hidden_lsn)
        lookup = Lookup(self._next_lookup(), floor_lsn, (session,), keys=keys, asker=token)
        self._ask(lookup)

    def _asked_facts_loaded(self, lookup: Lookup, facts: tuple[Fact, ...]) -> None:
        if lookup.floor_lsn < self._floor_lsn:
            # Something was forgotten meanwhile: perhaps what is newer than this answer.
            self._facts_asked(lookup.asker, lookup.session, lookup.keys)
            return
        found: dict[str, Fact | None] = dict.fromkeys(lookup.keys)
        found |= {fact.key: None if fact.value is None else fact for fact in facts}
        found |= self.serving.committed_facts(lookup.session, lookup.keys)
        self._effects.append(FactsKnown(lookup.asker, found))

    def _log_wanted(self, first_lsn: int, last_lsn: int) -> None:
        ready = self._readable() if self.phase is SERVING else []
        if not ready:
            return
        self._log_asked = first_lsn
        member = ready[self._log_tries % len(ready)]
        self._log_tries += 1
        last_lsn = min(last_lsn, self.commit_lsn)
        request = Fetch(self.slot, self.epoch, first_lsn, last_lsn, FETCH_BYTES_MAX, True)
        self._effects.append(ToReplica(member, request))

    def _log_read(self, member: Member, answer: Fetched) -> None:
        asked = answer.epoch == self.epoch and answer.first_lsn == self._log_asked
        if not asked or not answer.records:
            return
        for lsn, record in enumerate(answer.records, answer.first_lsn):
            if record.lsn != lsn or lsn > self.commit_lsn or not record_intact(self.slot, record):
                self._note(f"{member.replica} gives damaged records from {lsn} on")
                return
        self._log_asked = 0
        self._effects.append(LogKnown(answer.first_lsn, answer.records))

    def _readable(self) -> list[Member]:
        """The members whose tables and history may be asked, in their order."""
        return [m for m, state in self.members.items() if state.complete and m in self._up]

    def _ask(self, lookup: Lookup) -> None:
        """Ask the next complete member; none: wait, unknown is never taken for absent."""
        self._lookups[lookup.number] = lookup
        # When all were asked in vain they are slow, perhaps because of many questions, and must not
        # get each of them again and again.
        wait_ms = self._settings.load_ms << min(lookup.tries // COPIES, LOAD_DOUBLINGS_MAX)
        lookup.due_ms = self._now_ms + wait_ms
        ready = self._readable()
        if not ready:
            return
        # The member whose tables are furthest first; after a refusal or silence the next one.
        ready.sort(key=lambda m: self.members[m].applied_lsn, reverse=True)
        member = ready[lookup.tries % len(ready)]
        lookup.tries += 1
        self._effects.append(ToReplica(member, ask_for(lookup, self.slot, self.epoch)))

    def _sessions_loaded(self, answer: SessionsLoaded) -> None:
        lookup = self._answered_lookup(answer)
        if lookup is None:
            return
        self._loading.difference_update(lookup.sessions)
        assert len(answer.images) == len(lookup.sessions), "a session is missing in the answer"
        answers: list[Answer] = []
        for image in answer.images:
            answers += self.serving.loaded(image, self.epoch, self._now_ms)
        if answers:
            self._effects.append(Answered(answers))
        self._answer_heads(lookup.sessions)
        self._continue_serving()

    def _answered_lookup(self, answer: LookupAnswer) -> Lookup | None:
        """The lookup that this answers; None if it is not the time or the place. A refusal waits
        for the lookup's deadline, so that lagging tables catch up."""
        if self.phase is not Phase.SERVING or answer.epoch != self.epoch or not answer.ready:
            return None
        return self._lookups.pop(answer.request, None)

    def _load_needs(self) -> None:
        """Ask for what the rules have to know of sessions before their next send."""
        needs, self.serving.needs = self.serving.needs, {}
        for session, (keys, events) in needs.items():
            floor, of = self._floor_lsn, (session,)
            parts = [
                keys[start : start + FACT_KEYS_MAX] for start in range(0, len(keys), FACT_KEYS_MAX)
            ]
            lookups = [Lookup(self._next_lookup(), floor, of, keys=part) for part in parts]
            lookups += [Lookup(self._next_lookup(), floor, of, event=seq) for seq in events]
            self._needed[session] = len(lookups)
            for lookup in lookups:
                self._ask(lookup)

    def _facts_loaded(self, answer: FactsLoaded) -> None:
        lookup = self._answered_lookup(answer)
        if lookup is not None and lookup.asker is not None:
            self._asked_facts_loaded(lookup, answer.facts)
        elif lookup is not None:
            self.serving.facts_loaded(lookup.session, lookup.keys, answer.facts)
            self._need_met(lookup.session)

    def _event_found(self, answer: EventFound) -> None:
        lookup = self._answered_lookup(answer)
        if lookup is None:
            return
        last_lsn = self.serving.sessions[lookup.session].last_lsn
        if not answer.seq and lookup.floor_lsn < last_lsn:
            # Committed, perhaps only just: only tables that have come so far can say that there is
            # none. That is soon; and old events, which most are asked about, did not wait for it.
            # Under a new number: another answer to the first question may be on its way.
            lookup.number = self._next_lookup()
            lookup.floor_lsn, lookup.due_ms = last_lsn, self._now_ms + FIND_AGAIN_MS
            self._lookups[lookup.number] = lookup
            return
        head = None
        if answer.seq:
            head = EventHead(answer.seq, answer.kind, answer.device, key_time_ms(answer.key))
        self.serving.event_found(lookup.session, lookup.event, head)
        self._need_met(lookup.session)

    def _need_met(self, session: str) -> None:
        self._needed[session] -= 1
        if self._needed[session]:
            return
        del self._needed[session]
        answers = self.serving.decide_again(session, self.epoch, self._now_ms)
        if answers:
            self._effects.append(Answered(answers))
        self._continue_serving()

    def _key_found(self, answer: KeyFound) -> None:
        lookup = self._answered_lookup(answer)
        if lookup is None:
            return
        send = lookup.send
        assert send is not None
        if not answer.seq:
            self._effects.append(
                Alarm(
                    self.slot, f"no event for the used key {send.session!r} {send.device} {send.n}"
                )
            )
            # Unknown is never taken for absent: nobody is told that the key was free.
            self._effects.append(Answered([refused(send.token, Unknown.code)]))
            return
        same = answer.checksum == body_checksum(send.kind, send.body)
        if same or send.kind == EventKind.VOID:
            time_ms = key_time_ms(answer.key)
            outcome = Answer(send.token, OK, answer.seq, self.epoch, time_ms, 0)
        else:
            device = self.serving.sessions[send.session].devices[send.device]
            outcome = refused(send.token, KeyConflict.code, device.last_n + 1)
        self._effects.append(Answered([outcome]))

    # -- links and time ------------------------------------------------------------------------

    def _member_up(self, member: Member) -> None:
        self._up.add(member)
        if self.phase is Phase.SEALING:
            assert self.attempt is not None
            if member in self.attempt.claim.members or member in self.attempt.asked_ms:
                self._seal(member)
            self._seal_progress()
        elif self.phase is Phase.SERVING and member in self.members:
            state = self.members[member]
            state.down_since_ms = state.silent_since_ms = None
            self._note_down_members()
            # Restarted, perhaps: it may believe in less than it said, until it hears it again.
            state.commit_lsn = 0
            self._resend(member)
            self._watch_members()
        elif self.phase is Phase.SERVING:
            self._drop_spares()
            self._replace_lost()

    def _member_down(self, member: Member) -> None:
        self._up.discard(member)
        if self.phase is Phase.SEALING:
            assert self.attempt is not None
            # Its answer would be waited on in vain; a spare may be at hand.
            self.attempt.sealed.pop(member, None)
        elif self.phase in (Phase.COPYING, Phase.OPENING):
            assert self.attempt is not None
            assert self.attempt.plan is not None
            if member in self.attempt.plan.members:
                self._retry(f"{member.replica} went out of reach")
        elif self.phase is Phase.SERVING and member in self.members:
            state = self.members[member]
            if state.down_since_ms is None:
                state.down_since_ms = self._now_ms
            self._note_down_members()

    def _note_down_members(self) -> None:
        down = [state.down_since_ms for state in self.members.values()]
        self._member_is_down = any(since is not None for since in down)

    def _tick(self) -> None:
        now = self._now_ms
        if self._due_ms is not None and self._due_ms <= now:
            self._attempt_due()
        if self.phase is not Phase.SERVING:
            return
        if self._tell_commit_ms is not None and self._tell_commit_ms <= now:
            self._tell_commit()
        if self._resend_ms is not None and self._resend_ms <= now:
            self._resend_due()
        for lookup in [look for look in self._lookups.values() if look.due_ms <= now]:
            self._ask(lookup)
        self._replace_lost()
        if self._evict_ms <= now:
            self._evict()
        if self.serving.crowded and self._forget_ms <= now:
            self._forget_facts()

    def _attempt_due(self) -> None:
        attempt = self.attempt
        if self.phase is Phase.SEALING:
            assert attempt is not None
            self._due_ms = self._now_ms + self._settings.seal_wait_ms
            silent = [m for m in attempt.claim.members if m not in attempt.sealed]
            self.reason = "waits for " + ", ".join(m.replica for m in silent or attempt.asked_ms)
            # In the order of asking, so that a run can be repeated.
            for member in dict.fromkeys((*attempt.claim.members, *attempt.asked_ms)):
                self._seal(member)
            self._seal_progress()
        elif self.phase is Phase.WAITING:
            self._start(self.reason)
        elif self.phase in (Phase.CLAIMING, Phase.ACTIVATING):
            # The outcome of a swap must be known before anything else is tried.
            self._due_ms = self._now_ms + self._settings.attempt_ms
            self._read_view()
        else:
            self._retry(f"no progress while {self.phase.value}")

    def _resend_due(self) -> None:
        self._resend_ms = None
        self._watch_members()
        for member, state in self.members.items():
            if self._lags(state):
                if state.silent_since_ms is None:
                    state.silent_since_ms = self._now_ms
                self._resend(member)

    def _replace_lost(self) -> None:
        if self.phase is not Phase.SERVING or not self._spare_is_up():
            return
        limit = self._now_ms - self._settings.replace_after_ms
        disks = {info.name: info.disk for info in self._replicas}
        for member, state in self.members.items():
            since = state.down_since_ms
            # A replica that came back with another disk will never be this member again.
            other_disk = disks.get(member.replica, member.disk) != member.disk
            if since is not None and other_disk:
                since = limit
            if since is None:
                since = state.silent_since_ms
            if since is not None and since <= limit:
                self._start(f"{member.replica} is lost, a spare takes its place")
                return

    def _evict(self) -> None:
        self._evict_ms = self._now_ms + self._settings.idle_session_ms // 4
        idle_before = self._now_ms - self._settings.idle_session_ms
        keys = {lookup.send.session for lookup in self._lookups.values() if lookup.send}
        floor = self.serving.evict(idle_before, self._applied_lsn(), self._loading | keys)
        self._floor_lsn = max(self._floor_lsn, floor)

    def _forget_facts(self) -> None:
        self._forget_ms = self._now_ms + FORGET_FACTS_MS
        forgotten_lsn = self.serving.forget_facts(self._applied_lsn())
        self._floor_lsn = max(self._floor_lsn, forgotten_lsn)

    def _applied_lsn(self) -> int:
        """Up to where the tables of a complete member go."""
        tables = [state.applied_lsn for state in self.members.values() if state.complete]
        return max(tables, default=0)

    def _note(self, text: str) -> None:
        self.story.note(self._now_ms, (self.slot,), text)
