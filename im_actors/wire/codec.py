"""Frames: a 4-byte big-endian length, then one msgpack array whose first element is its type.

Sans-I/O: bytes go in, messages come out. The decoder is made for two extremes, many small frames in
one read and one large frame over many reads, and copies neither more often than once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from struct import Struct
from typing import Any, NoReturn

import msgpack

from im_actors.errors import ImError, ProtocolViolation, TooLarge

HEADER_BYTES = 4
FRAME_BYTES_MAX = 1_048_576
"""Most bytes of msgpack in one frame; the 4 bytes of the header are not counted."""
ARRAY_ITEMS_MAX = 131_072
"""Most elements of one array. msgpack reserves an array's memory when it reads its length, before
a single element has arrived, so a connection that is not trusted gets a tighter limit."""
MAP_ITEMS_MAX = 1_024

Message = list[Any]
"""A decoded message: a list whose first element is the int that names its type."""

_header = Struct(">I")
_read_length = _header.unpack_from
_write_length = _header.pack
_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def encode_frame(message: Sequence[Any], frame_bytes_max: int = FRAME_BYTES_MAX) -> bytes:
    """One message as one frame. TooLarge when the peer would refuse it."""
    payload: bytes = _pack(message)
    size = len(payload)
    if size > frame_bytes_max:
        raise TooLarge(f"a frame of {size} bytes, the limit is {frame_bytes_max}")
    return _write_length(size) + payload


class FrameDecoder:
    """Turns the bytes of one connection back into messages.

    ``feed`` returns every good message, also when a bad frame follows: the frame that broke the
    protocol is then in ``error``, and feeding on raises it. So what arrived before the violation
    is carried out, and nothing after it.
    """

    __slots__ = (
        "_limits",
        "_pending",
        "_stream",
        "_wanted",
        "error",
        "frame_bytes_max",
        "greeting",
    )

    def __init__(
        self, frame_bytes_max: int = FRAME_BYTES_MAX, array_items_max: int = ARRAY_ITEMS_MAX
    ) -> None:
        self.frame_bytes_max = frame_bytes_max
        self.greeting = False
        """Between ``greet`` and ``go_on``."""
        self.error: ImError | None = None
        self._pending = bytearray()
        """The start of a frame whose rest has not arrived; never more than one frame, and while
        greeting what came with it."""
        self._wanted = 0
        """Bytes that the pending frame has when it is complete; 0 until its header is."""
        self._limits, self._stream = _unpackers(frame_bytes_max, array_items_max)

    @property
    def pending_bytes(self) -> int:
        """Bytes of a frame that has begun and not ended. Not 0 at the end of a stream: cut off."""
        return len(self._pending)

    def greet(self, frame_bytes_max: int, array_items_max: int) -> None:
        """The peer is a stranger: until ``go_on`` each ``feed`` decodes one frame at most, within
        these tighter limits, and what follows it stays as it came. So a stranger's bytes cost next
        to nothing, also when they come right behind a good greeting."""
        self.greeting = True
        self._set_limits(frame_bytes_max, array_items_max)

    def go_on(self, frame_bytes_max: int, array_items_max: int) -> list[Message]:
        """The peer is known, these are its limits: the messages that came with its greeting."""
        self.greeting = False
        self._set_limits(frame_bytes_max, array_items_max)
        data, self._pending = bytes(self._pending), bytearray()
        return self.feed(data)

    def feed(self, data: bytes) -> list[Message]:
        """All messages that ``data`` completes, in order. Look at ``error`` after each call."""
        if self.error is not None:
            raise self.error
        messages: list[Message] = []
        try:
            if self.greeting:
                self._decode_first(data, messages)
                return messages
            start = self._complete_pending(data, messages) if self._pending else 0
            if start < len(data):
                self._decode(data, start, messages)
        except ImError as error:
            self.error = error
            self._pending = bytearray()
        return messages

    def forget(self) -> None:
        """Nothing is fed any more: let go of what was not decoded."""
        self._pending = bytearray()

    def _set_limits(self, frame_bytes_max: int, array_items_max: int) -> None:
        self.frame_bytes_max = frame_bytes_max
        self._limits, self._stream = _unpackers(frame_bytes_max, array_items_max)

    def _decode_first(self, data: bytes, messages: list[Message]) -> None:
        """Decode the frame that ``_pending`` and ``data`` begin with, if it is complete."""
        pending = self._pending
        pending += data
        if len(pending) < HEADER_BYTES:
            return
        end = HEADER_BYTES + self._checked_length(pending)
        if len(pending) >= end:
            messages.append(self._one(memoryview(bytes(pending[HEADER_BYTES:end]))))
            del pending[:end]

    def _complete_pending(self, data: bytes, messages: list[Message]) -> int:
        """Add to the pending frame what ``data`` has of it; returns where the next frame starts."""
        pending = self._pending
        start = 0
        if not self._wanted:
            start = HEADER_BYTES - len(pending)
            pending += data[:start]
            if len(pending) < HEADER_BYTES:
                return len(data)
            self._wanted = HEADER_BYTES + self._checked_length(pending)
        end = start + self._wanted - len(pending)
        pending += memoryview(data)[start:end]
        if len(pending) < self._wanted:
            return len(data)
        self._pending, self._wanted = bytearray(), 0
        messages.append(self._one(memoryview(pending)[HEADER_BYTES:]))
        return end

    def _decode(self, data: bytes, start: int, messages: list[Message]) -> None:
        """Decode the whole frames from ``start`` on and keep what is left of the last one."""
        size = len(data)
        if size - start >= HEADER_BYTES:
            length = self._checked_length(data, start)
            if start + HEADER_BYTES + length == size:
                messages.append(self._one(memoryview(data)[start + HEADER_BYTES :]))
                return
            if start + HEADER_BYTES + length < size:
                start += self._many(memoryview(data)[start:], messages)
        if start < size:
            self._pending += memoryview(data)[start:]
            if size - start >= HEADER_BYTES:
                self._wanted = HEADER_BYTES + self._checked_length(data, start)

    def _one(self, payload: memoryview) -> Message:
        """The message of exactly one frame."""
        try:
            message = self._limits(payload)
        except Exception as error:
            # msgpack names its errors in a dozen ways; all of them mean a frame that is broken.
            raise _broken(error) from None
        if type(message) is not list or not message or type(message[0]) is not int:
            raise _not_a_message(message)
        return message

    def _many(self, data: memoryview, messages: list[Message]) -> int:
        """Decode all whole frames of ``data``; returns how many bytes they are.

        One streaming unpacker over the read costs about half of one ``unpackb`` per frame. It does
        not know where a frame ends, so its position is held against each header.
        """
        size = len(data)
        stream = self._stream(max_buffer_size=size, read_size=size)
        stream.feed(data)
        read_bytes, unpack, tell, append = (
            stream.read_bytes,
            stream.unpack,
            stream.tell,
            messages.append,
        )
        end = 0
        frame_bytes_max = self.frame_bytes_max
        while size - end >= HEADER_BYTES:
            (length,) = _read_length(data, end)
            if length > frame_bytes_max:
                raise _too_large(length, frame_bytes_max)
            next_end = end + HEADER_BYTES + length
            if next_end > size:
                break
            read_bytes(HEADER_BYTES)
            try:
                message = unpack()
            except Exception as error:
                raise _broken(error) from None
            if tell() != next_end:
                raise ProtocolViolation("a frame's length and its msgpack array's do not agree")
            if type(message) is not list or not message or type(message[0]) is not int:
                raise _not_a_message(message)
            append(message)
            end = next_end
        return end

    def _checked_length(self, data: bytes | bytearray, start: int = 0) -> int:
        length: int = _read_length(data, start)[0]
        if length > self.frame_bytes_max:
            raise _too_large(length, self.frame_bytes_max)
        return length


@functools.lru_cache(maxsize=64)
def _unpackers(frame_bytes_max: int, array_items_max: int) -> tuple[Any, Any]:
    """The two doors to msgpack, with every limit set: one frame, and a stream of them."""
    limits = {
        "raw": False,
        "strict_map_key": True,
        "ext_hook": _no_extension,
        "max_str_len": frame_bytes_max,
        "max_bin_len": frame_bytes_max,
        "max_array_len": array_items_max,
        "max_map_len": MAP_ITEMS_MAX,
        "max_ext_len": 0,
    }
    one = functools.partial(msgpack.unpackb, **limits)
    return one, functools.partial(msgpack.Unpacker, **limits)


def _no_extension(code: int, _data: bytes) -> NoReturn:
    # max_ext_len 0 still lets an extension of no bytes through.
    raise ValueError(f"extension type {code}")


def _broken(error: Exception) -> ProtocolViolation:
    return ProtocolViolation(
        f"a frame is not a msgpack array within the limits: {str(error) or type(error).__name__}"
    )


def _not_a_message(message: object) -> ProtocolViolation:
    if type(message) is not list:
        return ProtocolViolation(f"a frame holds {type(message).__name__}, not an array")
    return ProtocolViolation("a message must begin with an integer that names its type")


def _too_large(length: int, frame_bytes_max: int) -> TooLarge:
    return TooLarge(f"a frame of {length} bytes, the limit is {frame_bytes_max}")
