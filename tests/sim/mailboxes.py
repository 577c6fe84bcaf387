"""Users who talk, read, join and leave, for the simulation: the real rules and notes between slots.

What has to be in the mailboxes is said by a model of its own, which is told nothing but the
committed events of the conversations and what users asked of their mailboxes.
"""

from __future__ import annotations

import logging
from random import Random
from typing import TYPE_CHECKING, Any

import msgpack

from im_actors.core.conversation import Conversation
from im_actors.core.groups import Role, event_memberships
from im_actors.core.model import Event, EventKind, decode_event, record_events
from im_actors.core.names import SessionKind, direct_session, session_kind
from im_actors.core.overlays import event_overlay
from im_actors.core.rule_settings import RuleSettings
from tests.fact_model import count_ranks

if TYPE_CHECKING:
    from tests.sim.world import World

SHARE = 0.35
"""Of the runs have users with mailboxes."""
PREFIX = "c/"
READS = 1 << 62
"""Ranks of read positions begin here."""
RULES = RuleSettings(recall_ms=0, edit_ms=0)

# What shards warn of is no news here.
logging.getLogger("im_actors").addHandler(logging.NullHandler())

Request = tuple[EventKind, bytes]


def has_rules(session: str) -> bool:
    """Whether the real rules decide about a session."""
    return session_kind(session) is not SessionKind.OPEN


class Mailboxes:
    """All of them: who the users are, what they ask, and what was committed."""

    def __init__(self, world: World, rng: Random) -> None:
        self.world = world
        self.active = rng.random() < SHARE
        self.users = [f"u{number}" for number in range(rng.randint(2, 4))]
        self.crews = [f"group:crew-{number}" for number in range(rng.randint(0, 2))]
        self.book: dict[str, list[Event]] = {}
        """By session: the committed events."""
        self._taken = dict.fromkeys(range(world.slots), 0)

    # -- what users do -------------------------------------------------------------------------

    def user_of(self, number: int) -> str:
        """Whose device number this is: most users have several."""
        return self.users[number % len(self.users)]

    def sessions_of(self, user: str, rng: Random) -> list[str]:
        """What a device of the user writes to."""
        peers = rng.sample(self.users, rng.randint(1, len(self.users)))
        talks = [direct_session(user, peer) for peer in peers]
        return [f"user:{user}", *talks, *self.crews]

    def request(self, user: str, session: str, rng: Random) -> Request:
        """What a user asks next."""
        nonce = rng.randbytes(3).hex()
        kind = session_kind(session)
        if kind is SessionKind.MAILBOX:
            return self._of_mailbox(user, rng)
        if kind is SessionKind.GROUP and rng.random() < 0.4:
            return EventKind.GROUP, self._of_group(rng)
        events = self.book.get(session, [])
        mine = [e.seq for e in events if e.kind == EventKind.MESSAGE and e.sender == user]
        choice = rng.random()
        if choice < 0.3 and mine:
            seq = rng.choice(mine[-5:])
            if choice < 0.2:
                return EventKind.RECALL, msgpack.packb([seq])
            return EventKind.EDIT, msgpack.packb([seq, f"edited {nonce}".encode()])
        return EventKind.MESSAGE, f"text {nonce}".encode()

    def _of_mailbox(self, user: str, rng: Random) -> Request:
        session = direct_session(user, rng.choice(self.users))
        choice = rng.random()
        if choice < 0.2:
            return EventKind.MAILBOX, msgpack.packb(["pin", [session, rng.random() < 0.5]])
        if choice < 0.5 and self.crews:
            session = rng.choice(self.crews)
        seq = rng.randint(1, len(self.book.get(session, ())) + 2)
        if choice > 0.8:
            return EventKind.MAILBOX, msgpack.packb(["received", [[[session, seq]]]])
        return EventKind.MAILBOX, msgpack.packb(["read", [session, seq]])

    def _of_group(self, rng: Random) -> bytes:
        others = rng.sample(self.users, rng.randint(1, len(self.users)))
        choices: list[Any] = [
            ["create", ["Crew", others]],
            ["joining", [True]],
            ["join", []],
            ["leave", []],
            ["add", [others]],
            ["remove", [others]],
        ]
        return msgpack.packb(rng.choice(choices))

    # -- what was committed --------------------------------------------------------------------

    def committed(self, slot: int) -> None:
        """Take in what the ledger has got since the last time."""
        if not self.active:
            return
        log = self.world.ledger.log.get(slot, [])
        for record in log[self._taken[slot] :]:
            for event in map(decode_event, record_events(record.payload)):
                self.book.setdefault(event.session, []).append(event)
                if event.kind == EventKind.NOTE:
                    self._check_note(slot, event)
        self._taken[slot] = len(log)

    def _check_note(self, slot: int, event: Event) -> None:
        """A row says nothing of a conversation that is not committed there."""
        for key, _, value in msgpack.unpackb(event.body)[2]:
            session = key.removeprefix(PREFIX)
            if session_kind(session) is not SessionKind.DIRECT or not self.world.watched(session):
                continue
            row, last = Conversation.from_bytes(value), len(self.book.get(session, ()))
            if row.last_seq > last:
                text = f"{event.session}: {session} up to {row.last_seq}, committed is {last}"
                self.world.fail("note-of-nothing", text, slot)

    def unsettled(self) -> str | None:
        """What somebody has not been told yet."""
        if not self.active:
            return None
        for slot in range(self.world.slots):
            shards = [shard for shard in self.world.shards if shard.running and shard.serves(slot)]
            for shard in shards:
                assert shard.telling is not None
                if shard.telling.refused:
                    self.world.fail("note-refused", f"a note of {shard.incarnation} is refused")
                if (why := shard.telling.unsettled(slot)) is not None:
                    return f"{shard.incarnation}: slot {slot}: {why}"
        return None

    # -- what has to be in the mailboxes -------------------------------------------------------

    def finish(self) -> None:
        """Every member's tables have the rows that follow from the conversations."""
        if not self.active:
            return
        for user in self.users:
            expected, mailbox = self._rows(user), f"user:{user}"
            slot = self.world.slot_of(mailbox)
            for member in self.world.store.views[slot].members:
                facts = self.world.replicas[member.replica].disk.facts.get(mailbox, {})
                found = {
                    key.removeprefix(PREFIX): self._seen(fact.value)
                    for key, fact in facts.items()
                    if key.startswith(PREFIX) and fact.value is not None
                }
                for session, row in expected.items():
                    if found.get(session, {}) | row != found.get(session, {}):
                        text = f"{member}: {mailbox}: {session} is {found.get(session)}"
                        self.world.fail("wrong-row", f"{text}, expected {row}", slot)
            if expected:
                self.world.met("mailbox_checked")
        for crew in self.crews:
            self._check_readers(crew)

    def _check_readers(self, crew: str) -> None:
        """Every member's tables count those who have read each event of a group."""
        reads, events = f"reads:{crew.partition(':')[2]}", self.book.get(crew, [])
        readers = self._readers(crew) if events else []
        expected = [sum(joined <= e.seq <= read for joined, read in readers) for e in events]
        slot = self.world.slot_of(reads)
        for member in self.world.store.views[slot].members:
            facts = self.world.replicas[member.replica].disk.facts.get(reads, {}).values()
            for event, number in zip(events, expected, strict=True):
                ranges = [(READS + event.seq, (1 << 63) - 1), (event.seq + 1, READS - 1)]
                read, later = count_ranks(facts, ranges)
                if read - later != number:
                    text = f"{member}: {reads}: {read} - {later} have read {event.seq}"
                    self.world.fail("wrong-readers", f"{text}, expected {number}", slot)
        if any(expected):
            self.world.met("readers_checked")

    def _readers(self, crew: str) -> list[tuple[int, int]]:
        """(event that let him in, read position) of all members who have read since."""
        found = []
        for user in self.users:
            (joined, let_in), *_ = [*_memberships(user, self.book[crew])[::-1], (0, False)]
            if let_in and (read := self._read_seq(user, crew)) > joined:
                found.append((joined, read))
        return found

    @staticmethod
    def _seen(value: bytes) -> dict[str, Any]:
        row = Conversation.from_bytes(value)
        return {
            "last_seq": row.last_seq,
            "read_seq": row.read_seq,
            "unread": row.unread().number if row.last_seq else None,
            "peer_read_seq": row.peer_read_seq,
            "peer_delivered_seq": row.peer_delivered_seq,
            "preview": row.preview and (row.preview.seq, row.preview.kind, row.preview.text),
            "joined_seq": row.joined_seq,
            "left_seq": row.left_seq,
        }

    def _rows(self, user: str) -> dict[str, dict[str, Any]]:
        rows = {}
        for peer in self.users:
            session = direct_session(user, peer)
            if events := self.book.get(session):
                rows[session] = self._talk(user, peer, session, events)
        for crew in self.crews:
            seqs = {True: 0, False: 0}
            for seq, let_in in _memberships(user, self.book.get(crew, [])):
                seqs[let_in] = seq
            if seqs[True] > seqs[False]:
                rows[crew] = {"joined_seq": seqs[True]}
            elif seqs[False]:
                rows[crew] = {"left_seq": seqs[False]}
        return rows

    def _read_seq(self, user: str, session: str) -> int:
        asked = self._asked(user, "read")
        return max((seq for of, seq in asked if of == session), default=0)

    def _delivered_seq(self, user: str, session: str) -> int:
        asked = [
            position for (positions,) in self._asked(user, "received") for position in positions
        ]
        received = [seq for of, seq in asked if of == session]
        return max(self._read_seq(user, session), *received, 0)

    def _asked(self, user: str, what: str) -> list[Any]:
        """The arguments of what the user asked of his mailbox."""
        events = [e for e in self.book.get(f"user:{user}", []) if e.kind == EventKind.MAILBOX]
        bodies = [msgpack.unpackb(event.body) for event in events]
        return [body[1] for body in bodies if body[0] == what]

    def _talk(self, user: str, peer: str, session: str, events: list[Event]) -> dict[str, Any]:
        read = self._read_seq(user, session)
        shown: dict[int, tuple[str, int, str]] = {}
        for event in events:
            if event.kind == EventKind.MESSAGE:
                shown[event.seq] = (event.sender, int(event.kind), event.body.decode())
            elif event.kind in (EventKind.RECALL, EventKind.EDIT):
                target, text = _overlay(event)
                shown[target] = (shown[target][0], int(event.kind), text)
        row: dict[str, Any] = {
            "last_seq": len(events),
            "read_seq": read,
            "unread": sum(
                seq > read and sender != user and kind != EventKind.RECALL
                for seq, (sender, kind, _) in shown.items()
            ),
            "peer_read_seq": self._read_seq(peer, session) if peer != user else 0,
            "peer_delivered_seq": self._delivered_seq(peer, session) if peer != user else 0,
        }
        if shown:
            last = max(shown)
            row["preview"] = (last, *shown[last][1:])
        return row


def _overlay(event: Event) -> tuple[int, str]:
    """(target, new text) of a committed recall or edit."""
    target, overlay = event_overlay(event)
    return target, (overlay.text or b"").decode()


def _memberships(user: str, events: list[Event]) -> list[tuple[int, bool]]:
    """(seq, whether he was let in) of each event that did something to a user."""
    inside: set[str] = set()
    found = []
    for event in events:
        if event.kind != EventKind.GROUP:
            continue
        before = set(inside)
        for changed, membership in event_memberships(event):
            (inside.discard if membership.role is Role.STRANGER else inside.add)(changed)
        if (user in before) != (user in inside):
            found.append((event.seq, user in inside))
    return found
