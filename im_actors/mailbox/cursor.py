"""Cursors: where the next page of a conversation list begins, as an opaque text for clients.

A cursor names the last row that was shown, by rank and session, and not a number of rows: whatever
happens above it, the next page begins behind that place.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import NamedTuple

import msgpack

from im_actors.core.model import pack
from im_actors.errors import BadRequest
from im_actors.mailbox.rows import TOP, Place, place_of

CURSOR_BYTES_MAX = 1_024
_VERSION = 1


class Query(NamedTuple):
    """What to list. ``label`` "" is the list itself, without what is folded under a label; None is
    all of it."""

    label: str | None = ""
    unread_only: bool = False
    after: Place = TOP
    limit: int = 25


def write_cursor(query: Query, after: Place) -> str:
    """The cursor with which ``query`` goes on behind ``after``."""
    fields = pack((_VERSION, query.label, query.unread_only, -after[0], after[1]))
    data = zlib.crc32(fields).to_bytes(4, "big") + fields
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def read_cursor(text: str, query: Query) -> Query:
    """``query`` from the cursor on. BadRequest: the text is no cursor, or one of another list."""
    if len(text) > CURSOR_BYTES_MAX:
        raise BadRequest(f"a cursor has at most {CURSOR_BYTES_MAX} characters")
    try:
        data = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        if len(data) < 5 or zlib.crc32(data[4:]) != int.from_bytes(data[:4], "big"):
            raise BadRequest("this is not a cursor that this service has given")
        fields = msgpack.unpackb(data[4:], raw=False)
        version, label, unread_only, rank, session = fields
    except (UnicodeEncodeError, binascii.Error, ValueError, msgpack.UnpackException):
        raise BadRequest("this is not a cursor that this service has given") from None
    if version != _VERSION:
        raise BadRequest(f"a cursor of format {version}, known is {_VERSION}: begin at the top")
    if (label, unread_only) != (query.label, query.unread_only):
        raise BadRequest("the cursor belongs to a list with another label or filter")
    if type(rank) is not int or rank < 0 or type(session) is not str:
        raise BadRequest("this is not a cursor that this service has given")
    return query._replace(after=place_of(rank, session))
