"""What an owner hears and what it wants done: the words of ``core.owner``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from im_actors.core.facts import Fact
from im_actors.core.messages import ReplicaAnswer, ReplicaRequest
from im_actors.core.model import Member, Record, View
from im_actors.core.serving import Answer, PendingEvent, Send
from im_actors.core.takeover import COPY_RECORDS_MAX, ReplicaInfo


@dataclass(frozen=True, slots=True)
class OwnerSettings:
    """The waits of an owner, in milliseconds, and what a takeover copies itself."""

    seal_wait_ms: int = 500
    """How long the last members may take to answer a seal before spares are asked."""
    attempt_ms: int = 5_000
    """Longest time from a chosen log to an open one; then a new attempt."""
    retry_ms_min: int = 50
    retry_ms_max: int = 2_000
    resend_ms: int = 1_000
    """Records without an answer are sent again after this."""
    idle_commit_ms: int = 3
    """When no record follows, the commit point is told alone after this."""
    replace_after_ms: int = 4_000
    """A member out of reach, or silent about what it was sent, for longer is replaced, if there is
    a spare."""
    load_ms: int = 500
    """A member that does not answer a read within this is passed over."""
    idle_session_ms: int = 60_000
    copy_records_max: int = COPY_RECORDS_MAX
    """Committed records that a takeover copies to a spare; more are left to backfill."""

    def validate(self) -> None:
        if self.retry_ms_min > self.retry_ms_max:
            raise ValueError("retry_ms_min is above retry_ms_max")
        if self.replace_after_ms <= self.seal_wait_ms:
            raise ValueError("replace_after_ms must be above seal_wait_ms")


# What is made for each record is not frozen: that would cost three times as much.

# -- events ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Take:
    """Own this slot. With ``force`` also when it is owned already (members are to be changed)."""

    reason: str
    force: bool = False


@dataclass(frozen=True, slots=True)
class ViewRead:
    """The view store's answer to ReadView; None: it could not be read."""

    view: View | None


@dataclass(frozen=True, slots=True)
class ViewSwapped:
    """What the store holds after SwapView; None: the outcome is not known."""

    view: View | None


@dataclass(frozen=True, slots=True)
class ViewSeen:
    """Somebody says that this is the slot's view now."""

    view: View


@dataclass(slots=True)
class ReplicaAnswered:
    member: Member
    answer: ReplicaAnswer


@dataclass(frozen=True, slots=True)
class MemberUp:
    """A link to the replica with this disk is up; what was sent before may be lost."""

    member: Member


@dataclass(frozen=True, slots=True)
class MemberDown:
    member: Member


@dataclass(frozen=True, slots=True)
class ReplicasKnown:
    """All replicas that should run."""

    replicas: tuple[ReplicaInfo, ...]


@dataclass(slots=True)
class Submitted:
    """Sends came in, in the order of each device."""

    sends: list[Send]


@dataclass(slots=True)
class Noted:
    """Servers say what follows from events elsewhere: sends with the device SERVER and ``n`` 0.
    Each is answered like a send of a client."""

    notes: list[Send]


@dataclass(frozen=True, slots=True)
class HeadsAsked:
    """Somebody wants to know the last committed seq of sessions."""

    token: Any
    sessions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FactsAsked:
    """Somebody wants to know what is committed under these keys of a session. Who asks before the
    slot is served asks again when it is."""

    token: Any
    session: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LogAsked:
    """Somebody wants to read committed records of the slot. Nothing comes when nobody can give
    them: ask again, and another member is asked."""

    first_lsn: int
    last_lsn: int


@dataclass(frozen=True, slots=True)
class FrameLeaves:
    """A frame is about to go to the members anyway: say what else there is to say. Only an owner
    with something ``untold`` needs to hear of it."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


OwnerEvent = (
    Take
    | ViewRead
    | ViewSwapped
    | ViewSeen
    | ReplicaAnswered
    | MemberUp
    | MemberDown
    | ReplicasKnown
    | Submitted
    | Noted
    | HeadsAsked
    | FactsAsked
    | LogAsked
    | FrameLeaves
    | Tick
)

# -- effects -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReadView:
    """Read the slot's view, then report ViewRead: once for each ReadView, late or not."""

    slot: int


@dataclass(frozen=True, slots=True)
class SwapView:
    """Compare-and-swap the whole record, then report ViewSwapped."""

    old: View
    new: View


@dataclass(slots=True)
class ToReplica:
    """Send, if the link is up. Losing it is harmless: everything is asked again."""

    member: Member
    message: ReplicaRequest


@dataclass(slots=True)
class Answered:
    """Outcomes of sends. A code 0 is on three disks when this effect exists."""

    answers: list[Answer]


@dataclass(slots=True)
class Published:
    """Events that are committed now, in seq order, for the session's followers: all those of the
    records ``first_lsn`` .. ``last_lsn``. Records that are in none of these have no events."""

    slot: int
    first_lsn: int
    last_lsn: int
    events: list[PendingEvent]


@dataclass(frozen=True, slots=True)
class HeadsKnown:
    """Last committed seqs: [(session, seq)]. Sessions that have to be loaded come later."""

    token: Any
    heads: list[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class FactsKnown:
    """What is committed under the keys that were asked for; None: nothing, or it is gone."""

    token: Any
    facts: dict[str, Fact | None]


@dataclass(frozen=True, slots=True)
class LogKnown:
    """Committed records from ``first_lsn`` on, one at least, perhaps fewer than asked for."""

    first_lsn: int
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Activated:
    """The slot is served under this view from now on."""

    view: View


@dataclass(frozen=True, slots=True)
class SteppedDown:
    """This incarnation does not own the slot any more."""

    slot: int
    reason: str


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that must not happen did; an operator has to look."""

    slot: int
    text: str


OwnerEffect = (
    ReadView
    | SwapView
    | ToReplica
    | Answered
    | Published
    | HeadsKnown
    | FactsKnown
    | LogKnown
    | Activated
    | SteppedDown
    | Alarm
)
