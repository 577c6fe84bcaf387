"""What is fuzzed without a socket. A target takes bytes and raises when a property is broken:
only errors of ours, the same for the whole and for its pieces, within the limits."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from im_actors.errors import ImError, ProtocolViolation
from im_actors.net import link_connection as lc
from im_actors.net import link_server
from im_actors.wire import answers, messages, queries
from im_actors.wire.codec import HEADER_BYTES, FrameDecoder, encode_frame
from im_actors.wire.limits import CLIENT_ARRAY_ITEMS_MAX, Limits
from im_actors.wire.links import InsideType, pack_inside, read_inside

FRAME_BYTES = 65_536
"""Small enough that the limit is met."""
LIMITS = Limits()

CHECKS: dict[int, Callable[[list[Any]], Any]] = {
    messages.HELLO: messages.check_hello,
    messages.SEND: lambda message: messages.check_send(message, LIMITS),
    messages.FOLLOW: lambda message: messages.check_follow(message, LIMITS),
    messages.UNFOLLOW: lambda message: messages.check_unfollow(message, LIMITS),
    messages.PULL: lambda message: messages.check_pull(message, LIMITS),
    messages.PING: messages.check_ping,
    messages.BYE: messages.check_bye,
    messages.QUERY: lambda message: queries.check_arguments(queries.check_query(message)),
    messages.SIGNAL: queries.check_signal,
}
READERS: dict[int, Callable[[list[Any]], Any]] = {
    messages.WELCOME: answers.read_welcome,
    messages.ACK: answers.read_acks,
    messages.NACK: answers.read_nacks,
    messages.EVENTS: answers.read_events,
    messages.PONG: answers.read_pong,
    messages.ERROR: answers.read_error,
    messages.SERVER_BYE: answers.read_bye,
    messages.HEADS: answers.read_heads,
    messages.PUSH: answers.read_push,
    messages.ANSWER: lambda message: _value(queries.read_answer(message)),
    messages.SIGNALED: queries.read_signaled,
}


def _value(answer: queries.Answer) -> None:
    """The value of an answer, read as that of every query, and so is each row of it."""
    rows = answer.value[1] if type(answer.value) is list and len(answer.value) > 1 else []
    for value in (answer.value, *(rows if type(rows) is list else ())):
        for read in (queries.read_row, queries.read_overlays):
            with contextlib.suppress(ImError):
                read(value)


def pieces(data: bytes) -> Iterator[bytes]:
    """The data in parts whose sizes follow from the data, byte by byte when it is short."""
    sizes = hashlib.blake2b(data).digest() if len(data) > 64 else b"\x01"
    at = turn = 0
    while at < len(data):
        size = 1 + sizes[turn % len(sizes)] * (len(data) // 2048 + 1) // 2
        yield data[at : at + size]
        at += size
        turn += 1


def fed(parts: Iterator[bytes], greeting: bool = False) -> tuple[list[list[Any]], ImError | None]:
    """All messages, and the error that ended them. ``greeting``: the first one by itself."""
    decoder = FrameDecoder(FRAME_BYTES, CLIENT_ARRAY_ITEMS_MAX)
    if greeting:
        decoder.greet(FRAME_BYTES, CLIENT_ARRAY_ITEMS_MAX)
    found: list[list[Any]] = []
    for part in parts:
        found += decoder.feed(part)
        if found and decoder.greeting:
            assert len(found) == 1
            found += decoder.go_on(FRAME_BYTES, CLIENT_ARRAY_ITEMS_MAX)
        assert decoder.pending_bytes <= HEADER_BYTES + FRAME_BYTES
        if decoder.error is not None:
            assert decoder.pending_bytes == 0
            break
    return found, decoder.error


def codec(data: bytes) -> None:
    """The frames of clients and of servers, decoded and read by either side."""
    found, error = fed(iter([data]))
    for same, same_error in (fed(pieces(data)), fed(iter([data]), greeting=True)):
        assert equal(same, found)
        assert type(same_error) is type(error), (same_error, error)
    assert error is None or isinstance(error, ImError)
    for message in found:
        kind = message[0]
        with contextlib.suppress(ImError):
            messages.check_hello(message)
        with contextlib.suppress(ImError):
            checked = CHECKS.get(kind, messages.refuse_type)(message)
            if kind == messages.SEND:
                _sends(checked, len(message[1]))
        with contextlib.suppress(ImError):
            READERS.get(kind, answers.read_welcome)(message)


def equal(one: Any, other: Any) -> bool:
    """``==`` for what is nested too deeply for it; a NaN equals itself."""
    pairs = [(one, other)]
    while pairs:
        left, right = pairs.pop()
        if type(left) is not type(right):
            return False
        if type(left) is dict:
            left, right = [*left, *left.values()], [*right, *right.values()]
        if type(left) is list:
            if len(left) != len(right):
                return False
            pairs += zip(left, right, strict=True)
        elif left != right and left == left:
            return False
    return True


def _sends(sends: messages.Sends, count: int) -> None:
    """Each entry is accepted or refused, and what is refused can be told."""
    assert len(sends.accepted) + len(sends.refused) == count
    for part in messages.in_batches(sends.refused):
        assert answers.read_nacks(FrameDecoder().feed(encode_frame(messages.nacks(part)))[0])
    for session, n, _kind, body in sends.accepted:
        assert messages.check_known_session(session) == session
        assert 0 < n <= messages.NUMBER_MAX
        assert len(body) <= LIMITS.body_bytes


def link(data: bytes) -> None:
    """What travels between actors that have proved themselves."""
    found, error = fed(iter([data]))
    assert error is None or isinstance(error, ImError)
    for message in found:
        _inside(message)


def _inside(message: list[Any]) -> None:
    try:
        read = read_inside(message[1] if len(message) > 1 else [])
    except ProtocolViolation:
        return
    assert read_inside(decoded_rows(pack_inside(InsideType.REQUESTS, read))) == read


def decoded_rows(frame: bytes) -> Any:
    (message,) = FrameDecoder(len(frame)).feed(frame)
    return message[1]


class FakeTransport(asyncio.Transport):
    """Counts what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = 0
        self.ended = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += len(data)

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def resume_reading(self) -> None:
        pass


_loop = asyncio.new_event_loop()
_ME = lc.PeerInfo("shard", "shard-1", "shard-1.5")


def handshake(data: bytes) -> None:
    """A stranger at the door of a shard or a replica."""
    _loop.run_until_complete(_shake(data))


async def _shake(data: bytes) -> None:
    def handler(peer: lc.PeerInfo, connection: lc.LinkConnection) -> Any:
        raise AssertionError(f"{peer} came in without the secret")

    door = link_server._Accepted(_ME, b"s" * 32, lc.LinkConfig(), handler)
    transport = FakeTransport()
    door.connection_made(transport)
    for part in pieces(data):
        door.data_received(part)
        assert door._decoder.pending_bytes <= HEADER_BYTES + lc.HANDSHAKE_FRAME_BYTES_MAX
        if transport.ended:
            break
    assert transport.written <= 2 * lc.HANDSHAKE_FRAME_BYTES_MAX
    if not transport.ended:
        door.eof_received()
    door.connection_lost(None)
    assert door.lost
    assert not door.up


TARGETS: dict[str, Callable[[bytes], None]] = {
    "codec": codec,
    "link": link,
    "handshake": handshake,
}
