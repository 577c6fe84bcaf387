"""Facts: the newest event of a key holds, in whatever order facts come."""

import random

import pytest

from im_actors.core.facts import (
    FACT_VALUE_BYTES_MAX,
    Fact,
    StateBody,
    event_facts,
    is_state,
    newest,
    pack_request,
    pack_state,
    read_request,
    read_state,
    record_facts,
)
from im_actors.core.model import Event, EventKind, encode_event, make_record, pack
from im_actors.errors import BadRequest, TooLarge


def state_event(seq: int, *facts: tuple[str, int, bytes | None], session: str = "group:g") -> Event:
    body = pack_state("put", [], facts)
    return Event(session, seq, seq, int(EventKind.GROUP), "alice/phone", seq, body)


def test_bodies_are_what_was_packed() -> None:
    assert read_request(pack_request("read", "team", 7)) == ("read", ["team", 7])
    body = pack_state("read", ["team", 7], [("c/team", 9, b"row"), ("gone", 0, None)])
    assert read_state(body) == StateBody(
        "read", ["team", 7], [("c/team", 9, b"row"), ("gone", 0, None)]
    )


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", pack(("read",)), pack((1, [])), pack(("x", 1)), pack(5)]
)
def test_other_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        read_request(body)


def test_a_fact_has_its_limits() -> None:
    with pytest.raises(TooLarge, match="'c/team'"):
        pack_state("put", [], [("c/team", 0, b"x" * (FACT_VALUE_BYTES_MAX + 1))])


def test_only_state_events_say_facts() -> None:
    event = state_event(3, ("m/bob", 5, b"member"))
    assert event_facts(event) == [Fact("m/bob", 3, 5, b"member")]
    assert event_facts(event._replace(kind=int(EventKind.MESSAGE))) == []


def test_an_event_says_of_one_key_one_thing() -> None:
    with pytest.raises(BadRequest, match="'b'"):
        pack_state("put", [], [("a", 0, b""), ("b", 0, b"1"), ("c", 0, b""), ("b", 0, b"1")])


def test_what_is_gone_is_in_no_ordered_list() -> None:
    said = event_facts(state_event(7, ("gone", 5, None), ("here", 5, b"")))
    assert said == [Fact("gone", 7, 0, None), Fact("here", 7, 5, b"")]


def test_a_record_tells_the_facts_of_its_state_events() -> None:
    events = [
        Event("team", 1, 1, int(EventKind.MESSAGE), "bob/pc", 1, b"hello"),
        state_event(1, ("m/bob", 5, b"member")),
        state_event(1, ("m/eve", 5, b"admin"), session="group:h"),
    ]
    record = make_record(3, 9, 2, [encode_event(event) for event in events])
    assert list(record_facts(record.payload)) == [
        ("group:g", [Fact("m/bob", 1, 5, b"member")]),
        ("group:h", [Fact("m/eve", 1, 5, b"admin")]),
    ]
    plain = make_record(3, 9, 2, [encode_event(events[0])])
    assert list(record_facts(plain.payload)) == []


@pytest.mark.parametrize("kind", EventKind)
def test_recalls_and_edits_change_the_state_and_messages_do_not(kind: EventKind) -> None:
    stateless = (EventKind.VOID, EventKind.MESSAGE, EventKind.DROPPED)
    assert is_state(kind) == (kind not in stateless)
    event = state_event(1, ("x/01", 1, b"row"))._replace(kind=int(kind))
    record = make_record(3, 9, 2, [encode_event(event)])
    assert len(list(record_facts(record.payload))) == (kind not in stateless)


def test_any_order_gives_the_same_state() -> None:
    rng = random.Random(5)
    facts = [Fact(rng.choice("abc"), seq, seq, b"%d" % seq) for seq in range(1, 40)]
    expected: dict[str, Fact] = {}
    for fact in facts:
        expected[fact.key] = fact
    for _ in range(20):
        rng.shuffle(facts)
        found: dict[str, Fact] = {}
        for fact in [*facts, *rng.sample(facts, 10)]:
            newest(found, fact)
        assert found == expected
