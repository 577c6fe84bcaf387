"""A session's counters and dedup state, as its owner holds them (design 5.2 step 1 and 5.4)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from enum import IntEnum
from itertools import chain

from im_actors.core.knowledge import Knowledge
from im_actors.core.messages import DeviceImage, SessionImage
from im_actors.core.model import DEVICE_WINDOW, EventKind
from im_actors.core.names import SessionKind, heard_of, session_kind


class Admission(IntEnum):
    """What becomes of a send."""

    NEW = 0
    KNOWN = 1
    GAP = 2
    CONFLICT = 3
    ANCIENT = 4
    """A resend from before what is remembered here: history knows its seq."""
    FULL = 5
    """New, and there is no room for it; or DEVICE_WINDOW sends of this device are not committed
    yet. One more would push an uncommitted one out of what is remembered, and history would be
    asked for what it cannot have."""


NEW, KNOWN, GAP = Admission.NEW, Admission.KNOWN, Admission.GAP
CONFLICT, ANCIENT, FULL = Admission.CONFLICT, Admission.ANCIENT, Admission.FULL
# An enum member costs a slow path at each look-up, and these are looked at for each message.

Admitted = tuple[Admission, int]
"""The outcome, and a number: for NEW and KNOWN the event's seq, for GAP and CONFLICT the device's
next n."""


_FREE_KIND = int(EventKind.MESSAGE)


class DeviceState:
    """The dedup state of one device in one session.

    ``sent`` has the seq and the body checksum of its last sends in turn, the newest at the end. An
    owner has a hundred thousand of these and meets them in no order: in one piece they are an
    eighth of what a deque of pairs is, and fewer cache lines.
    """

    __slots__ = ("last_n", "sent")

    def __init__(self, last_n: int = 0, recent: Sequence[tuple[int, int]] = ()) -> None:
        self.last_n = last_n
        self.sent = array("q", chain.from_iterable(recent[-DEVICE_WINDOW:]) if recent else ())

    @property
    def recent(self) -> tuple[tuple[int, int], ...]:
        """(seq, body checksum) of the last sends."""
        fields = iter(self.sent)
        return tuple(zip(fields, fields, strict=True))

    def add(self, n: int, seq: int, checksum: int) -> None:
        sent = self.sent
        assert n == self.last_n + 1 or not sent, f"n {n} follows {self.last_n}"
        self.last_n = n
        sent.append(seq)
        sent.append(checksum)
        if len(sent) > 2 * DEVICE_WINDOW:
            del sent[:2]


class SessionState:
    """One session: seqs given and committed, and the dedup set.

    ``loaded`` is false while only the replayed end of the log is known; the tables' part is merged
    in by ``merge``. ``ready`` says that the next send is decided on at once: the session is loaded,
    and no earlier send of it waits. ``last_lsn`` is the newest record that touched the session.
    """

    __slots__ = (
        "committed_seq", "devices", "free_kind", "heard", "knowledge", "last_lsn", "last_seq",
        "loaded", "name", "ready", "used_ms",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        kind = session_kind(name)
        self.free_kind = _FREE_KIND if kind is SessionKind.OPEN else -1
        """No rule is asked about events of kinds up to this one."""
        self.heard = heard_of(kind)
        self.knowledge: Knowledge | None = None
        self.last_seq = 0
        self.committed_seq = 0
        self.devices: dict[str, DeviceState] = {}
        self.last_lsn = 0
        self.loaded = self.ready = False
        self.used_ms = 0

    def admit(
        self,
        device: str,
        n: int,
        kind: int,
        checksum: int,
        room: bool = True,
        take: bool = True,
    ) -> Admitted:
        """Decide on a send and, when it is new and there is ``room``, give it its seq. Nothing can
        come in between: the check and the number are one synchronous step. Without ``take`` it is
        only said what the send is, and NEW ones are not known afterwards."""
        state = self.devices.get(device)
        last_n = state.last_n if state is not None else 0
        if n > last_n:
            if not room:
                # Also for a gap: what has to come first would be told the same.
                return FULL, 0
            if n > last_n + 1:
                return GAP, last_n + 1
            if state is None:
                if not take:
                    return NEW, self.last_seq + 1
                state = self.devices[device] = DeviceState()
            sent = state.sent
            if len(sent) == 2 * DEVICE_WINDOW and sent[0] > self.committed_seq:
                return FULL, 0
            if not take:
                return NEW, self.last_seq + 1
            self.last_seq += 1
            state.add(n, self.last_seq, checksum)
            return NEW, self.last_seq
        assert state is not None, f"n {n} of a device that sends its first"
        sent, at = state.sent, 2 * (n - state.last_n - 1)
        if len(sent) + at < 0:
            return ANCIENT, 0
        seq, known_checksum = sent[at], sent[at + 1]
        # A VOID asks what became of its n: whatever was accepted under it is the answer.
        if checksum != known_checksum and kind != EventKind.VOID:
            return CONFLICT, state.last_n + 1
        return KNOWN, seq

    def next_n(self, device: str) -> int:
        state = self.devices.get(device)
        return 1 if state is None else state.last_n + 1

    def know(self) -> Knowledge:
        """What is known of the session's state, to be added to."""
        if self.knowledge is None:
            self.knowledge = Knowledge()
        return self.knowledge

    def replay(self, seq: int, device: str, n: int, checksum: int, lsn: int) -> None:
        """Take in a committed event while the log's end is replayed after a takeover."""
        self.last_seq = self.committed_seq = seq
        self.last_lsn = lsn
        state = self.devices.get(device)
        if state is None:
            state = self.devices[device] = DeviceState()
        state.add(n, seq, checksum)

    def merge(self, image: SessionImage) -> None:
        """Join the tables' state with the replayed end. Both come from one log and the tables may
        already hold a part of what was replayed, so the newer of the two wins per device."""
        assert not self.loaded, f"session {self.name!r} is loaded twice"
        self.loaded = self.ready = True
        if not image.last_seq:
            return  # New, but for what was replayed.
        self.last_seq = max(self.last_seq, image.last_seq)
        self.committed_seq = max(self.committed_seq, image.last_seq)
        for device, last_n, recent in image.devices:
            mine = self.devices.get(device)
            self.devices[device] = _joined(mine, last_n, recent)

    def image(self) -> SessionImage:
        """The state as the tables would hold it."""
        devices = tuple(
            DeviceImage(device, state.last_n, state.recent)
            for device, state in sorted(self.devices.items())
            if state.last_n
        )
        return SessionImage(self.name, self.last_seq, devices)


def _joined(
    mine: DeviceState | None, last_n: int, recent: tuple[tuple[int, int], ...]
) -> DeviceState:
    if mine is None or mine.last_n <= last_n:
        return DeviceState(last_n, recent)
    newer = mine.last_n - last_n
    if newer >= DEVICE_WINDOW:
        return mine
    replayed = mine.recent
    assert newer <= len(replayed), "the replayed end does not join the tables"
    return DeviceState(mine.last_n, (*recent, *replayed[len(replayed) - newer :]))
