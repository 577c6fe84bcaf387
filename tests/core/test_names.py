"""Session ids: what they say, and which are refused."""

import pytest

from im_actors.core.model import slot_of
from im_actors.core.names import (
    SessionKind,
    check_session,
    direct_session,
    group_session,
    mailbox_of,
    notice_session,
    peer_of,
    session_kind,
    session_name,
    slot_session,
    users_of,
)
from im_actors.errors import BadRequest, TooLarge

GOOD = {
    "team": SessionKind.OPEN,
    "a:b": SessionKind.OPEN,
    "direct:alice/bob": SessionKind.DIRECT,
    "direct:alice/alice": SessionKind.DIRECT,
    "group:climbers": SessionKind.GROUP,
    "notice:system/alice": SessionKind.NOTICE,
    "user:alice": SessionKind.MAILBOX,
    "batch:spring": SessionKind.BATCH,
    "slot:17": SessionKind.SLOT,
    "reads:climbers": SessionKind.READS,
}


@pytest.mark.parametrize("session", GOOD)
def test_the_id_tells_the_kind(session: str) -> None:
    assert check_session(session) == session
    assert session_kind(session) is GOOD[session]


@pytest.mark.parametrize(
    "session",
    [
        *("direct:", "direct:bob", "direct:bob/alice", "direct:a/b/c", "direct:/b", "group:"),
        *("group:a/b", "notice:alice", "notice:gossip/alice", "notice:system/", "user:a/b"),
        *(
            "slot:",
            "slot:x",
            "slot:01",
            "slot:-1",
            "slot:\u0663",
            "batch:",
            "reads:",
            "",
            7,
            None,
            ["direct:a/b"],
        ),
    ],
)
def test_ids_of_no_form_are_refused(session: object) -> None:
    with pytest.raises(BadRequest):
        check_session(session)


def test_the_longest_names_fit() -> None:
    longest = "x" * 128
    assert check_session(direct_session(longest, "y" * 128))
    with pytest.raises(TooLarge):
        check_session(direct_session(longest + "x", "y"))


def test_both_sides_name_a_direct_session_alike() -> None:
    assert direct_session("bob", "alice") == direct_session("alice", "bob") == "direct:alice/bob"
    assert users_of("direct:alice/bob") == ("alice", "bob")
    assert users_of("direct:alice/alice") == ("alice",)
    assert peer_of("direct:alice/bob", "bob") == "alice"
    assert peer_of("direct:alice/alice", "alice") == "alice"


def test_other_ids() -> None:
    assert users_of(notice_session("system", "alice")) == ("alice",)
    assert users_of(mailbox_of("alice")) == ("alice",)
    assert users_of(group_session("climbers")) == users_of("team") == ()
    assert session_name("team") == "team"
    assert session_name("group:climbers") == "climbers"


@pytest.mark.parametrize("slot", [0, 17, 63])
def test_a_slots_own_session_lies_in_it(slot: int) -> None:
    assert slot_of(slot_session(slot), 64) == slot
