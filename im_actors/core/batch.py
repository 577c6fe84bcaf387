"""Batch messages: one content for many recipients, as the session ``batch:NAME`` keeps it.

    "b"         the job: what it is, and how it stands
    "p"         how far it has come
    "m"         the body of the event that every recipient gets
    "c"         the content, where "m" has only its head
    "r/%08x"    a chunk of its recipients
    "f/%08x"    the recipients of a chunk who did not get the message, and why
    "g/%08x"    those from whom it could not be taken back

A recipient gets the message in his notice channel from the device ``SENDER/batch:NAME`` with n = 1,
and its recall with n = 2. So the key of each is fixed by the job and the recipient alone: whoever
tells it again, after whatever crash, cannot make a second one.

**Content and copies.** A short content is the body of each event. Of a longer one each event has
the head, which ends with an ellipsis, and the whole lies in "c", once: gateways put it in the place
of the head when somebody reads, and only previews show the head. A copy is written six times, in
three journals and three histories: one of 4 kB costs a recipient 25 kB of disk, a reference 3 kB.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from im_actors.core.facts import pack_request
from im_actors.core.model import Event
from im_actors.core.names import SessionKind, batch_session, session_kind, session_name
from im_actors.core.rows import pack_row, unpack_row
from im_actors.errors import CorruptData

JOB_KEY = "b"
PROGRESS_KEY = "p"
BODY_KEY = "m"
CONTENT_KEY = "c"

CHANNELS = ("daily", "high")
"""Each has a quota of its own."""
CHUNK_USERS_MAX = 500
CHUNK_BYTES_MAX = 28_000
"""The names of a chunk have to fit into a fact, and twice into an event."""
CHUNKS_MAX = 65_536
CONTENT_BYTES_MAX = 32_000
COPIED_BYTES_MAX = 512
"""A content up to this is copied into each recipient's event. Of a longer one three disks would
keep a copy for each; gateways put it in when somebody reads."""
HEAD_BYTES_MAX = 400
ELLIPSIS = "…"
NAME_BYTES_MAX = 64
"""Of a batch: it is a part of a device's name."""
PROGRESS_CHUNKS_MAX = 64
"""Most chunks that one event says the outcome of."""
WINDOW_CHUNKS = 8
"""Chunks that are told at the same time. The same everywhere and always: who ends a job has to know
how far an owner before him may have come."""

NOT_SENT = 1
"""The outcome of a recipient whose turn never came. All others are codes of ``errors``."""
MESSAGE_N, RECALL_N = 1, 2
BATCH_DEVICE = "batch:"
"""What the names of the devices begin with that batches send from: no client's do."""


class JobState(IntEnum):
    OPEN = 0
    """Recipients are still coming in."""
    RUNNING = 1
    PAUSED = 2
    DONE = 3
    CANCELLING = 4
    """Nobody gets it any more; who did is being found out."""
    CANCELLED = 5
    RECALLING = 6
    """It is being taken back from all who got it."""
    RECALLED = 7


ACTIVE = frozenset({JobState.RUNNING, JobState.PAUSED, JobState.CANCELLING, JobState.RECALLING})
"""The owner of the slot has something to do, or will have."""


class Job(NamedTuple):
    state: JobState
    sender: str
    channel: str
    notice: str
    """The recipients' notice channel: system, interaction, service."""
    dry: bool
    """Only counted and checked: nobody is told."""
    total: int
    """Recipients as announced; 0: not announced."""
    chunks: int
    recipients: int
    created_ms: int

    def to_bytes(self) -> bytes:
        return pack_row((int(self.state), *self[1:]))

    @classmethod
    def from_bytes(cls, data: bytes) -> Job:
        state, *rest = unpack_row("a batch", data, len(cls._fields))
        try:
            return cls(JobState(state), *rest)
        except ValueError:
            raise CorruptData(f"a batch has the state {state!r}") from None


class Progress(NamedTuple):
    """How far a job has come: chunks are done in order."""

    chunks: int = 0
    """Chunks of which every recipient's outcome is known."""
    sent: int = 0
    refused: int = 0
    unsent: int = 0
    """In done chunks, of a job that was cancelled."""
    settled: bool = False
    """Nobody gets the message any more."""
    recall_chunks: int = 0
    recalled: int = 0
    unrecalled: int = 0

    def to_bytes(self) -> bytes:
        return pack_row(self)

    @classmethod
    def from_bytes(cls, data: bytes | None) -> Progress:
        if data is None:
            return cls()
        return cls(*unpack_row("the progress of a batch", data, len(cls._fields)))


class Outcome(NamedTuple):
    """What became of a chunk: how many succeeded, and the others by their place in the chunk."""

    succeeded: int
    failures: tuple[tuple[int, int], ...] = ()
    """(position, code)."""

    def flat(self) -> list[int]:
        return [self.succeeded, *(number for pair in self.failures for number in pair)]


def chunk_key(chunk: int) -> str:
    return f"r/{chunk:08x}"


def failures_key(chunk: int, recall: bool = False) -> str:
    return f"{'g' if recall else 'f'}/{chunk:08x}"


def pack_names(users: Sequence[str]) -> bytes:
    return pack_row((users,))


def read_names(value: bytes) -> list[str]:
    """The recipients of a chunk."""
    return list(unpack_row("recipients", value, 1)[0])


def pack_failures(failures: Sequence[tuple[int, int]]) -> bytes:
    return pack_row(([number for pair in failures for number in pair],))


def read_failures(value: bytes | None) -> list[tuple[int, int]]:
    """(position in the chunk, code) of those for whom it failed."""
    if value is None:
        return []
    numbers = iter(unpack_row("failures", value, 1)[0])
    return list(zip(numbers, numbers, strict=True))


# -- content -----------------------------------------------------------------------------------


def event_body(content: bytes) -> bytes:
    """What each recipient's event says of a content."""
    if len(content) <= COPIED_BYTES_MAX:
        return content
    return (content[:HEAD_BYTES_MAX].decode("utf-8", "ignore") + ELLIPSIS).encode()


def batch_device(sender: str, session: str) -> str:
    """The address that a batch sends from."""
    return f"{sender}/{BATCH_DEVICE}{session_name(session)}"


def is_batch_device(device: str) -> bool:
    """Whether an address is a batch's. No client may have a device of such a name."""
    return device.partition("/")[2].startswith(BATCH_DEVICE)


def content_session(event: Event) -> str | None:
    """The batch that has the whole content of an event, under CONTENT_KEY; None: the event has it.
    A short content that ends with an ellipsis by itself has no such fact: what the event says is
    all of it."""
    if session_kind(event.session) is not SessionKind.NOTICE or not is_batch_device(event.device):
        return None
    if not event.body.endswith(ELLIPSIS.encode()):
        return None
    return batch_session(event.device.partition("/")[2].removeprefix(BATCH_DEVICE))


# -- requests ----------------------------------------------------------------------------------


def create_request(
    content: bytes, channel: str, notice: str = "system", total: int = 0, dry: bool = False
) -> bytes:
    """The body of a SEND that orders a batch."""
    return pack_request("create", content, channel, notice, total, dry)


def recipients_request(chunk: int, users: Sequence[str]) -> bytes:
    return pack_request("recipients", chunk, list(users))


def start_request() -> bytes:
    """All recipients are here: begin."""
    return pack_request("start")


def pause_request() -> bytes:
    return pack_request("pause")


def resume_request() -> bytes:
    return pack_request("resume")


def cancel_request() -> bytes:
    """Nobody else is to get it."""
    return pack_request("cancel")


def recall_request() -> bytes:
    """Nobody else is to get it, and it is to be taken back from those who did."""
    return pack_request("recall")


def progress_note(
    recall: bool, chunk: int, outcomes: Sequence[Outcome], settled: bool = False
) -> bytes:
    """The chunks from ``chunk`` on have come out so; ``settled``: and nobody gets it any more."""
    return pack_request("progress", recall, chunk, [o.flat() for o in outcomes], settled)


def chunked(users: Sequence[str]) -> list[list[str]]:
    """Users in chunks within the limits."""
    chunks: list[list[str]] = []
    size = CHUNK_BYTES_MAX
    for user in users:
        added = len(user.encode()) + 3
        if size + added > CHUNK_BYTES_MAX or len(chunks[-1]) >= CHUNK_USERS_MAX:
            chunks.append([])
            size = 0
        chunks[-1].append(user)
        size += added
    return chunks


def status_fields(job: Job, progress: Progress) -> list[object]:
    """How a batch stands, as the query ``batch`` tells it."""
    return [int(job.state), *job[1:], *progress]
