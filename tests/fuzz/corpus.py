"""What fuzzing starts from: good frames of every type, and bombs."""

from __future__ import annotations

from typing import Any

import msgpack

from im_actors.core import messages as m
from im_actors.core.facts import Fact
from im_actors.core.formats import FORMATS
from im_actors.core.model import Event, Member, View, encode_event, epoch_start, make_record
from im_actors.net.link_connection import NONCE_BYTES, LinkType
from im_actors.wire.codec import FrameDecoder, encode_frame
from im_actors.wire.links import InsideType, pack_inside
from tests.wire.test_protocol import examples

MEMBERS = tuple(Member(f"replica-{n}", f"disk-{n}") for n in (1, 2, 3))
VIEW = View(3, 7, 1, "shard-1.5", MEMBERS)
EVENT = encode_event(Event("team", 4, 99 << 22, 1, "alice/phone", 2, b"hello"))
RECORDS = (epoch_start(3, 8, 7, 98 << 22), make_record(3, 9, 7, [EVENT, EVENT]))
IMAGE = m.SessionImage("team", 4, (m.DeviceImage("alice/phone", 2, ((3, 11), (4, 12))),))

INSIDE: tuple[Any, ...] = (
    m.Seal(3, 7, VIEW),
    m.Sealed(3, 7, 9, ((1, 1), (7, 8)), 8, 1, 8, True),
    m.Refused(3, 7, 8, "promised"),
    m.Prepare(3, 7, 9, 1, ((1, 1), (7, 8))),
    m.Prepared(3, 7, 9),
    m.Append(3, 7, 7, 7, 7, RECORDS),
    m.Append(3, 7, 8, 7, 8, RECORDS[1:]),
    m.Committed(3, 7, 9),
    m.Appended(3, 7, 9, 8, 8, True),
    m.Need(3, 7, 5),
    m.Fetch(3, 7, 1, 9, 65536, True),
    m.Fetched(3, 7, 8, RECORDS),
    m.Drop(3, 7, VIEW),
    m.Dropped(3, 7),
    m.LoadSessions(3, 7, 1, 8, ("team", "user:alice")),
    m.SessionsLoaded(3, 7, 1, True, (IMAGE, m.SessionImage("empty", 0, ()))),
    m.FindKey(3, 7, 2, 8, "team", "alice/phone", 1),
    m.KeyFound(3, 7, 2, True, 3, 97 << 22, 11),
    m.LoadFacts(3, 7, 3, 8, "group:g", ("m/alice", "m/bob")),
    m.FactsLoaded(3, 7, 3, True, (Fact("m/alice", 4, 0, b"x"), Fact("m/bob", 5, 0, None))),
    m.FindEvent(3, 7, 4, 8, "team", 4),
    m.EventFound(3, 7, 4, True, 4, 99 << 22, 1, "alice/phone"),
)
"""One of each message of the core that travels between actors, two of appends."""
COLUMNS: tuple[Any, ...] = tuple(
    message
    for several in (
        [m.Append(s, 7, 8, 7, 8, (make_record(s, 9, 7, [EVENT]),)) for s in (1, 2)],
        [m.Committed(s, 7, 9) for s in (3, 4)],
        [m.Appended(s, 7, 9, 8, 8, s == 1) for s in (1, 2)],
    )
    for message in several
)
"""Of these several in a row travel together."""


def decoded(frame: bytes) -> list[Any]:
    (message,) = FrameDecoder(len(frame)).feed(frame)
    return message


PROTOCOL: list[list[Any]] = [example.message for example in examples()]
"""The examples of PROTOCOL.md."""
FROM_CLIENTS = [message for message in PROTOCOL if message[0] < 64]
BETWEEN_ACTORS: list[list[Any]] = [
    *(decoded(pack_inside(InsideType.REQUESTS, [one])) for one in INSIDE),
    decoded(pack_inside(InsideType.ANSWERS, INSIDE)),
    decoded(pack_inside(InsideType.REQUESTS, COLUMNS)),
]
HANDSHAKE: list[list[Any]] = [
    [
        int(LinkType.HELLO),
        FORMATS.newest,
        "gateway",
        "gateway-1",
        "gateway-1.5",
        b"n" * NONCE_BYTES,
    ],
    [
        int(LinkType.CHALLENGE),
        FORMATS.newest,
        "shard",
        "shard-1",
        "shard-1.5",
        b"n" * NONCE_BYTES,
        b"p" * 32,
    ],
    [int(LinkType.PROOF), b"p" * 32],
    [int(LinkType.ACCEPTED)],
    [int(LinkType.PING), 7],
    [int(LinkType.PONG), 7],
    [70, 304, "another secret"],
]


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


BOMBS: dict[str, bytes] = {
    "a frame of 4 GiB": b"\xff\xff\xff\xff\x92\x06",
    "a frame just above the limit": (1_048_577).to_bytes(4, "big") + b"\x92\x06\x01",
    "an array of 4 Gi elements": framed(b"\x92\x02\xdd\xff\xff\xff\xff"),
    "a map of 4 Gi elements": framed(b"\x92\x02\xdf\xff\xff\xff\xff"),
    "a bin of 4 GiB": framed(b"\x92\x02\xc6\xff\xff\xff\xff"),
    "a str of 4 GiB": framed(b"\x92\x02\xdb\xff\xff\xff\xff"),
    "an ext of 4 GiB": framed(b"\x92\x02\xc9\xff\xff\xff\xff\x05"),
    "arrays in arrays": framed(b"\x92\x02" + b"\x91" * 100_000),
    "maps in maps": framed(b"\x92\x02" + b"\x81\xa1k" * 100_000),
    "arrays that claim more than they hold": framed(b"\xdc\x20\x00" * 1_023),
    "a client's version of a thousand lists": framed(b"\x96\x01" + b"\x91" * 1_000 + b"\x90" * 5),
    "a link's version of a thousand lists": framed(
        b"\x96\xcc\x80" + b"\x91" * 1_000 + b"\x90" + b"\xa1x" * 3 + b"\xc4\x10" + b"n" * 16
    ),
    "an error that is a thousand lists": framed(b"\x93\x46\x01" + b"\x91" * 1_000 + b"\x90"),
    "many empty arrays": framed(b"\x92\x02" + b"\xdc\x03\xe8" + b"\x90" * 1_000),
}
"""Frames that claim much and hold little."""


def all_frames() -> list[bytes]:
    """Every good frame."""
    return [encode_frame(m) for m in (*PROTOCOL, *BETWEEN_ACTORS, *HANDSHAKE)]


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 127, 128, 255, 256, -129, 65_536),
    *(2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 1.5, float("nan")),
    *("", "x", "team", "/", "a\nb", "\x00", "\u202e", "👋" * 40, "x" * 129, "x" * 321, "x" * 1_025),
    *(b"", b"x", b"\xff\xfe", b"x" * 65_536, b"x" * 65_537, EVENT),
    *([], {}, [[]], [[[]]], {"k": []}, [0] * 300, nested(20), nested(60)),
    *(msgpack.ExtType(5, b""), msgpack.ExtType(5, b"x" * 9), msgpack.Timestamp(1)),
)
"""What fields should not hold, or just may."""
