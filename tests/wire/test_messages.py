"""What clients send is checked: whole messages by exceptions, entries of a SEND by NACKs."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.core.formats import Formats
from im_actors.core.model import pack
from im_actors.errors import (
    BadRequest,
    ImError,
    OutOfOrder,
    Overloaded,
    ProtocolViolation,
    TooLarge,
    UnknownVersion,
)
from im_actors.wire import messages
from im_actors.wire.codec import FrameDecoder, encode_frame
from im_actors.wire.limits import DETAIL_BYTES_MAX, Limits
from im_actors.wire.messages import Hello, MessageType, Nack, Pull, check_send

LIMITS = Limits(window=4, body_bytes=100, follow_sessions=3, pull_events=50)


def entry(session: Any = "team", n: Any = 1, kind: Any = 1, body: Any = b"hello") -> list[Any]:
    return [session, n, kind, body]


def received(message: tuple[Any, ...]) -> list[Any]:
    """The message as the other side gets it."""
    (decoded,) = FrameDecoder().feed(encode_frame(message))
    return decoded


# ---- HELLO


def test_hello() -> None:
    hello = messages.check_hello(received(messages.hello("alice", "phone-1", None, "")))
    assert hello == Hello(1, "alice", "phone-1", None, "")
    assert hello.address == "alice/phone-1"


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ([1], ProtocolViolation),
        ([2, 1, "a", "b", None, ""], ProtocolViolation),
        ([1, "1", "a", "b", None, ""], ProtocolViolation),
        ([1, True, "a", "b", None, ""], ProtocolViolation),
        ([1, 1, "a", "b", None], ProtocolViolation),
        ([1, 1, "a", "b", None, "", 0], ProtocolViolation),
        ([1, 0, "a", "b", None, ""], UnknownVersion),
        ([1, -1], UnknownVersion),
        ([1, 2], ProtocolViolation),
        ([1, 1, "", "b", None, ""], BadRequest),
        ([1, 1, "a/b", "b", None, ""], BadRequest),
        ([1, 1, "a", b"b", None, ""], BadRequest),
        ([1, 1, "a", "b\n", None, ""], BadRequest),
        ([1, 1, "a" * 129, "b", None, ""], TooLarge),
        ([1, 1, "a", "b", 7, ""], BadRequest),
        ([1, 1, "a", "b", "", ""], BadRequest),
        ([1, 1, "a", "b", "t" * 8_193, ""], TooLarge),
        ([1, 1, "a", "b", None, None], BadRequest),
        ([1, 1, "a", "b", None, "x" * 257], TooLarge),
    ],
    ids=str,
)
def test_bad_hello(message: list[Any], error: type[ImError]) -> None:
    with pytest.raises(error):
        messages.check_hello(message)


def test_hello_of_a_later_version() -> None:
    """It begins like this one's; what is spoken is what both know."""
    hello = messages.check_hello([1, 9, "a", "b", None, "", "of a later version"])
    assert hello == Hello(1, "a", "b", None, "")
    later = Formats(2, 4)
    assert messages.check_hello([1, 9, "a", "b", None, ""], later).version == 4
    assert messages.check_hello([1, 3, "a", "b", None, ""], later).version == 3
    with pytest.raises(UnknownVersion, match="version 1 is not spoken here, only 2 to 4: update"):
        messages.check_hello([1, 1, "a", "b", None, ""], later)


# ---- SEND


def test_send_passes_good_entries_on_as_they_came() -> None:
    entries = [entry(n=1), entry(n=2), entry("other", 7, body=b"")]
    for _ in range(2):
        sends = check_send([2, entries], LIMITS)
        assert sends.accepted == entries
        assert sends.refused == []
        assert all(a is b for a, b in zip(sends.accepted, entries, strict=True))
    assert sends.accepted is entries, "names that are known by now cost no copy"


def test_a_void_has_no_body() -> None:
    sends = check_send([2, [entry(n=1, kind=0, body=b""), entry(n=2, kind=0)]], LIMITS)
    assert sends.accepted == [entry(n=1, kind=0, body=b"")]
    assert [(nack.n, nack.code) for nack in sends.refused] == [(2, BadRequest.code)]


def test_changes_pass_as_they_came() -> None:
    bodies = [
        (2, pack([5])),
        (3, pack([5, b"new"])),
        (4, pack(["leave", []])),
        (5, pack(["x", []])),
    ]
    entries = [entry(n=n, kind=kind, body=body) for n, (kind, body) in enumerate(bodies, 1)]
    assert check_send([2, entries], LIMITS) == (entries, [])


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (entry(body=b"x" * 101), TooLarge.code),
        (entry(body=b"x" * 70_000), TooLarge.code),
        (entry(body="text"), BadRequest.code),
        (entry(body=None), BadRequest.code),
        (entry(session="x" * 321), TooLarge.code),
        (entry(session=""), BadRequest.code),
        (entry(session="a\x00b"), BadRequest.code),
        (entry(n=0), BadRequest.code),
        (entry(n=-1), BadRequest.code),
        (entry(n=2**63), BadRequest.code),
        (entry(kind=2), BadRequest.code),
        (entry(kind=2, body=b"\x91\x00"), BadRequest.code),
        (entry(kind=2, body=b"\x92\x05\xc4\x01x"), BadRequest.code),
        (entry(kind=2, body=b"\x91" * 99), BadRequest.code),
        (entry(kind=3, body=b"\x91\x05"), BadRequest.code),
        (entry(kind=3, body=b"\x92\x05\xa1x"), BadRequest.code),
        (entry(kind=3, body=b"\x92\x05\xc0"), BadRequest.code),
        (entry(kind=4), BadRequest.code),
        (entry(kind=4, body=b"\x92\xa0\x90"), BadRequest.code),
        (entry(kind=5, body=b"\x92\xa4read\x81\x01\x02"), BadRequest.code),
        (entry(kind=5, body=b"\x93\xa4read\x90\x90"), BadRequest.code),
        (entry(kind=6), BadRequest.code),
        (entry(kind=7), BadRequest.code),
        (entry(kind=True), BadRequest.code),
        (entry(kind=1.0), BadRequest.code),
        (entry(kind=[]), BadRequest.code),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_entry_is_refused_alone(bad: list[Any], code: int) -> None:
    before, after = entry(n=5), entry(n=6)
    sends = check_send([2, [before, bad, after]], LIMITS)
    assert sends.accepted == [before, after]
    (nack,) = sends.refused
    assert (nack.session, nack.n, nack.code) == (bad[0], bad[1], code)
    assert nack.detail
    encode_frame(messages.nacks(sends.refused))


@pytest.mark.parametrize(
    "message",
    [
        [2],
        [2, None],
        [2, []],
        [2, {}],
        [2, [entry()], 1],
        [2, [entry(n=n) for n in range(1, 6)]],
        [2, [entry(), "entry"]],
        [2, [entry(), entry()[:3]]],
        [2, [[*entry(), 1]]],
        [2, [entry(session=b"team")]],
        [2, [entry(session=["team"])]],
        [2, [entry(n="1")]],
        [2, [entry(n=True)]],
        [2, [entry(n=1.0)]],
        [2, [entry(session="x" * 1_025)]],
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_send_that_is_wrong_as_a_whole(message: list[Any]) -> None:
    with pytest.raises(ProtocolViolation):
        check_send(message, LIMITS)


def test_the_memory_of_session_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    known: set[str] = set()
    monkeypatch.setattr(messages, "_known_sessions", known)
    monkeypatch.setattr(messages, "KNOWN_SESSIONS_MAX", 10)
    for i in range(100):
        check_send([2, [entry(f"session {i}")]], LIMITS)
        assert f"session {i}" in known
        assert len(known) <= 10


def test_a_name_that_was_refused_is_not_remembered() -> None:
    for _ in range(2):
        assert check_send([2, [entry("bad\n")]], LIMITS).refused


# ---- the others


def test_follow() -> None:
    assert messages.check_follow([3, ["a", "b"]], LIMITS) == ["a", "b"]
    assert messages.check_unfollow([4, ["a"]], LIMITS) == ["a"]


@pytest.mark.parametrize("check", [messages.check_follow, messages.check_unfollow])
@pytest.mark.parametrize(
    ("sessions", "error"),
    [
        ([[]], ProtocolViolation),
        (["a"], ProtocolViolation),
        ([["a"], 1], ProtocolViolation),
        ([], ProtocolViolation),
        ([["a", 1]], BadRequest),
        ([["a", ["b"]]], BadRequest),
        ([[""]], BadRequest),
        ([["a" * 321]], TooLarge),
        ([["a", "b", "c", "d"]], TooLarge),
    ],
    ids=str,
)
def test_bad_follow(check: Any, sessions: list[Any], error: type[ImError]) -> None:
    with pytest.raises(error):
        check([3, *sessions], LIMITS)


def test_pull() -> None:
    message = received(messages.pull(1, "team", -1, 0, 20))
    assert messages.check_pull(message, LIMITS) == Pull(1, "team", -1, 0, 20)
    assert messages.check_pull([5, 1, "team", 0, 9, 5_000], LIMITS).limit == LIMITS.pull_events


@pytest.mark.parametrize(
    "fields",
    [
        (0, "team", 0, 0, 1),
        (1, "", 0, 0, 1),
        (1, "team", -2, 0, 1),
        (1, "team", 0, -1, 1),
        (1, "team", 0, 0, 0),
        (1, "team", None, 0, 1),
        (1, "team", 0, 0, True),
        (2**63, "team", 0, 0, 1),
        (1, 5, 0, 0, 1),
    ],
    ids=str,
)
def test_bad_pull(fields: tuple[Any, ...]) -> None:
    with pytest.raises(BadRequest):
        messages.check_pull([5, *fields], LIMITS)


def test_ping_and_bye() -> None:
    assert messages.check_ping([6, 9]) == 9
    assert messages.check_bye([7, "x" * 10_000]) == "x" * DETAIL_BYTES_MAX
    for check, bad in (
        (messages.check_ping, [6, "9"]),
        (messages.check_ping, [6]),
        (messages.check_bye, [7, None]),
        (messages.check_bye, [7, "a", 1]),
    ):
        with pytest.raises((BadRequest, ProtocolViolation)):
            check(bad)


@pytest.mark.parametrize("kind", [1, 0, 10, 65, 128, -1])
def test_other_types_are_refused(kind: int) -> None:
    with pytest.raises(ProtocolViolation):
        messages.refuse_type([kind])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=20,
)


@given(st.lists(values, max_size=6))
def test_whatever_comes_only_our_errors_are_raised(fields: list[Any]) -> None:
    for check in (
        lambda m: messages.check_hello([1, *m]),
        lambda m: messages.check_hello([1, 1, *m]),
        lambda m: check_send([2, *m], LIMITS),
        lambda m: check_send([2, [m]], LIMITS),
        lambda m: messages.check_follow([3, *m], LIMITS),
        lambda m: messages.check_pull([5, *m], LIMITS),
        lambda m: messages.check_ping([6, *m]),
        lambda m: messages.check_bye([7, *m]),
    ):
        with contextlib.suppress(ImError):
            check(fields)


@given(
    st.tuples(st.sampled_from(["team", "a\n", "x" * 330, "", "neu"]), st.integers(-2, 3))
    .flatmap(
        lambda head: st.tuples(
            st.just(head[0]),
            st.just(head[1]),
            st.sampled_from([0, 1, 2, None]),
            st.sampled_from([b"", b"x", b"x" * 101, "x"]),
        )
    )
    .map(list)
)
def test_an_entry_is_judged_the_same_on_the_hot_path_and_at_leisure(candidate: list[Any]) -> None:
    session, n, kind, body = candidate
    good = (
        session in ("team", "neu")
        and n > 0
        and ((kind == 1 and body in (b"", b"x")) or (kind == 0 and body == b""))
    )
    sends = check_send([2, [entry(), candidate]], LIMITS)
    assert sends.accepted == ([entry(), candidate] if good else [entry()])
    assert len(sends.refused) == (0 if good else 1)


# ---- building


def test_nack_of() -> None:
    assert messages.nack_of("team", 3, Overloaded("full", 250)) == Nack(
        "team", 3, 200, 250, 0, "full"
    )
    assert messages.nack_of("team", 3, OutOfOrder(), 2).expected_n == 2


@pytest.mark.parametrize("text", ["x" * 5_000, "é" * 5_000, "\ud800" * 10, "", "😀" * 200])
def test_details_can_always_be_sent(text: str) -> None:
    detail = messages.clean_detail(text)
    assert len(detail.encode()) <= DETAIL_BYTES_MAX
    encode_frame(messages.error_message(BadRequest(text)))


def test_in_batches() -> None:
    rows = [("s", i) for i in range(300)]
    parts = list(messages.in_batches(rows))
    assert [len(part) for part in parts] == [128, 128, 44]
    assert [row for part in parts for row in part] == rows


@given(st.lists(st.binary(max_size=400), max_size=30))
def test_events_are_split_to_fit(encoded: list[bytes]) -> None:
    frame_bytes = 1_024
    parts = list(messages.split_events(encoded, frame_bytes, items_max=5))
    assert [event for part in parts for event in part] == encoded
    for part in parts:
        assert 0 < len(part) <= 5
        encode_frame(messages.push(part), frame_bytes)


def test_a_page_is_cut_at_its_far_end() -> None:
    encoded = [bytes([i]) * 200 for i in range(10)]
    oldest = messages.fit_events(encoded, 1_200, newest=False)
    newest = messages.fit_events(encoded, 1_200, newest=True)
    assert oldest == encoded[:3]
    assert newest == encoded[-3:]
    assert messages.fit_events([], 1_200, newest=True) == []


def test_types_of_clients_and_servers_are_apart() -> None:
    assert all(0 < kind < 128 for kind in MessageType)
