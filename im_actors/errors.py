"""Every error of im_actors, in one tree.

    ImError
    ├── RequestError            1xx  yours: the same request will be refused again
    │   ├── BadRequest          100
    │   ├── TooLarge            101
    │   ├── OutOfOrder          102  (the SDK mends it by itself)
    │   ├── KeyConflict         103
    │   ├── Unauthenticated     110
    │   ├── Forbidden           111
    │   ├── NotFound            112
    │   ├── TooLate             113
    │   ├── UnknownVersion      120
    │   └── ProtocolViolation   121
    ├── RetryableError          2xx  ours: try again, nothing is lost by it
    │   ├── Overloaded          200
    │   ├── RateLimited         201
    │   ├── SlotMoving          202
    │   ├── Unknown             203  outcome unknown: ask again with the same key
    │   ├── NotReachable        204
    │   ├── ShuttingDown        205
    │   └── MonthAway           206
    └── FatalError              3xx  ours: an operator has to act
        ├── CorruptData         300
        ├── WrongDirectory      301
        ├── NewerFormat         302
        ├── DiskFailed          303
        ├── LinkRefused         304
        ├── RolledBack          305
        ├── InvariantBroken     306
        └── SetupError          310

An error is *definite* when the request had no effect and will have none; "unknown" is never
reported as "failed" (design section 1, P6).
"""

from __future__ import annotations

from typing import ClassVar


class ImError(Exception):
    """Base of all errors. ``str(error)`` says what happened and what to do about it.

    ``retry_after_ms`` is the server's wish for the next try, 0 when it has none.
    """

    code: ClassVar[int] = 0
    retryable: ClassVar[bool] = False
    definite: ClassVar[bool] = True

    def __init__(self, detail: str = "", retry_after_ms: int = 0) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_ms = retry_after_ms

    def __reduce__(self) -> tuple[type[ImError], tuple[str, int]]:
        # Ray carries errors between processes by pickle.
        return type(self), (self.detail, self.retry_after_ms)

    def __str__(self) -> str:
        return self.detail or type(self).__name__


class RequestError(ImError):
    """The request is at fault; the same request will be refused again."""


class BadRequest(RequestError):
    """A field has the wrong type, is empty, or holds what it may not hold."""

    code = 100


class TooLarge(RequestError):
    """A body, an id or a frame is above its limit."""

    code = 101


class OutOfOrder(RequestError):
    """The device counter leaves a gap: an earlier send of this device has to come first."""

    code = 102


class KeyConflict(RequestError):
    """The key (session, device, n) already names a message with another body."""

    code = 103


class Unauthenticated(RequestError):
    """The token is missing, forged or expired."""

    code = 110


class Forbidden(RequestError):
    """The token is good and does not allow this."""

    code = 111


class NotFound(RequestError):
    """What the request names does not exist: a group, a message to be recalled."""

    code = 112


class TooLate(RequestError):
    """The time for it is over: a recall or an edit comes too long after the message."""

    code = 113


class UnknownVersion(RequestError):
    """The peer speaks a protocol version that this side does not."""

    code = 120


class ProtocolViolation(RequestError):
    """A frame that the protocol does not allow; the connection is closed."""

    code = 121


class RetryableError(ImError):
    """The server's side cannot do it now; the same request may succeed later."""

    retryable = True


class Overloaded(RetryableError):
    """A bounded queue is full; refused before anything was numbered."""

    code = 200


class RateLimited(RetryableError):
    """This device sends faster than it may."""

    code = 201


class SlotMoving(RetryableError):
    """The slot is changing its owner; nothing was accepted."""

    code = 202


class Unknown(RetryableError):
    """The outcome is not known. Ask again with the same key: it cannot be doubled."""

    code = 203
    definite = False


class NotReachable(RetryableError):
    """No server, or no copy of the data, answers."""

    code = 204
    definite = False


class ShuttingDown(RetryableError):
    """The server is stopping; reconnect."""

    code = 205


class MonthAway(RetryableError):
    """The directory that a month of history was moved to is not there, on any copy that was asked:
    an operator has to mount it."""

    code = 206


class FatalError(ImError):
    """An operator has to act; the message says on what."""


class CorruptData(FatalError):
    """A checksum or a file structure is wrong."""

    code = 300


class WrongDirectory(FatalError):
    """A data directory belongs to another cluster, replica or disk, or is in use."""

    code = 301


class NewerFormat(FatalError):
    """A file was written by a newer version of im_actors."""

    code = 302


class DiskFailed(FatalError):
    """A write or an fsync failed: full, read-only or broken. Never retried on the same handle."""

    code = 303
    definite = False


class LinkRefused(FatalError):
    """The other actor has another cluster secret."""

    code = 304


class RolledBack(FatalError):
    """The view store offered an older view than a replica has seen."""

    code = 305


class InvariantBroken(FatalError):
    """One of I1 to I9 of the design does not hold: a bug or a broken disk."""

    code = 306


class SetupError(FatalError):
    """The command line, a configuration or the environment is wrong."""

    code = 310


def _tree(root: type[ImError]) -> list[type[ImError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in _tree(child))]


BY_CODE: dict[int, type[ImError]] = {error.code: error for error in _tree(ImError) if error.code}


def error_for(code: int, detail: str = "", retry_after_ms: int = 0) -> ImError:
    """The error that a code on the wire stands for.

    A code that this version does not know keeps its range's meaning.
    """
    ranges = {1: RequestError, 2: RetryableError, 3: FatalError}
    kind = BY_CODE.get(code) or ranges.get(code // 100, ImError)
    return kind(detail or f"error {code}", retry_after_ms)
