"""What owners and replicas say to each other (design section 5).

Named tuples, for the reason given in ``model``. Every message names its slot and its epoch; every
request may arrive late or twice, and a replica answers the second copy as it answered the first.
"""

from __future__ import annotations

from typing import NamedTuple

from im_actors.core.facts import Fact
from im_actors.core.model import Member, Record, View

Epochs = tuple[tuple[int, int], ...]
"""The epoch history of a log: (epoch, its first lsn), ascending."""


class Seal(NamedTuple):
    """Promise ``view.epoch`` to ``view.owner``, and say what you hold: promise and measurement in
    one call, so that nothing can be written in between."""

    slot: int
    epoch: int
    view: View


class Sealed(NamedTuple):
    """The promise is on disk; this is the log as it stands."""

    slot: int
    epoch: int
    last_lsn: int
    epochs: Epochs
    commit_lsn: int
    from_lsn: int
    applied_lsn: int
    complete: bool


class Refused(NamedTuple):
    """Nothing was done. ``promised`` is the epoch that the replica has promised."""

    slot: int
    epoch: int
    promised: int
    reason: str


class Prepare(NamedTuple):
    """Cut your tail back to ``keep_lsn`` and go on at ``start_lsn``.

    ``start_lsn == keep_lsn + 1`` for a member; a spare may start later and fill the hole by
    backfill. ``epochs`` is the history of the log up to ``start_lsn - 1``.
    """

    slot: int
    epoch: int
    keep_lsn: int
    start_lsn: int
    epochs: Epochs


class Prepared(NamedTuple):
    slot: int
    epoch: int
    last_lsn: int


class Append(NamedTuple):
    """Add ``records`` after (``prev_lsn``, ``prev_epoch``); or only tell the commit point."""

    slot: int
    epoch: int
    prev_lsn: int
    prev_epoch: int
    commit_lsn: int
    records: tuple[Record, ...]


class Committed(NamedTuple):
    """The commit point, for a slot that has no record to carry it. It is not answered: an owner
    that hears nothing of it sends an empty Append after a while, which is."""

    slot: int
    epoch: int
    commit_lsn: int


class Appended(NamedTuple):
    """Everything up to ``durable_lsn`` is on disk here."""

    slot: int
    epoch: int
    durable_lsn: int
    commit_lsn: int
    applied_lsn: int
    complete: bool


class Need(NamedTuple):
    """The append does not join: the log here ends before it. Send from ``from_lsn`` on."""

    slot: int
    epoch: int
    from_lsn: int


class Fetch(NamedTuple):
    """Send records ``first_lsn`` .. ``last_lsn``, at most about ``bytes_max``, at least one.

    With ``committed`` the asker knows that all of these are committed, and may ask any replica.
    That one may never have heard of it, so backfill takes what is of the epochs of its own log.
    Without, it is the owner that has sealed the replica.
    """

    slot: int
    epoch: int
    first_lsn: int
    last_lsn: int
    bytes_max: int
    committed: bool


class Fetched(NamedTuple):
    """Consecutive records from ``first_lsn`` on; none when the replica does not have them."""

    slot: int
    epoch: int
    first_lsn: int
    records: tuple[Record, ...]


class Drop(NamedTuple):
    """Delete the slot's data: all members of this ACTIVE view have all of its history."""

    slot: int
    epoch: int
    view: View


class Dropped(NamedTuple):
    slot: int
    epoch: int


class DeviceImage(NamedTuple):
    """A device's part of the dedup set: ``recent`` are (seq, body checksum) of its last sends, the
    newest, that of ``last_n``, at the end."""

    device: str
    last_n: int
    recent: tuple[tuple[int, int], ...]


class SessionImage(NamedTuple):
    """What a new owner must know of a session (design 5.4). Unknown session: ``last_seq`` 0."""

    session: str
    last_seq: int
    devices: tuple[DeviceImage, ...]


class LoadSessions(NamedTuple):
    """Read session states from tables that have applied at least ``floor_lsn``."""

    slot: int
    epoch: int
    request: int
    floor_lsn: int
    sessions: tuple[str, ...]


class SessionsLoaded(NamedTuple):
    """``ready`` is false when the tables lag behind the floor or have a hole: ask another one."""

    slot: int
    epoch: int
    request: int
    ready: bool
    images: tuple[SessionImage, ...]


class FindKey(NamedTuple):
    """Look up a send that is older than what the dedup state remembers directly."""

    slot: int
    epoch: int
    request: int
    floor_lsn: int
    session: str
    device: str
    n: int


class KeyFound(NamedTuple):
    """``seq`` 0 and ready: the key is in no event, which no honest history shows."""

    slot: int
    epoch: int
    request: int
    ready: bool
    seq: int
    key: int
    checksum: int


class LoadFacts(NamedTuple):
    """Read some facts of a session from tables that have applied at least ``floor_lsn``."""

    slot: int
    epoch: int
    request: int
    floor_lsn: int
    session: str
    keys: tuple[str, ...]


class FactsLoaded(NamedTuple):
    """The facts that there are, also those that are gone (value None); a key without a fact is in
    no event. ``ready`` as in SessionsLoaded."""

    slot: int
    epoch: int
    request: int
    ready: bool
    facts: tuple[Fact, ...]


class FindEvent(NamedTuple):
    """Read what an event is, without its body."""

    slot: int
    epoch: int
    request: int
    floor_lsn: int
    session: str
    seq: int


class EventFound(NamedTuple):
    """``seq`` 0 and ready: there is no such event. ``key`` is its message key."""

    slot: int
    epoch: int
    request: int
    ready: bool
    seq: int
    key: int
    kind: int
    device: str


ReplicaRequest = (
    Seal
    | Prepare
    | Append
    | Committed
    | Fetch
    | Drop
    | LoadSessions
    | FindKey
    | LoadFacts
    | FindEvent
)
ReplicaAnswer = (
    Sealed
    | Refused
    | Prepared
    | Appended
    | Need
    | Fetched
    | Dropped
    | SessionsLoaded
    | KeyFound
    | FactsLoaded
    | EventFound
)

__all__ = [
    "Append",
    "Appended",
    "Committed",
    "DeviceImage",
    "Drop",
    "Dropped",
    "Epochs",
    "EventFound",
    "FactsLoaded",
    "Fetch",
    "Fetched",
    "FindEvent",
    "FindKey",
    "KeyFound",
    "LoadFacts",
    "LoadSessions",
    "Member",
    "Need",
    "Prepare",
    "Prepared",
    "Refused",
    "ReplicaAnswer",
    "ReplicaRequest",
    "Seal",
    "Sealed",
    "SessionImage",
    "SessionsLoaded",
]
