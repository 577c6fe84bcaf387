"""What gateways ask replicas: it comes out as it went in, and nothing else comes out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.core.fact_lists import (
    FACT_KEYS_MAX,
    FACT_PAGE_MAX,
    FactQuery,
    OfKeys,
    Prefixed,
    Ranked,
    Since,
)
from im_actors.core.facts import RANK_MAX, Fact
from im_actors.errors import ProtocolViolation
from im_actors.wire.codec import FrameDecoder
from im_actors.wire.links import LINK_FRAME_BYTES_MAX, InsideType, pack_frame, read_facts
from im_actors.wire.questions import (
    QUESTIONS,
    RANGES_MAX,
    CountAsked,
    FactsAsked,
    PageAsked,
    Question,
    RanksAsked,
    pack_question,
    read_question,
)

NUMBER = st.integers(0, 1 << 62)
LIMIT = st.integers(1, FACT_PAGE_MAX)
TEXT = st.text(max_size=20)
QUERY = st.one_of(
    st.builds(Ranked, st.integers(0, RANK_MAX), TEXT, LIMIT),
    st.builds(Prefixed, TEXT, TEXT, LIMIT),
    st.builds(OfKeys, st.lists(TEXT, max_size=5).map(tuple)),
    st.builds(Since, NUMBER, LIMIT),
)
RANGE = st.tuples(st.integers(1, RANK_MAX), st.integers(0, RANK_MAX))
QUESTION = st.one_of(
    st.builds(PageAsked, NUMBER, TEXT, st.integers(-1, 1 << 62), NUMBER, NUMBER, NUMBER),
    st.builds(FactsAsked, NUMBER, TEXT, NUMBER, QUERY),
    st.builds(CountAsked, NUMBER, TEXT, NUMBER, NUMBER, NUMBER, TEXT),
    st.builds(RanksAsked, NUMBER, TEXT, NUMBER, st.lists(RANGE, max_size=RANGES_MAX).map(tuple)),
)
EXAMPLES: tuple[tuple[Question, list[Any]], ...] = (
    (PageAsked(7, "s", -1, 0, 50, 9), [142, 7, "s", -1, 0, 50, 9]),
    (FactsAsked(7, "s", 9, Ranked(5, "k", 25)), [144, 7, "s", 9, 0, [5, "k", 25]]),
    (FactsAsked(7, "s", 9, Prefixed("c/", "c/k", 25)), [144, 7, "s", 9, 1, ["c/", "c/k", 25]]),
    (FactsAsked(7, "s", 9, OfKeys(("a", "b"))), [144, 7, "s", 9, 2, [["a", "b"]]]),
    (FactsAsked(7, "s", 9, Since(8, 25)), [144, 7, "s", 9, 3, [8, 25]]),
    (CountAsked(7, "s", 9, 3, 8, "alice"), [146, 7, "s", 9, 3, 8, "alice"]),
    (RanksAsked(7, "s", 9, ((1, 5), (7, 9))), [148, 7, "s", 9, [[1, 5], [7, 9]]]),
)


def decoded(frame: bytes) -> list[Any]:
    (message,) = FrameDecoder(LINK_FRAME_BYTES_MAX).feed(frame)
    return message


@given(question=QUESTION)
def test_round_trip(question: Question) -> None:
    message = decoded(pack_question(question))
    assert message[0] in QUESTIONS
    assert read_question(message) == question


@pytest.mark.parametrize(("question", "message"), EXAMPLES)
def test_the_frames(question: Question, message: list[Any]) -> None:
    assert decoded(pack_question(question)) == message
    assert read_question(message) == question


@pytest.mark.parametrize("message", [message for _, message in EXAMPLES], ids=str)
def test_any_field_of_another_type_or_one_too_many_is_a_violation(message: list[Any]) -> None:
    wrong: list[list[Any]] = [[*message, 0], message[:-1]]
    for at in range(len(message)):
        wrong += [[*message[:at], other, *message[at + 1 :]] for other in (1.5, None, True, [1])]
    if message[0] == InsideType.LIST_FACTS:
        *head, args = message
        wrong += [[*head, [*args, 0]], [*head, args[:-1]]]
        wrong += [[*head, [*args[:at], 1.5, *args[at + 1 :]]] for at in range(len(args))]
    for frame in wrong:
        with pytest.raises(ProtocolViolation):
            read_question(frame)


@pytest.mark.parametrize("what", [-1, 4, 1 << 70, "0", True])
def test_there_are_four_lists(what: Any) -> None:
    with pytest.raises(ProtocolViolation):
        read_question([144, 7, "s", 9, what, [8, 25]])


@pytest.mark.parametrize(
    "query", [Ranked(-1, "", 1), Since(0, 0), OfKeys(("k",) * (FACT_KEYS_MAX + 1))]
)
def test_what_cannot_be_asked_is_a_violation(query: FactQuery) -> None:
    with pytest.raises(ProtocolViolation):
        read_question(decoded(pack_question(FactsAsked(7, "s", 9, query))))


@pytest.mark.parametrize("ranges", [[[1]], [[1, 2, 3]], [[0, 5]], [["1", 5]], [[1, True]], [1],
                                    [[1, RANK_MAX + 1]], [[1, 2]] * (RANGES_MAX + 1)])  # fmt: skip
def test_ranges_that_are_none_are_a_violation(ranges: list[Any]) -> None:
    with pytest.raises(ProtocolViolation):
        read_question([148, 7, "s", 9, ranges])


def test_facts_come_out_as_they_went_in() -> None:
    facts = [Fact("k", 3, 1 << 62, b"v"), Fact("gone", 4, 0, None), Fact("", 0, 0, b"")]
    message = decoded(pack_frame((InsideType.FACTS, 7, 0, 9, facts, True)))
    assert list(read_facts(message[4])) == facts
    for at in range(4):
        row: list[Any] = list(facts[0])
        row[at] = 1.5
        with pytest.raises(ValueError):
            read_facts([row])
