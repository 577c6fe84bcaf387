"""What one address and one user get of a door, and what is left for the others."""

from __future__ import annotations

import pytest

from im_actors.errors import Overloaded, RateLimited, SetupError
from im_actors.net import shares as module
from im_actors.net.shares import Shares, ShareSettings, network_of

A, B = "192.0.2.1", "192.0.2.2"


def make(*, strangers_max: int = 100, proven: bool = True, **settings: int) -> Shares:
    return Shares(ShareSettings(**settings).validate(), strangers_max, proven)


def test_the_connections_of_an_address() -> None:
    shares = make(connections_per_address=2)
    assert [shares.arrived(A, 0) for _ in range(2)] == [None, None]
    refusal = shares.arrived(A, 0)
    assert isinstance(refusal, Overloaded)
    assert refusal.retry_after_ms == module.CROWDED_MS
    assert shares.arrived(B, 0) is None
    shares.gone(A, 0)
    assert shares.arrived(A, 0) is None
    assert (shares.connections, shares.refused) == (3, 1)


def test_the_attempts_of_an_address_say_when_to_come_back() -> None:
    shares = make(attempts_per_s=10, attempts_burst=2)
    for _ in range(2):
        assert shares.arrived(A, 0) is None
        shares.gone(A, 0)
    refusal = shares.arrived(A, 0)
    assert isinstance(refusal, RateLimited)
    assert refusal.retry_after_ms == 100
    assert shares.arrived(B, 0) is None
    assert shares.arrived(A, 99) is not None
    assert shares.arrived(A, 100) is None


def test_going_away_brings_no_new_bucket() -> None:
    shares = make(attempts_per_s=1, attempts_burst=1)
    assert shares.arrived(A, 0) is None
    shares.gone(A, 0)
    shares.forget(500)
    assert shares.arrived(A, 500) is not None
    # Nobody is remembered for ever either.
    shares.forget(60_000)
    assert not shares._addresses.shares


def test_strangers_of_one_address_leave_room_for_others() -> None:
    shares = make(strangers_max=4, strangers_per_address=2)
    assert [shares.arrived(A, 0) for _ in range(2)] == [None, None]
    assert isinstance(shares.arrived(A, 0), Overloaded)
    assert shares.arrived(B, 0) is None
    shares.greeted(A, "alice", 0)
    assert shares.strangers == 2
    assert shares.arrived(A, 0) is None, "who has said HELLO is no stranger"
    assert shares.arrived(B, 0) is None
    assert isinstance(shares.arrived("192.0.2.3", 0), Overloaded), "strangers_max"
    shares.left(A, "alice", 0)
    assert shares.strangers == 5
    shares.gone(A, 0)
    assert (shares.strangers, shares.welcomed) == (4, 0)


def test_a_user_shares_connections_and_sends() -> None:
    shares = make(connections_per_user=2, sends_per_s=1, sends_burst=3)
    for host in (A, B, B):
        shares.arrived(host, 0)
    first, second = shares.greeted(A, "alice", 0), shares.greeted(B, "alice", 0)
    assert first is second
    with pytest.raises(Overloaded, match="'alice' has too many") as refused:
        shares.greeted(B, "alice", 0)
    assert refused.value.retry_after_ms == module.CROWDED_MS
    assert shares.greeted(B, "bob", 0) is not first
    assert shares.users == 2
    assert first.take(3, 0) == 0
    shares.left(A, "alice", 0)
    shares.left(B, "alice", 0)
    shares.forget(100)
    assert shares.greeted(A, "alice", 100).take(3, 100) > 0, "coming anew brings no new sends"


def test_who_says_who_he_is_without_proof_takes_nothing_from_others() -> None:
    shares = make(proven=False, connections_per_user=1)
    for _ in range(2):
        shares.arrived(A, 0)
    assert shares.greeted(A, "alice", 0) is not shares.greeted(A, "alice", 0)


def test_this_host_is_not_counted_but_its_strangers_are() -> None:
    shares = make(connections_per_address=1, attempts_burst=1, strangers_max=3)
    assert [shares.arrived("127.0.0.1", 0) for _ in range(3)] == [None] * 3
    assert isinstance(shares.arrived("::1", 0), Overloaded)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_MAX", 10)
    shares = make()
    for number in range(50):
        shares.arrived(f"198.51.100.{number}", 0)
        shares.gone(f"198.51.100.{number}", 0)
        shares.forget(0)
    assert len(shares._addresses.shares) == 10


def test_the_name_of_an_address() -> None:
    assert network_of("192.0.2.1") == network_of("::ffff:192.0.2.1") == "192.0.2.1"
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:2%eth0") == "2001:db8::/64"
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8::1")
    assert [network_of(host) for host in ("127.0.0.1", "::1", "", "unix")] == [""] * 4


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_nonsense(value: int) -> None:
    with pytest.raises(SetupError, match="attempts_per_s"):
        ShareSettings(attempts_per_s=value).validate()
