"""The SDK: a durable outbox, a gapless inbox, and one connection that comes back by itself.

``Client`` is for asyncio; ``im_actors.client.sync.Client`` has the same calls for plain programs.
"""

from im_actors.client.batches import Batches, BatchInfo, ChunkOutcome
from im_actors.client.client import LIVE, Client
from im_actors.client.config import ClientConfig
from im_actors.client.conversations import (
    Conversation,
    ConversationList,
    Device,
    GroupInfo,
    Inputs,
    Member,
    MemberList,
    Receipts,
    Signal,
    Unread,
)
from im_actors.client.groups import Groups
from im_actors.client.reader import Follower
from im_actors.client.results import Ack, Page, Sent, SessionInfo, Status, Where
from im_actors.client.shown import Shown
from im_actors.core.model import Event, EventKind
from im_actors.core.outbox_words import SendState
from im_actors.errors import (
    BadRequest,
    CorruptData,
    DiskFailed,
    Forbidden,
    ImError,
    KeyConflict,
    NewerFormat,
    NotFound,
    NotReachable,
    Overloaded,
    RequestError,
    RetryableError,
    SetupError,
    ShuttingDown,
    TooLarge,
    TooLate,
    Unauthenticated,
    Unknown,
    UnknownVersion,
    WrongDirectory,
)

__all__ = [
    "LIVE",
    "Ack",
    "BadRequest",
    "BatchInfo",
    "Batches",
    "ChunkOutcome",
    "Client",
    "ClientConfig",
    "Conversation",
    "ConversationList",
    "CorruptData",
    "Device",
    "DiskFailed",
    "Event",
    "EventKind",
    "Follower",
    "Forbidden",
    "GroupInfo",
    "Groups",
    "ImError",
    "Inputs",
    "KeyConflict",
    "Member",
    "MemberList",
    "NewerFormat",
    "NotFound",
    "NotReachable",
    "Overloaded",
    "Page",
    "Receipts",
    "RequestError",
    "RetryableError",
    "SendState",
    "Sent",
    "SessionInfo",
    "SetupError",
    "Shown",
    "ShuttingDown",
    "Signal",
    "Status",
    "TooLarge",
    "TooLate",
    "Unauthenticated",
    "Unknown",
    "UnknownVersion",
    "Unread",
    "Where",
    "WrongDirectory",
]
