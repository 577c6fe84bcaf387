"""Users who talk, read, join and leave, for the simulation: the real rules and notes between slots.

What has to be in the mailboxes is said by a model of its own, which is told nothing but the
committed events of the conversations and what users asked of their mailboxes.
"""

from __future__ import annotations

import logging
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from im_actors.core.conversation import Conversation
from im_actors.core.groups import Role, event_memberships
from im_actors.core.model import Event, EventKind, decode_event, record_events
from im_actors.core.names import SessionKind, direct_session, session_kind
from im_actors.core.overlays import event_overlay
from im_actors.core.rule_settings import RuleSettings
from im_actors.errors import OutOfOrder, error_for
from im_actors.wire.answers import Events
from im_actors.wire.queries import ConversationRow
from tests.fact_model import count_ranks
from tests.sim.groups import MEMBER_PREFIX, GroupModel, wrong_group
from tests.sim.groups import OPERATIONS as GROUP_OPERATIONS
from tests.sim.jobs import SERVICES, JobModel, Jobs
from tests.sim.jobs import STEPS as JOB_STEPS

if TYPE_CHECKING:
    from tests.sim.world import World

SHARE = 0.35
"""Of the runs have users with mailboxes."""
PREFIX = "c/"
READS = 1 << 62
"""Ranks of read positions begin here."""
LISTS = 0.6
"""Of the runs with mailboxes and without registers."""
RULES = RuleSettings(recall_ms=0, edit_ms=0, services=SERVICES)
LOOKS = ("list_answered", "group_pulled", "group_pull_refused")
STEPS = (*(f"group_{what}" for what in GROUP_OPERATIONS), "group_refused", *LOOKS, *JOB_STEPS)
"""What users have to have done, or been refused, in a long run."""

# What shards warn of is no news here.
logging.getLogger("im_actors").addHandler(logging.NullHandler())

PREVIEW_CHARS = 100
Request = tuple[EventKind, bytes | None]


def has_rules(session: str) -> bool:
    """Whether the real rules decide about a session."""
    return session_kind(session) is not SessionKind.OPEN


class Asked(NamedTuple):
    """What a device has asked for, and when."""

    kind: int
    body: bytes
    since_seq: int
    """What was committed of the session by then."""
    at_ms: int


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
        self.jobs = Jobs(world, rng)
        self.jobs.active = self.jobs.active and self.active
        self.models: dict[str, GroupModel | JobModel] = dict(self.jobs.models)
        self.models.update((crew, GroupModel()) for crew in self.crews)
        self._asked: dict[tuple[str, str, int], Asked] = {}
        lists = rng.random() < LISTS
        self.listed = self.active and lists and not world.registers.models
        """Whether users ask gateways for their lists. (There a register would be a group.)"""

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
        """What a user asks next; None: nothing now."""
        nonce = rng.randbytes(3).hex()
        kind = session_kind(session)
        if kind is SessionKind.BATCH:
            return EventKind.BATCH, self.jobs.request(user, session, rng)
        if kind is SessionKind.MAILBOX:
            return self._of_mailbox(user, rng)
        if kind is SessionKind.GROUP:
            group = self.models[session]
            assert isinstance(group, GroupModel)
            inside = group.standings[-1].role(user)
            if rng.random() < (0.4 if inside else 0.8):
                return EventKind.GROUP, self._of_group(user, group, rng)
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

    def _of_group(self, user: str, group: GroupModel, rng: Random) -> bytes:
        """Mostly something that is allowed as the group stands; it may change before it comes."""
        others = rng.sample(self.users, rng.randint(1, len(self.users)))
        one = others[0]
        until_ms = rng.choice([0, self.world.clock.now + rng.randint(100, 8_000)])
        choices: list[Any] = [
            ["create", ["Crew", others]],
            ["joining", [rng.random() < 0.8]],
            ["join", []],
            ["leave", []],
            ["add", [others]],
            ["remove", [others]],
            ["role", [one, rng.choice(["member", "admin", "admin", "owner"])]],
            ["mute", [rng.choice([one, one, None]), until_ms]],
            ["title", [f"Crew {rng.randrange(10)}"]],
        ]
        if rng.random() < 0.02:
            choices = [["dissolve", []]]
        asked = [msgpack.packb(choice) for choice in choices]
        last, kind, now = len(group.standings) - 1, int(EventKind.GROUP), self.world.clock.now
        able = [body for body in asked if not group.refuses(last, user, kind, body, now)]
        return rng.choice(able if able and rng.random() < 0.8 else asked)

    def submitted(self, session: str, device: str, n: int, kind: int, body: bytes) -> None:
        """A device is about to send it."""
        if session in self.models:
            since = len(self.book.get(session, ()))
            self._asked[session, device, n] = Asked(kind, body, since, self.world.clock.now)

    def refused(self, session: str, device: str, n: int, code: int) -> None:
        """A device was told so: it must have been true at a moment since it asked."""
        model, error = self.models.get(session), error_for(code)
        refuses = error.definite and not error.retryable and code != OutOfOrder.code
        if model is None or not refuses or not self.world.watched(session):
            return
        asked, user = self._asked[session, device, n], device.partition("/")[0]
        last_seq = len(self.book.get(session, ()))
        refused = partial(
            model.refuses, user=user, kind=asked.kind, body=asked.body, now_ms=asked.at_ms
        )
        since = any(refused(seq) for seq in range(asked.since_seq, last_seq + 1))
        found = [] if since else [refused(seq) for seq in range(last_seq + 1)]
        if False not in found or None in found:
            self.world.met("group_refused" if type(model) is GroupModel else "batch_refused")
            return
        kind = "stale-refusal" if True in found else "wrong-refusal"
        text = f"{asked} of {device} in {session!r} is refused with {code} up to {last_seq}"
        self.world.fail(kind, text, self.world.slot_of(session), (session, device, n))

    # -- what users are shown ------------------------------------------------------------------

    def pulled(self, user: str, page: Events) -> None:
        """A user was given events of a group: they have to be his to read."""
        model = self.models.get(page.session)
        if not isinstance(model, GroupModel) or not self.world.watched(page.session):
            return
        self.world.met("group_pull_refused" if page.code else "group_pulled")
        for event in page.events:
            if not model.may_read(user, event.seq):
                text = f"{user} was given seq {event.seq} of {page.session}: {model.standings[-1]}"
                self.world.fail("not-his-to-read", text, self.world.slot_of(page.session))

    def listed_rows(
        self, user: str, rows: list[ConversationRow], total: int
    ) -> dict[str, tuple[int, ...]]:
        """What a list says, by session: (last seq, read seq, unread). Each row has to be right for
        the events up to its last one."""
        for row in rows:
            events = self.book.get(row.session, [])
            right = _unread(user, events[: row.last_seq], row.read_seq)
            wrong = len(events) < row.last_seq or row.unread != right
            if wrong and self.world.watched(row.session):
                text = f"{user} sees {row}, expected {right} unread of {len(events)}"
                self.world.fail("wrong-list", text, self.world.slot_of(row.session))
        shown = {row.session: (row.last_seq, row.read_seq, row.unread) for row in rows}
        # What is only pinned, and has no events, is in the list too.
        return {"": (total,), **{s: row for s, row in shown.items() if s in self.book}}

    def expected_list(self, user: str) -> dict[str, tuple[int, ...]]:
        """What a user has to see when all has come to rest."""
        found: dict[str, tuple[int, ...]] = {}
        for session, row in self._rows(user).items():
            if "last_seq" in row:
                found[session] = (row["last_seq"], row["read_seq"], row["unread"])
            elif "joined_seq" in row:
                events, read = self.book[session], row["read_seq"]
                found[session] = (len(events), read, _unread(user, events, read))
        return {"": (sum(row[2] for row in found.values()),), **found}

    # -- what was committed --------------------------------------------------------------------

    def committed(self, slot: int) -> None:
        """Take in what the ledger has got since the last time."""
        if not self.active:
            return
        log = self.world.ledger.log.get(slot, [])
        for record in log[self._taken[slot] :]:
            for event in map(decode_event, record_events(record.payload)):
                self.book.setdefault(event.session, []).append(event)
                if wrong := self._take_in(event):
                    key = (event.session, event.device, event.n)
                    self.world.fail("wrong-change", f"{event.session}: {wrong}", slot, key)
                if event.kind == EventKind.NOTE:
                    self._check_note(slot, event)
        self._taken[slot] = len(log)

    def _take_in(self, event: Event) -> str | None:
        """What is wrong with a committed event, by the model of its session."""
        if session_kind(event.session) is SessionKind.NOTICE:
            if event.kind == EventKind.VOID:
                self.world.met("batch_fenced")
            return self.jobs.committed(event)
        model = self.models.get(event.session)
        if model is None:
            return None
        asked = self._asked.get((event.session, event.device, event.n))
        body = asked.body if asked is not None else b""
        if type(model) is GroupModel:
            if event.kind == EventKind.GROUP:
                self.world.met(f"group_{msgpack.unpackb(event.body)[0]}")
            return model.take_in(event, body)
        assert isinstance(model, JobModel)
        before = model.standing
        wrong = model.take_in(event, body)
        self.jobs.met(before, model, event)
        return wrong

    def _check_note(self, slot: int, event: Event) -> None:
        """A row says nothing of a conversation that is not committed there."""
        for key, _, value in msgpack.unpackb(event.body)[2]:
            session = key.removeprefix(PREFIX)
            direct = session_kind(session) is SessionKind.DIRECT
            if not direct or not self.world.watched(session):
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
        return self.jobs.unsettled()

    # -- what has to be in the mailboxes -------------------------------------------------------

    def finish(self) -> None:
        """Every member's tables have the rows that follow from the conversations."""
        if not self.active:
            return
        self.jobs.finish()
        self._finish_groups()
        for user in [*self.users, *self.jobs.users]:
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

    def _finish_groups(self) -> None:
        """Every member's tables have the groups as the events left them."""
        for crew in self.crews:
            model, slot = self.models[crew], self.world.slot_of(crew)
            assert isinstance(model, GroupModel)
            group = model.standings[-1]
            for member in self.world.store.views[slot].members:
                facts = self.world.replicas[member.replica].disk.facts.get(crew, {})
                rows = {
                    key.removeprefix(MEMBER_PREFIX): tuple(msgpack.unpackb(fact.value or b"")[1:])
                    for key, fact in facts.items()
                    if key.startswith(MEMBER_PREFIX)
                }
                said = facts.get("g")
                wrong = wrong_group(group, said.value or b"") if said is not None else None
                if wrong or rows != dict(group.rows) or (said is None) is group.made:
                    text = f"{member}: {crew}: {wrong}: members are {rows}, expected {group}"
                    self.world.fail("wrong-facts", text, slot)

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
                # Who was let in has read what came before.
                read = max(seqs[True], self._read_seq(user, crew))
                rows[crew] = {"joined_seq": seqs[True], "read_seq": read}
            elif seqs[False]:
                rows[crew] = {"left_seq": seqs[False]}
        return rows

    def _read_seq(self, user: str, session: str) -> int:
        asked = self._changes(user, "read")
        return max((seq for of, seq in asked if of == session), default=0)

    def _delivered_seq(self, user: str, session: str) -> int:
        asked = [
            position for (positions,) in self._changes(user, "received") for position in positions
        ]
        received = [seq for of, seq in asked if of == session]
        return max(self._read_seq(user, session), *received, 0)

    def _changes(self, user: str, what: str) -> list[Any]:
        """The arguments of what the user asked of his mailbox."""
        events = [e for e in self.book.get(f"user:{user}", []) if e.kind == EventKind.MAILBOX]
        bodies = [msgpack.unpackb(event.body) for event in events]
        return [body[1] for body in bodies if body[0] == what]

    def _talk(self, user: str, peer: str, session: str, events: list[Event]) -> dict[str, Any]:
        read = self._read_seq(user, session)
        shown: dict[int, tuple[str, int, str]] = {}
        for event in events:
            if event.kind == EventKind.MESSAGE:
                text = event.body.decode()[:PREVIEW_CHARS]
                shown[event.seq] = (event.sender, int(event.kind), text)
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


def _unread(user: str, events: list[Event], read_seq: int) -> int:
    """Messages of others above a position, without those that were recalled."""
    recalled = {_overlay(event)[0] for event in events if event.kind == EventKind.RECALL}
    return sum(
        event.seq > read_seq
        and event.kind == EventKind.MESSAGE
        and event.sender != user
        and event.seq not in recalled
        for event in events
    )


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
