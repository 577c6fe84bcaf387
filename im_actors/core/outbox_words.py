"""What goes into the outbox machine and what comes out of it; see ``core.outbox``.

Events are past tense, effects are imperative; the effects of one call are carried out in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from im_actors.core.model import DEVICE_WINDOW
from im_actors.errors import ImError


class SendState(StrEnum):
    """Where a send is; see ``core.outbox``."""

    SAVING = "saving"
    PENDING = "pending"
    IN_FLIGHT = "in flight"
    ACKED = "acked"
    REFUSED = "refused"


class OutboxRow(NamedTuple):
    """A send as it is stored. Its first four fields are an entry of a SEND frame."""

    session: str
    n: int
    kind: int
    body: bytes
    created_ms: int


AckRow = tuple[str, int, int, int, int, int]
"""One row of an ACK frame: (session, n, seq, epoch, copies, time_ms)."""


class NackRow(NamedTuple):
    """One row of a NACK frame."""

    session: str
    n: int
    code: int
    retry_after_ms: int
    expected_n: int
    detail: str


class RowView(NamedTuple):
    """What is known about a row that is not ACKed yet; see ``Outbox.row``."""

    row: OutboxRow
    state: SendState
    attempts: int
    sent_ms: int
    error: ImError | None


Key = tuple[str, int]
"""(session, n)"""


# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Restored:
    """The store was opened: its rows (any order) and the next n of each session it ever used."""

    rows: Iterable[OutboxRow]
    next_n: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Submitted:
    """The user sends. Raises BadRequest, TooLarge or Overloaded; then no n was used up."""

    session: str
    kind: int
    body: bytes
    created_ms: int
    """Since the Unix epoch; for people, no decision rests on it but the order of sessions."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The store has the rows of earlier Store effects on disk."""

    keys: Iterable[Key]


@dataclass(frozen=True, slots=True)
class Connected:
    """The server said WELCOME."""

    window: int = DEVICE_WINDOW


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone; what was in flight may have arrived or not."""


@dataclass(frozen=True, slots=True)
class Acked:
    rows: Iterable[AckRow]


@dataclass(frozen=True, slots=True)
class Nacked:
    rows: Iterable[NackRow]


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed; due when ``deadline_ms()`` has come."""


Event = Restored | Submitted | Stored | Connected | Disconnected | Acked | Nacked | Ticked


# --- effects --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoreRow:
    """Write a row, and the session's next n, durably; then feed ``Stored`` back.

    In one transaction with it the row ``replaces`` (of the same session) is removed: the original
    of a VOID, or a row that goes on under another n. Store effects are carried out in order.
    """

    row: OutboxRow
    replaces: int = 0


@dataclass(frozen=True, slots=True)
class SendRows:
    """Put rows on the connection, in this order. Every one of them has been stored."""

    rows: list[OutboxRow]


@dataclass(frozen=True, slots=True)
class Settle:
    """These sends are ACKed: tell the user. A row is settled at most once."""

    acks: list[AckRow]


@dataclass(frozen=True, slots=True)
class Refuse:
    """This send is refused for good, and the VOID that says so is on disk: tell the user."""

    session: str
    n: int
    error: ImError


@dataclass(frozen=True, slots=True)
class Renumber:
    """The send goes on under another n. Comes before the StoreRow of the new one."""

    session: str
    n: int
    new_n: int


@dataclass(frozen=True, slots=True)
class DeleteRows:
    """Remove rows from the store. Need not be durable: a row that comes back is only resent."""

    keys: list[Key]


@dataclass(frozen=True, slots=True)
class Warn:
    """Something that the user's operator should read; the outbox goes on by itself."""

    error: ImError


Effect = StoreRow | SendRows | Settle | Refuse | Renumber | DeleteRows | Warn
