"""What a user changes in his own mailbox, his devices among it."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.core import mailbox as m
from im_actors.core.conversation import PINNED_RANK, Conversation, conversation_key
from im_actors.core.deleted import deleted_key, deleted_keys, is_deleted, with_deleted
from im_actors.core.devices import (
    DEVICES_KEY,
    Device,
    device_key,
    device_request,
    kick_request,
    read_devices,
)
from im_actors.core.facts import read_state
from im_actors.core.model import Event, EventKind, make_key, pack
from im_actors.core.notes import joined_note, span_note
from im_actors.core.rule_settings import RuleSettings
from im_actors.core.spans import span_of
from im_actors.errors import BadRequest, CorruptData, Forbidden, NotFound
from tests.core.deciding import Deciding

DIRECT = "direct:alice/bob"
MAILBOX = EventKind.MAILBOX


def mailbox_with(*texts: str) -> Deciding:
    """alice's mailbox, with what bob wrote noted in it."""
    found = Deciding("user:alice")
    events = [
        Event(DIRECT, seq, 1_000 + seq, 1, "bob/pc", seq, text.encode())
        for seq, text in enumerate(texts, 1)
    ]
    if events:
        found.note(span_note(DIRECT, span_of("alice", events)))
    return found


def ask(found: Deciding, body: bytes, device: str = "phone") -> Event:
    event = found.send(f"alice/{device}", MAILBOX, body)
    assert event is not None
    return event


def row_of(found: Deciding, session: str = DIRECT) -> Conversation:
    value = found.value(conversation_key(session))
    assert value is not None
    return Conversation.from_bytes(value)


def test_a_user_reads_a_part() -> None:
    found = mailbox_with(*"abcdefghij")
    assert row_of(found).unread().number == 10
    event = ask(found, m.read_request(DIRECT, 4))
    assert row_of(found).unread().number == 6
    assert read_state(event.body)[:2] == ("read", [DIRECT, 4])


def test_what_changes_nothing_is_taken_without_facts() -> None:
    found = mailbox_with("a", "b")
    ask(found, m.read_request(DIRECT, 2))
    for body in (m.read_request(DIRECT, 1), m.pin_request(DIRECT, False)):
        assert read_state(ask(found, body).body).facts == []
    assert row_of(found).read_seq == 2


def test_what_devices_have_received_moves_forward_and_not_behind_what_was_read() -> None:
    found = mailbox_with()
    eve = "direct:alice/eve"
    event = ask(found, m.received_request([(DIRECT, 3), (eve, 4)]))
    asked = read_state(event.body)
    assert (asked.args, len(asked.facts)) == ([[[DIRECT, 3], [eve, 4]]], 2)
    assert read_state(ask(found, m.received_request([(DIRECT, 3)])).body).facts == []
    ask(found, m.read_request(DIRECT, 7))
    event = ask(found, m.received_request([(DIRECT, 7), (eve, 5)]), "tablet")
    assert [key for key, *_ in read_state(event.body).facts] == [m.received_key(eve)]
    assert m.read_received(found.value(m.received_key(DIRECT))) == 3
    assert m.read_received(found.value(m.received_key(eve))) == 5
    # The conversation's row does not say it: nobody's list changes.
    assert found.value(conversation_key(eve)) is None
    for session in ("team", "group:g", "notice:system/alice", "direct:bob/eve"):
        body = m.received_request([(session, 3)])
        assert type(found.refusal("alice/phone", EventKind.MAILBOX, body)) is Forbidden


def test_settings_of_a_conversation() -> None:
    found = mailbox_with("a")
    for body in (
        m.pin_request(DIRECT, True),
        m.mute_request(DIRECT, True),
        m.fold_request(DIRECT, "work"),
    ):
        ask(found, body)
    row = row_of(found)
    assert (row.pinned, row.muted, row.label) == (True, True, "work")
    assert found.facts[conversation_key(DIRECT)].rank == PINNED_RANK + 1_001
    ask(found, m.hide_request(DIRECT, 1))
    assert found.facts[conversation_key(DIRECT)].rank == 0
    ask(found, m.hide_request(DIRECT, 0))
    ask(found, m.fold_request(DIRECT, ""))
    assert (row_of(found).label, row_of(found).hidden_seq) == ("", 0)


def test_deleting_is_kept_apart_and_blanks_the_preview() -> None:
    found = mailbox_with("a", "b", "c")
    ask(found, m.delete_request(DIRECT, 1))
    ask(found, m.delete_request(DIRECT, 3))
    value = found.value(deleted_key(DIRECT, 1))
    assert [is_deleted(value, seq) for seq in range(1, 5)] == [True, False, True, False]
    preview = row_of(found).preview
    assert preview is not None
    assert preview.text == ""
    assert row_of(found).unread().number == 3
    assert [needs.keys for needs in found.asked][-1] == (
        conversation_key(DIRECT),
        deleted_key(DIRECT, 3),
    )
    assert read_state(ask(found, m.delete_request(DIRECT, 3)).body).facts == []


def test_a_page_of_deleted_messages_has_few_keys() -> None:
    keys = deleted_keys("team", 1_000, 2_100)
    assert keys == [deleted_key("team", seq) for seq in (1_000, 1_500, 2_100)]
    for last in range(1_000, 2_101):
        assert deleted_key("team", last) in deleted_keys("team", 1_000, last)
    value = None
    for seq in range(2_048, 3_072):
        value = with_deleted(value, seq)
    assert value is not None
    assert len(value) < 140
    with pytest.raises(CorruptData):
        is_deleted(pack((1, 5)), 1)


def test_an_open_session_gets_a_place_when_the_user_turns_to_it() -> None:
    found = Deciding("user:alice")
    ask(found, m.read_request("team", 7))
    assert found.facts[conversation_key("team")].rank == make_key(found.now_ms, 0, 0)


@pytest.mark.parametrize("session", ["group:g", DIRECT])
def test_nobody_lists_a_group_that_he_is_not_in_or_what_has_no_event(session: str) -> None:
    found = Deciding("user:alice")
    for request in (m.read_request(session, 7), m.pin_request(session, True)):
        ask(found, request)
        assert found.facts[conversation_key(session)].rank == 0


def test_the_user_may_be_faster_than_the_note_of_his_joining() -> None:
    found = Deciding("user:alice")
    ask(found, m.read_request("group:g", 7))
    found.note(joined_note("group:g", 5, 900))
    row = row_of(found, "group:g")
    assert (row.joined_seq, row.read_seq) == (5, 7)


@pytest.mark.parametrize(
    ("session", "error"),
    [
        ("direct:bob/eve", Forbidden),
        ("notice:system/bob", Forbidden),
        ("user:alice", BadRequest),
        ("batch:b", BadRequest),
        ("slot:3", BadRequest),
    ],
)
def test_only_own_conversations(session: str, error: type[Exception]) -> None:
    found = Deciding("user:alice")
    for body in (
        m.read_request(session, 1),
        m.pin_request(session, True),
        m.mute_request(session, True),
        m.hide_request(session, 1),
        m.fold_request(session, "x"),
        m.delete_request(session, 1),
    ):
        assert type(found.refusal("alice/phone", MAILBOX, body)) is error


@given(st.integers(0, 10**9))
def test_a_long_life_equals_dictionaries(seed: int) -> None:
    rng = random.Random(seed)
    found = Deciding("user:alice")
    sessions = ("team", DIRECT, "group:g", "notice:system/alice")
    fields = {name: dict.fromkeys(sessions, default) for name, default in DEFAULTS.items()}
    deleted: set[tuple[str, int]] = set()
    for _ in range(40):
        session, what = rng.choice(sessions), rng.choice((*REQUESTS, "delete"))
        if what == "delete":
            seq = rng.choice((1, 1_023, 1_024, 5_000))
            ask(found, m.delete_request(session, seq))
            deleted.add((session, seq))
            continue
        name, request, values = REQUESTS[what]
        value = rng.choice(values)
        ask(found, request(session, value))
        known = fields[name][session]
        fields[name][session] = max(known, value) if what == "read" else value
    for session in sessions:
        row = Conversation.from_bytes(found.value(conversation_key(session)) or EMPTY)
        assert {name: getattr(row, name) for name in fields} == {
            name: of[session] for name, of in fields.items()
        }
        for seq in (1, 2, 1_023, 1_024, 5_000):
            value = found.value(deleted_key(session, seq))
            assert is_deleted(value, seq) == ((session, seq) in deleted)


EMPTY = Conversation().to_bytes()
DEFAULTS = {"read_seq": 0, "pinned": False, "muted": False, "hidden_seq": 0, "label": ""}
REQUESTS = {
    "read": ("read_seq", m.read_request, (1, 5, 9)),
    "pin": ("pinned", m.pin_request, (True, False)),
    "mute": ("muted", m.mute_request, (True, False)),
    "hide": ("hidden_seq", m.hide_request, (0, 4, 9)),
    "fold": ("label", m.fold_request, ("", "work", "play")),
}


# ---- devices


def devices(found: Deciding) -> list[str]:
    return read_devices(found.value(DEVICES_KEY))


def test_devices_are_listed_and_kicked() -> None:
    found = Deciding("user:alice")
    ask(found, device_request("phone", "a phone"))
    ask(found, device_request("pc", "a pc"), device="pc")
    ask(found, device_request("phone", "a new phone"))
    assert devices(found) == ["phone", "pc"]
    value = found.value(device_key("phone"))
    assert value is not None
    assert Device.from_bytes(value) == Device("a new phone", found.now_ms)
    ask(found, kick_request("pc"))
    assert devices(found) == ["phone"]
    value = found.value(device_key("pc"))
    assert value is not None
    assert Device.from_bytes(value).kicked_ms == found.now_ms


def test_a_kicked_device_is_let_in_by_another_one_only() -> None:
    found = Deciding("user:alice")
    ask(found, device_request("phone", ""))
    ask(found, device_request("pc", ""))
    ask(found, kick_request("pc"))
    for body in (device_request("pc", ""), device_request("other", ""), kick_request("phone")):
        assert type(found.refusal("alice/pc", MAILBOX, body)) is Forbidden
    ask(found, device_request("pc", "again"))
    ask(found, kick_request("phone"), device="pc")
    assert devices(found) == ["pc"]


def test_there_is_a_limit_of_devices() -> None:
    found = Deciding("user:alice", RuleSettings(devices_max=2))
    for name in ("phone", "pc", "phone"):
        ask(found, device_request(name, ""))
    error = found.refusal("alice/tv", MAILBOX, device_request("tv", ""))
    assert type(error) is Forbidden
    assert "kick one first" in str(error)
    ask(found, kick_request("pc"))
    ask(found, device_request("tv", ""), device="tv")
    assert type(found.refusal("alice/phone", MAILBOX, device_request("pc", ""))) is Forbidden


def test_a_device_that_is_not_listed_is_not_kicked() -> None:
    found = Deciding("user:alice")
    ask(found, device_request("phone", ""))
    assert type(found.refusal("alice/phone", MAILBOX, kick_request("pc"))) is NotFound
    ask(found, kick_request("phone"), device="pc")
    assert type(found.refusal("alice/pc", MAILBOX, kick_request("phone"))) is NotFound
