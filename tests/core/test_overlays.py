"""Recalls and edits: whose, until when, and how a reader finds out."""

import pytest

from im_actors.core.model import EventKind, pack
from im_actors.core.overlays import (
    EDIT_BYTES_MAX,
    Overlay,
    Target,
    edit_request,
    event_overlay,
    overlay_key,
    overlay_rank,
    read_target,
    recall_request,
)
from im_actors.core.rule_settings import RuleSettings
from im_actors.errors import BadRequest, Forbidden, ImError, NotFound, TooLarge, TooLate
from tests.core.deciding import Deciding

RECALL, EDIT = EventKind.RECALL, EventKind.EDIT
SESSION = "direct:alice/bob"


def talk(settings: RuleSettings | None = None) -> Deciding:
    found = Deciding(SESSION, settings)
    found.say("alice/phone", "one")
    found.say("bob/pc", "two")
    return found


def overlay(found: Deciding, seq: int) -> Overlay:
    value = found.value(overlay_key(seq))
    assert value is not None
    return Overlay.from_bytes(value)


def test_a_recall_leaves_its_mark_at_the_message() -> None:
    found = talk()
    event = found.send("alice/tablet", RECALL, recall_request(1))
    assert event is not None
    assert event_overlay(event) == (1, Overlay(int(RECALL), "alice", None))
    assert overlay(found, 1) == Overlay(int(RECALL), "alice", None)
    fact = found.facts[overlay_key(1)]
    assert (fact.seq, fact.rank) == (3, overlay_rank(1))


def test_of_several_edits_the_last_is_seen() -> None:
    found = talk()
    for text in (b"second", b"third"):
        found.send("alice/phone", EDIT, edit_request(1, text))
    assert overlay(found, 1) == Overlay(int(EDIT), "alice", b"third")
    found.send("alice/phone", RECALL, recall_request(1))
    assert overlay(found, 1).text is None


def test_the_overlays_of_a_page_are_a_range_of_ranks() -> None:
    found = Deciding("team")
    for _ in range(40):
        found.say("alice/phone", "x")
    for seq in (3, 17, 18, 40):
        found.send("alice/phone", RECALL, recall_request(seq))
    ranks = range(overlay_rank(10), overlay_rank(30) + 1)
    page = sorted(key for key, fact in found.facts.items() if fact.rank in ranks)
    assert page == [overlay_key(17), overlay_key(18)]


@pytest.mark.parametrize("kind", [RECALL, EDIT])
@pytest.mark.parametrize(
    ("device", "seq", "error"),
    [
        ("alice/phone", 3, NotFound),
        ("alice/phone", 2, Forbidden),
        ("bob/pc", 1, Forbidden),
    ],
)
def test_what_is_not_there_or_not_ones_own(
    kind: EventKind, device: str, seq: int, error: type[ImError]
) -> None:
    body = recall_request(seq) if kind == RECALL else edit_request(seq, b"x")
    assert type(talk().refusal(device, kind, body)) is error


def test_what_is_not_there_is_not_asked_for() -> None:
    found = talk()
    found.refusal("alice/phone", RECALL, recall_request(3))
    assert found.asked == []


@pytest.mark.parametrize("kind", [RECALL, EDIT])
def test_only_messages_are_recalled_or_edited(kind: EventKind) -> None:
    found = talk()
    found.send("alice/phone", EventKind.VOID, b"")
    found.send("alice/phone", EDIT, edit_request(1, b"x"))
    for seq in (3, 4):
        body = recall_request(seq) if kind == RECALL else edit_request(seq, b"x")
        assert type(found.refusal("alice/phone", kind, body)) is NotFound


@pytest.mark.parametrize("kind", [RECALL, EDIT])
def test_what_is_recalled_stays_recalled(kind: EventKind) -> None:
    found = talk()
    found.send("alice/phone", RECALL, recall_request(1))
    body = recall_request(1) if kind == RECALL else edit_request(1, b"x")
    assert type(found.refusal("alice/phone", kind, body)) is TooLate


@pytest.mark.parametrize(
    ("kind", "limit_ms"), [(RECALL, RuleSettings().recall_ms), (EDIT, RuleSettings().edit_ms)]
)
def test_the_time_for_it_ends(kind: EventKind, limit_ms: int) -> None:
    body = recall_request(1) if kind == RECALL else edit_request(1, b"x")
    found = talk()
    found.now_ms += limit_ms + 1
    assert type(found.refusal("alice/phone", kind, body)) is TooLate
    found.now_ms -= 1
    assert found.send("alice/phone", kind, body) is not None
    for_ever = talk(RuleSettings(recall_ms=0, edit_ms=0))
    for_ever.now_ms += 10**12
    assert for_ever.send("alice/phone", kind, body) is not None


def test_an_old_message_is_asked_for() -> None:
    found = talk()
    found.send("alice/phone", RECALL, recall_request(1))
    assert [needs.events for needs in found.asked] == [(1,)]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (RECALL, b""),
        (RECALL, pack(())),
        (RECALL, pack((0,))),
        (RECALL, pack((True,))),
        (RECALL, pack((1 << 62,))),
        (RECALL, pack(("1",))),
        (RECALL, pack((1, b"x"))),
        (EDIT, pack((1,))),
        (EDIT, pack((1, "x"))),
        (EDIT, pack((1, None, 3))),
        (EDIT, b"\xc1"),
    ],
)
def test_bodies_of_another_form_are_refused(kind: EventKind, body: bytes) -> None:
    assert type(talk().refusal("alice/phone", kind, body)) is BadRequest


def test_an_edit_has_room_for_its_longest_text() -> None:
    text = b"x" * EDIT_BYTES_MAX
    assert read_target(EDIT, edit_request(1, text)) == Target(1, text)
    user = "a" * 128
    found = Deciding("team")
    found.say(f"{user}/phone", "x")
    assert found.send(f"{user}/phone", EDIT, edit_request(1, text)) is not None
    longer = edit_request(1, text + b"x")
    assert type(found.refusal(f"{user}/phone", EDIT, longer)) is TooLarge
