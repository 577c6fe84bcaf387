"""How the values of facts are packed: msgpack arrays that begin with the version of their form."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgpack

from im_actors.core.model import pack
from im_actors.errors import CorruptData, NewerFormat

ROW_VERSION = 1


def pack_row(fields: Iterable[Any]) -> bytes:
    return pack((ROW_VERSION, *fields))


def unpack_row(what: str, data: bytes, count: int) -> list[Any]:
    """The ``count`` fields of a row. NewerFormat or CorruptData tell what is wrong with it."""
    try:
        fields: list[Any]
        version, *fields = msgpack.unpackb(data, raw=False)
    except Exception:
        raise CorruptData(f"{what}: the row is no msgpack array, or an empty one") from None
    if type(version) is not int or version < 1:
        raise CorruptData(f"{what}: the row has no version")
    if version > ROW_VERSION:
        raise NewerFormat(
            f"{what}: the row has version {version}, this program knows up to {ROW_VERSION}: "
            "upgrade this server"
        )
    if len(fields) != count:
        raise CorruptData(f"{what}: the row has {len(fields)} fields instead of {count}")
    return fields
