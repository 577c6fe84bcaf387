"""Judges what clients saw: sends, ACKs, refusals, and what readers were given."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from im_actors.proof.anomalies import Anomaly, Key, Tally
from im_actors.proof.records import CHANGES_FROM, VOID, made_from

COPIES = 3
SERVERS = "*"
MAILBOXES = "user:"
"""The device of what servers write down by themselves."""
SKIPPED_KEPT_MAX = 100_000
"""A reader that jumps further has skipped at least so many."""


Seen = tuple[int, str, int, int, bytes]
"""An event as a reader got it: (seq, device, n, kind, body)."""
Place = tuple[str, int, int, bytes]
"""(device, n, kind, body): what stands at a seq."""


class Reading:
    """How far one reader is in one session."""

    __slots__ = ("expected", "left", "skipped")

    def __init__(self, expected: int = 1) -> None:
        self.expected = expected
        self.skipped: dict[int, int] = {}
        """seq that was not given -> the one that was given instead. A VOID may be skipped."""
        self.left = False
        """Nobody expects that it gets the rest."""


class Session:
    """Everything that is known of one session."""

    __slots__ = (
        *("name", "sent", "last_n", "refused", "acked", "acked_places", "places", "seq_of"),
        *("readings", "pages", "sources", "committed_seq", "logged", "kept"),
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.sent: dict[Key, list[tuple[int, bytes]]] = {}
        """What each number may turn out to be: its message, or a VOID."""
        self.last_n: dict[str, int] = {}
        self.refused: set[Key] = set()
        self.acked: dict[Key, int] = {}
        self.acked_places: dict[int, Key] = {}
        self.places: dict[int, Place] = {}
        self.seq_of: dict[Key, int] = {}
        self.readings: dict[str, Reading] = {}
        self.pages: list[tuple[str, dict[int, int]]] = []
        """Pages that jumped over what may turn out to be a VOID."""
        self.sources: dict[str, int] = {}
        """The highest head that each source has told."""
        self.committed_seq = 0
        """As the disks have it."""
        self.logged: set[Key] = set()
        """What is in the committed log."""
        self.kept: set[Key] | None = None
        """What every reading at the end has; None: there was none."""


class ClientHistory:
    """Takes what clients saw and finds what cannot be. Nothing about disks is known to it, so it
    judges a cluster from outside."""

    watches_disks = False

    def __init__(self, tell: Callable[[Anomaly], None] | None = None) -> None:
        """``tell`` is called with each anomaly at once; it may raise."""
        self._tally = Tally(tell)
        self._sessions: dict[str, Session] = {}

    @property
    def anomalies(self) -> list[Anomaly]:
        """The first of them."""
        return self._tally.told

    @property
    def counts(self) -> dict[str, int]:
        """How many of each name; each message, place or record counts once."""
        return self._tally.counts

    # -- senders ---------------------------------------------------------------------------------

    def sent(self, session: str, device: str, n: int, kind: int, body: bytes) -> None:
        """A device gave ``n`` to this message: once per message and in the order of sending, not
        per resend. Again with kind 0 when it may withdraw the number."""
        book = self._book(session)
        key = (device, n)
        contents = book.sent.setdefault(key, [])
        if contents and kind != VOID:
            text = f"{_named(session, key)} is another message already"
            self._tally.note("reused-number", (session, key), text, session, key)
        if not contents:
            if n <= book.last_n.get(device, 0):
                text = f"{_named(session, key)} was sent after number {book.last_n[device]}"
                self._tally.note("reorder", (session, key), text, session, key)
            book.last_n[device] = max(n, book.last_n.get(device, 0))
        contents.append((kind, body))

    def acked(
        self, session: str, device: str, n: int, seq: int, epoch: int = 0, copies: int = COPIES
    ) -> None:
        """A device was told that its message is committed at ``seq``; as often as it is told."""
        book = self._book(session)
        key = (device, n)
        if copies < COPIES:
            text = f"{_named(session, key)} was ACKed in epoch {epoch} with {copies} copies"
            self._tally.note("commit-below-three", (session, key), text, session, key)
        known = book.acked.get(key)
        if known == seq:
            return
        if known is not None:
            text = f"{_named(session, key)} was ACKed at seq {known} and at seq {seq}"
            self._tally.note("ack-mismatch", (session, key), text, session, key)
            return
        book.acked[key] = seq
        self._check_ack(book, key, seq)

    def refused(self, session: str, device: str, n: int) -> None:
        """A device was told for good that its message will not be taken. A VOID may stand there."""
        book = self._book(session)
        key = (device, n)
        book.refused.add(key)
        seq = book.seq_of.get(key)
        if seq is not None:
            self._check_refused(book, key, seq)

    # -- readers ---------------------------------------------------------------------------------

    def following(self, reader: str, session: str, after: int = 0) -> None:
        """A reader begins above ``after``. Without this it begins at 1 with its first event."""
        self._book(session).readings[reader] = Reading(after + 1)

    def left(self, reader: str, session: str) -> None:
        """A reader ends early: what it has not got by now is not ``unseen``."""
        self._book(session).readings.setdefault(reader, Reading()).left = True

    def delivered(
        self, reader: str, session: str, seq: int, device: str, n: int, kind: int, body: bytes
    ) -> None:
        """A follower was given an event, in the order in which this is called."""
        book = self._sessions.get(session) or self._book(session)
        reading = book.readings.get(reader)
        if reading is None:
            reading = book.readings[reader] = Reading()
        self._read(book, reader, reading, seq, (device, n, kind, body))

    def polled(
        self,
        source: str | None,
        session: str,
        head: int,
        after: int = 0,
        events: Iterable[Seen] = (),
        voids_shown: bool = True,
    ) -> None:
        """One answer to a reader that asked for what follows ``after``: the head that the answer
        told, and events as a reader sees them. ``source``: a copy that may never go back;
        None for a gateway, which asks now this copy and now another. The SDK's pages do not show
        VOIDs, those of the wire do."""
        book = self._book(session)
        if source is not None:
            known = book.sources.get(source, 0)
            if head < known:
                text = f"{source} read {session!r} up to {head}, after {known}"
                self._tally.note("nonmonotonic-poll", (session, source, head), text, session)
            book.sources[source] = max(head, known)
        if self.watches_disks and head > book.committed_seq:
            text = f"{source} told head {head} of {session!r}, committed is {book.committed_seq}"
            self._tally.note("precommitted-read", (session, head), text, session)
        page, reader = Reading(after + 1), f"a page of {source}"
        for seq, device, n, kind, body in events:
            self._read(book, reader, page, seq, (device, n, kind, body))
        if page.skipped and voids_shown:
            self._tell_skipped(book, reader, page.skipped)
        elif page.skipped:
            book.pages.append((reader, page.skipped))

    def final_read(
        self,
        session: str,
        events: Iterable[Seen],
        reader: str = "final",
    ) -> None:
        """The whole history (seq, device, n, kind, body) as it is read when all has come to rest.
        Several readers may do so; each has to get everything."""
        book = self._book(session)
        reading = book.readings[reader] = Reading()
        reading.left = True
        found = set()
        for seq, device, n, kind, body in events:
            self._read(book, reader, reading, seq, (device, n, kind, body))
            found.add((device, n))
        book.kept = found if book.kept is None else book.kept & found

    # -- the end ---------------------------------------------------------------------------------

    def finish(self) -> list[Anomaly]:
        """Judge what only the end can show: call it once, after healing, when followers have had
        their time and ``final_read`` (or ``final_log``) has told everything that there is."""
        for book in self._sessions.values():
            readings = [(reader, reading.skipped) for reader, reading in book.readings.items()]
            for reader, skipped in readings + book.pages:
                missing = (seq for seq in skipped if not _is_void(book, seq))
                self._tell_skipped(book, reader, {seq: skipped[seq] for seq in missing})
            self._check_order(book)
            self._check_kept(book)
        return self.anomalies

    # -- rules -----------------------------------------------------------------------------------

    def _book(self, session: str) -> Session:
        book = self._sessions.get(session)
        if book is None:
            book = self._sessions[session] = Session(session)
        return book

    def _check_ack(self, book: Session, key: Key, seq: int) -> None:
        name = book.name
        if key not in book.sent:
            text = f"{_named(name, key)} was ACKed at seq {seq}, and nobody sent it"
            self._tally.note("ack-mismatch", (name, key), text, name, key)
        other = book.acked_places.setdefault(seq, key)
        if other != key:
            text = f"seq {seq} was ACKed for {_named(name, other)} and for {_named(name, key)}"
            self._tally.note("inconsistent-offsets", (name, key), text, name, key)
            return
        place = book.places.get(seq)
        at = book.seq_of.get(key, seq)
        if at != seq:
            self._note_not_there(book, key, seq, at)
        elif place is not None and place[:2] != key:
            text = f"seq {seq} was ACKed for {_named(name, key)} and is {_named(name, place[:2])}"
            self._tally.note("inconsistent-offsets", (name, key), text, name, key)
        if self.watches_disks and seq > book.committed_seq:
            text = f"{_named(name, key)} was ACKed at seq {seq}, committed is {book.committed_seq}"
            self._tally.note("commit-below-three", (name, key), text, name, key)

    def _check_refused(self, book: Session, key: Key, seq: int) -> None:
        if book.places[seq][2] != VOID:
            text = f"{_named(book.name, key)} was refused for good, and is at seq {seq}"
            self._tally.note("refused-write", (book.name, key), text, book.name, key)

    def _note_not_there(self, book: Session, key: Key, acked: int, seq: int) -> None:
        text = f"{_named(book.name, key)} was ACKed at seq {acked} and read at seq {seq}"
        self._tally.note("inconsistent-offsets", (book.name, key), text, book.name, key)

    def _read(self, book: Session, reader: str, reading: Reading, seq: int, place: Place) -> None:
        if book.places.get(seq) != place:
            self._stands(book, seq, place)
        if seq == reading.expected:
            reading.expected = seq + 1
        else:
            self._out_of_turn(book, reader, reading, seq)
        if self.watches_disks and seq > book.committed_seq:
            text = f"{reader} got seq {seq} of {book.name!r}, committed is {book.committed_seq}"
            self._tally.note("precommitted-read", (book.name, seq), text, book.name, place[:2])

    def _stands(self, book: Session, seq: int, place: Place) -> None:
        """Somebody says what stands at a seq: for the first time, or unlike those before."""
        device, n, kind, body = place
        name, key = book.name, (device, n)
        known = book.places.setdefault(seq, place)
        if known is not place:
            self._differs(book, seq, known, place)
            return
        other = book.seq_of.setdefault(key, seq)
        if other != seq:
            text = f"{_named(name, key)} is at seq {other} and at seq {seq}"
            self._tally.note("duplicate", (name, key), text, name, key)
            return
        self._check_content(book, key, seq, kind, body)
        acked = book.acked.get(key, seq)
        holder = book.acked_places.get(seq, key)
        if acked != seq:
            self._note_not_there(book, key, acked, seq)
        elif holder != key:
            text = f"seq {seq} was ACKed for {_named(name, holder)} and is {_named(name, key)}"
            self._tally.note("inconsistent-offsets", (name, holder), text, name, holder)
        if key in book.refused:
            self._check_refused(book, key, seq)

    def _differs(self, book: Session, seq: int, known: Place, place: Place) -> None:
        name, key = book.name, place[:2]
        if known[:2] == key:
            text = f"{_named(name, key)} at seq {seq} was read with two contents"
            self._tally.note("wrong-content", (name, key), text, name, key)
        else:
            text = f"seq {seq} is {_named(name, known[:2])} and {_named(name, key)}"
            self._tally.note("inconsistent-offsets", (name, key), text, name, key)

    def _check_content(self, book: Session, key: Key, seq: int, kind: int, body: bytes) -> None:
        contents = book.sent.get(key)
        if contents is None and (key[0] == SERVERS or _is_own(book)):
            return
        if contents is None:
            text = f"nobody sent {_named(book.name, key)}, which is at seq {seq}"
        elif (kind, body) not in contents and not (
            (kind == VOID and key in book.refused)
            or (kind >= CHANGES_FROM and any(made_from(kind, body, sent) for _, sent in contents))
        ):
            text = f"{_named(book.name, key)} at seq {seq} is not what was sent"
        else:
            return
        self._tally.note("wrong-content", (book.name, key), text, book.name, key)

    def _out_of_turn(self, book: Session, reader: str, reading: Reading, seq: int) -> None:
        """A reader gets 1, 2, 3 …; it may jump over what turns out to be a VOID."""
        name, expected, skipped = book.name, reading.expected, reading.skipped
        if seq > expected:
            end = min(seq, expected + SKIPPED_KEPT_MAX)
            skipped.update(dict.fromkeys(range(expected, end), seq))
            known = (m for m in range(expected, end) if m in book.places and not _is_void(book, m))
            self._tell_skipped(book, reader, dict.fromkeys(known, seq))
            reading.expected = seq + 1
        elif skipped.pop(seq, None) is not None:
            text = f"{reader} in {name!r} got seq {seq} after {expected - 1}"
            self._tally.note("nonmonotonic-poll", (name, seq), text, name)
        else:
            text = f"{reader} in {name!r} got seq {seq} again"
            self._tally.note("duplicate", (name, seq), text, name)

    def _tell_skipped(self, book: Session, reader: str, skipped: dict[int, int]) -> None:
        for missing, seq in skipped.items():
            text = f"{reader} in {book.name!r} got seq {seq} and not {missing}"
            self._tally.note("poll-skip", (book.name, missing), text, book.name)

    def _check_order(self, book: Session) -> None:
        last: dict[str, tuple[int, int]] = {}
        for seq in sorted(book.places):
            device, n, _, _ = book.places[seq]
            before, at = last.get(device, (0, 0))
            if n < before and book.seq_of[device, n] == seq:
                text = f"{_named(book.name, (device, n))} at seq {seq} follows {before} at {at}"
                self._tally.note("reorder", (book.name, (device, n)), text, book.name, (device, n))
            last[device] = (n, seq)

    def _check_kept(self, book: Session) -> None:
        name, kept = book.name, book.kept or set()
        followers = [item for item in book.readings.items() if not item[1].left]
        for key, acked in book.acked.items():
            if key not in kept:
                text = f"{_named(name, key)} was ACKed at seq {acked}"
                self._tally.note("lost-write", (name, key), text, name, key)
                continue
            seq = book.seq_of.get(key, acked)
            for reader, reading in followers:
                missed = seq >= reading.expected or seq in reading.skipped
                if missed and not _is_void(book, seq):
                    text = f"{_named(name, key)} was ACKed at seq {acked}, {reader} never got it"
                    self._tally.note("unseen", (name, key), text, name, key)
        if book.kept is not None:
            for seq, (device, n, kind, _) in book.places.items():
                if kind != VOID and (device, n) not in kept and (device, n) not in book.acked:
                    text = f"seq {seq} of {name!r} was read, and is not there at the end"
                    self._tally.note("precommitted-read", (name, seq), text, name, (device, n))


def _is_own(book: Session) -> bool:
    """A mailbox that none of those who are watched has written to: there clients themselves tell
    what devices there are."""
    return book.name.startswith(MAILBOXES) and not book.sent


def _is_void(book: Session, seq: int) -> bool:
    place = book.places.get(seq)
    return place is not None and place[2] == VOID


def _named(session: str, key: Key) -> str:
    device, n = key
    return f"message {n} of {device} in {session!r}"
