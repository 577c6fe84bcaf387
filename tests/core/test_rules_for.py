"""Which session takes which events, and from whom."""

from itertools import product

import pytest

from im_actors.core import batch, mailbox, notes
from im_actors.core.groups import create_request
from im_actors.core.model import EventKind
from im_actors.core.names import SessionKind, session_kind
from im_actors.core.overlays import edit_request, recall_request
from im_actors.core.reads import Reader, reads_note
from im_actors.core.rule_settings import RuleSettings
from im_actors.core.rules import SERVER, Accept, Known, Needs, Refuse, Request
from im_actors.core.rules_for import KINDS, decide
from im_actors.errors import CorruptData, Forbidden, NewerFormat, SetupError
from tests.core.deciding import Deciding

SESSIONS = (
    "team",
    "direct:alice/bob",
    "group:g",
    "notice:system/alice",
    "notice:interaction/alice",
    "notice:service/alice",
    "user:alice",
    "slot:3",
    "batch:b",
    "reads:g",
)
DEVICES = ("alice/phone", "bob/pc", "eve/pc", "robot/1", SERVER)
SETTINGS = RuleSettings(services=frozenset({"robot"}))

OPEN_KINDS = (EventKind.MESSAGE, EventKind.RECALL, EventKind.EDIT)
EVERYBODY = set(DEVICES)
WRITERS = {
    "team": EVERYBODY,
    "direct:alice/bob": {"alice/phone", "bob/pc"},
    "group:g": {"alice/phone", "bob/pc"},
    "notice:system/alice": {"robot/1"},
    "notice:interaction/alice": {"robot/1"},
    "notice:service/alice": {"robot/1", "alice/phone"},
}
"""Who may send, recall and edit there; bob is in the group because alice made it with him."""


def expected(session: str, device: str, kind: EventKind) -> bool:
    if kind == EventKind.VOID:
        return True
    if kind in OPEN_KINDS:
        return device in WRITERS.get(session, set())
    if session == "group:g":
        return kind == EventKind.GROUP and device == "alice/phone"
    if session == "user:alice":
        asked = {"alice/phone": EventKind.MAILBOX, SERVER: EventKind.NOTE}
        return asked.get(device) == kind
    if session == "batch:b":
        return kind == EventKind.BATCH and device == "robot/1"
    return session in ("slot:3", "reads:g") and device == SERVER and kind == EventKind.NOTE


def body_for(session: str, kind: EventKind, seq: int) -> bytes:
    match kind:
        case EventKind.RECALL:
            return recall_request(seq)
        case EventKind.EDIT:
            return edit_request(seq, b"new")
        case EventKind.GROUP:
            return create_request("again", []) if session != "group:g" else TITLE
        case EventKind.MAILBOX:
            return mailbox.pin_request("team", True)
        case EventKind.BATCH:
            return batch.create_request(b"hello", "daily")
        case EventKind.NOTE if session == "slot:3":
            return notes.cursor_note("mailboxes", 7)
        case EventKind.NOTE if session == "reads:g":
            return reads_note({"bob": Reader(7, 5)})
        case EventKind.NOTE:
            return notes.joined_note("group:g", 5, 5)
    return b"" if kind == EventKind.VOID else b"hello"


TITLE = b"\x92\xa5title\x91\xa3new"


def prepared(session: str, device: str) -> Deciding:
    """A session where the device has sent a message, if it may."""
    found = Deciding(session, SETTINGS)
    if session == "group:g":
        found.send("alice/phone", EventKind.GROUP, create_request("g", ["bob"]))
    if device in WRITERS.get(session, set()):
        found.say(device, "hello")
    return found


@pytest.mark.parametrize(("session", "device"), list(product(SESSIONS, DEVICES)))
def test_who_may_send_what(session: str, device: str) -> None:
    for kind in EventKind:
        found = prepared(session, device)
        decision = found.decide(device, kind, body_for(session, kind, len(found.events)))
        wanted = expected(session, device, kind)
        assert isinstance(decision, Accept) == wanted, (session, device, kind, decision)
        if isinstance(decision, Accept):
            assert decision.kind == kind
        else:
            assert isinstance(decision, Refuse)
            assert decision.error.definite


def test_every_kind_of_session_says_what_it_takes() -> None:
    assert set(KINDS) == set(SessionKind)
    assert {session_kind(session) for session in SESSIONS} == set(SessionKind)


def test_a_message_that_everybody_may_send_asks_for_nothing() -> None:
    for session in ("team", "direct:alice/bob", "notice:service/alice"):
        found = Deciding(session)
        assert found.decide("alice/phone", EventKind.MESSAGE, b"hi") == Accept(1, b"hi")
        assert not found.asked


def test_a_rule_asks_for_all_that_it_needs_at_once() -> None:
    known = Known("group:g", 9, {}, {})
    ask = Request("alice/phone", int(EventKind.MESSAGE), b"hi", 0)
    assert decide(known, ask) == Needs(("g", "m/alice"), ())
    ask = Request("alice/phone", int(EventKind.RECALL), recall_request(4), 0)
    assert decide(known._replace(session="team"), ask) == Needs(("x/0000000000000004",), (4,))
    partly = Known("team", 9, {"x/0000000000000004": None}, {})
    assert decide(partly, ask) == Needs((), (4,))
    partly = Known("team", 9, {}, {4: None})
    assert decide(partly, ask) == Needs(("x/0000000000000004",), ())


def test_a_user_of_the_name_of_the_servers_is_not_one_of_them() -> None:
    for session, kind in (("user:alice", EventKind.NOTE), ("slot:3", EventKind.NOTE)):
        body = body_for(session, kind, 1)
        assert isinstance(Deciding(session).refusal("*/phone", kind, body), Forbidden)
    body = body_for("user:*", EventKind.MAILBOX, 1)
    assert isinstance(Deciding("user:*").refusal(SERVER, EventKind.MAILBOX, body), Forbidden)
    team = Deciding("team")
    team.say(SERVER, "maintenance at noon")
    assert isinstance(team.refusal("*/phone", EventKind.RECALL, recall_request(1)), Forbidden)
    assert team.send(SERVER, EventKind.RECALL, recall_request(1)) is not None


@pytest.mark.parametrize(
    ("value", "error"),
    [(b"\x91\x02", NewerFormat), (b"\x91\x01", CorruptData), (b"x", CorruptData)],
)
def test_rows_that_cannot_be_read_refuse_the_send(value: bytes, error: type[Exception]) -> None:
    found = Deciding("group:g")
    found.send("alice/phone", EventKind.GROUP, create_request("g", []))
    found.facts["g"] = found.facts["g"]._replace(value=value)
    decision = found.decide("alice/phone", EventKind.MESSAGE, b"hi")
    assert isinstance(decision, Refuse)
    assert type(decision.error) is error


@pytest.mark.parametrize(
    "field", ["recall_ms", "edit_ms", "devices_max", "group_members_max", "group_add_max"]
)
def test_settings_that_make_no_sense_are_refused(field: str) -> None:
    assert RuleSettings().validate() == RuleSettings()
    with pytest.raises(SetupError, match=field):
        RuleSettings(**{field: -1}).validate()
