"""An owner process: what one event makes of it, and what it then wants done.

Time does not pass. Every wait of the machine is an alarm that the explorer may let go off at any
moment or never: the attribute that holds it is set to now, and the machine is given a Tick.
"""

from __future__ import annotations

from typing import Any

from im_actors.core import owner as own
from im_actors.core.model import EventKind, Member, View, decode_event
from im_actors.core.owner import Phase, SlotOwner
from im_actors.core.serving import Send, ServingLimits
from im_actors.core.takeover import ReplicaInfo
from tests.exhaustive.frozen import RANDOM, SILENCE
from tests.exhaustive.replica_node import NOW_MS, SLOT, Broken

SESSION = "team"
DEVICE = "alice/phone"


def new_owner(
    name: str, members: list[Member], settings: own.OwnerSettings, limits: ServingLimits
) -> SlotOwner:
    """An incarnation that knows all replicas and has links to them."""
    owner = SlotOwner(SLOT, name, RANDOM, settings, limits)  # type: ignore[arg-type]
    owner.story = SILENCE  # type: ignore[assignment]
    infos = tuple(ReplicaInfo(m.replica, m.disk, m.replica) for m in members)
    owner.handle(own.ReplicasKnown(infos), NOW_MS)
    for member in members:
        owner.handle(own.MemberUp(member), NOW_MS)
    _forget_what_does_not_matter(owner)
    return owner


def forgets(owner: SlotOwner) -> bool:
    """Whether it may forget the one session."""
    return owner.serving.limits.sessions_max == 0


def may_drop(owner: SlotOwner) -> bool:
    """Whether it tells former members to delete what they have, as soon as it hears of one."""
    told = owner._dropped_for == owner.epoch
    return (
        owner.phase is Phase.SERVING and not told and owner._all_complete() and bool(_spares(owner))
    )


def _spares(owner: SlotOwner) -> list[Member]:
    return [info.member for info in owner._replicas if info.member not in owner.members]


def send_of(n: int) -> Send:
    return Send((SESSION, DEVICE, n), SESSION, DEVICE, n, int(EventKind.MESSAGE), b"%d" % n)


def step(owner: SlotOwner, event: Any) -> list[Any]:
    """Let the machine take in ``event``; the effects that matter, in order."""
    if event[0] == "due":
        _let_go_off(owner, *event[1:])
        event = own.Tick()
    elif event[0] == "take":
        event = own.Take("", force=True)
    elif event[0] == "submit":
        event = own.Submitted([send_of(event[1])])
    elif event[0] == "spare up":
        event = own.MemberUp(_spares(owner)[0])
    elif event[0] == "asked":
        event = own.HeadsAsked("reader", (SESSION,))
    else:
        event = event[1]
    effects = owner.handle(event, NOW_MS)
    _forget_what_does_not_matter(owner)
    return [out for effect in effects for out in _carry_out(effect)]


def _let_go_off(owner: SlotOwner, alarm: str, turn: int = 0) -> None:
    if alarm == "attempt":
        owner._due_ms = NOW_MS
        if owner.phase is Phase.SEALING and owner.attempt is not None:
            owner.attempt.spares_due_ms = NOW_MS
    elif alarm == "commit":
        owner._tell_commit_ms = NOW_MS
    elif alarm == "lookup":
        for lookup in owner._lookups.values():
            lookup.due_ms, lookup.tries = NOW_MS, turn
    elif alarm == "idle":
        owner._evict_ms = NOW_MS


def _forget_what_does_not_matter(owner: SlotOwner) -> None:
    """Texts, waits, and what only says when or whom to ask again: the explorer tries all of it."""
    owner.reason = ""
    owner._effects = []
    owner._tries = 0
    owner._evict_ms = NOW_MS + 1
    owner._resend_ms = None
    for state in owner.members.values():
        state.commit_lsn = state.needs = 0
        if not forgets(owner):
            state.applied_lsn = 0
    for lookup in owner._lookups.values():
        lookup.tries = 0
    for session in owner.serving.sessions.values():
        session.used_ms = 0
    for event in owner.serving.pending.values():
        # Resends of one key are alike: they get the same answer.
        event.waiters = event.waiters[:1]
    if owner.phase is not Phase.SERVING and owner._lineage == 0:
        # Nothing of a former reign counts for the next one.
        owner.view = None
        owner.last_lsn = owner.commit_lsn = owner._commit_told = owner._dropped_for = 0
        owner._lookup_number = owner._floor_lsn = 0


def _carry_out(effect: Any) -> list[Any]:
    match effect:
        case own.ToReplica(member, message):
            return [("ask", member.replica, message)]
        case own.ReadView():
            return [("read",)]
        case own.SwapView(old, new):
            return [("swap", _sorted(old), _sorted(new))]
        case own.Answered(answers):
            return [("answered", a.token, a.code, a.seq, a.expected_n) for a in answers]
        case own.Published(_, _, _, events):
            decoded = [decode_event(event.data) for event in events]
            return [("published", e.session, e.seq, e.device, e.n) for e in decoded]
        case own.HeadsKnown(_, heads):
            return [("head", seq) for _, seq in heads]
        case own.Alarm(_, text):
            raise Broken(f"alarm of an owner: {text}")
    return []


def _sorted(view: View) -> View:
    return view._replace(members=tuple(sorted(view.members)))
