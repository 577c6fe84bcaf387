"""When the client dials, whom, and when it gives a connection up."""

from __future__ import annotations

from random import Random

import pytest

from im_actors.client.config import Address, ClientConfig, parse_url
from im_actors.client.dialer import (
    ByeReceived,
    Closed,
    Dial,
    Dialer,
    DialerEffect,
    DialerEvent,
    ErrorReceived,
    GoOffline,
    GoOnline,
    HangUp,
    LinkLost,
    LinkOpened,
    LinkState,
    SendHello,
    SendPing,
    Started,
    TellRefused,
    Ticked,
    Welcomed,
)
from im_actors.errors import NotReachable, Overloaded, Unauthenticated

A, B = Address("a", 1), Address("b", 2)


class Rig:
    def __init__(self, *addresses: Address) -> None:
        self.dialer = Dialer(addresses or (A,), ClientConfig(), Random(3))
        self.now_ms = 0
        self.heard_ms = 0
        self.sent_ms = 0
        self.waiting = False

    def feed(self, *events: DialerEvent) -> list[DialerEffect]:
        return [e for event in events for e in self.dialer.handle(event, self.now_ms)]

    def online(self) -> None:
        self.feed(Started(), LinkOpened(), Welcomed(10_000))
        assert self.dialer.state is LinkState.ONLINE
        self.heard_ms = self.sent_ms = self.now_ms

    def pass_ms(self, ms: int) -> list[tuple[int, DialerEffect]]:
        end_ms = self.now_ms + ms
        effects: list[tuple[int, DialerEffect]] = []
        while (at_ms := self.dialer.deadline_ms()) is not None and at_ms <= end_ms:
            self.now_ms = at_ms
            for effect in self.feed(Ticked(self.heard_ms, self.sent_ms, self.waiting)):
                effects.append((self.now_ms, effect))
                if isinstance(effect, SendPing):
                    self.sent_ms = self.now_ms
        self.now_ms = end_ms
        return effects


def test_the_way_up() -> None:
    rig = Rig()
    assert rig.feed(Started()) == [Dial(A)]
    assert rig.feed(LinkOpened()) == [SendHello()]
    assert rig.feed(Welcomed(10_000)) == [GoOnline()]
    assert rig.dialer.error is None


def test_failures_are_spread_and_slow_down() -> None:
    rig = Rig()
    rig.feed(Started())
    dials = 0
    for _ in range(600):
        if rig.dialer.state is LinkState.DIALING:
            dials += 1
            rig.feed(LinkLost(NotReachable("no")))
        rig.pass_ms(100)
    assert 20 <= dials <= 60, "a minute: quick at first, then every 2.5 s on the average"


def test_addresses_take_turns() -> None:
    rig = Rig(A, B)
    tried = []
    rig.feed(Started())
    for _ in range(6):
        tried.append(rig.dialer.address)
        rig.feed(LinkLost(None))
        rig.pass_ms(6_000)
        if rig.dialer.state is LinkState.WAITING:
            rig.pass_ms(6_000)
    assert set(tried) == {A, B}


def test_neither_a_tcp_connection_nor_a_welcome_is_waited_for_for_ever() -> None:
    rig = Rig()
    rig.feed(Started())
    assert rig.pass_ms(5_000)[0] == (5_000, HangUp())
    rig.pass_ms(200)
    rig.feed(LinkOpened())
    assert HangUp() in [effect for _, effect in rig.pass_ms(5_000)]
    assert "WELCOME" in str(rig.dialer.error)


def test_a_server_that_drops_after_each_welcome_is_not_dialed_in_a_hot_loop() -> None:
    rig = Rig()
    rig.feed(Started())
    welcomes = 0
    for _ in range(6_000):
        if rig.dialer.state is LinkState.DIALING:
            welcomes += 1
            assert rig.feed(LinkOpened(), Welcomed(10_000), LinkLost(None))[-1] == GoOffline()
        rig.pass_ms(10)
    assert welcomes <= 60


def test_a_lasting_connection_makes_the_next_reconnect_quick() -> None:
    rig = Rig()
    rig.feed(Started())
    for _ in range(20):
        rig.feed(LinkLost(None))
        rig.pass_ms(5_000)
    rig.feed(LinkOpened(), Welcomed(10_000))
    rig.heard_ms = rig.sent_ms = rig.now_ms
    rig.pass_ms(6_000)
    rig.feed(LinkLost(None))
    rig.pass_ms(100)
    assert rig.dialer.state is LinkState.DIALING


def test_a_refusal_is_told_and_tried_again_rarely() -> None:
    rig = Rig()
    rig.feed(Started(), LinkOpened())
    error = Unauthenticated("no")
    assert rig.feed(ErrorReceived(error)) == [HangUp(), TellRefused(error)]
    assert rig.dialer.refusal is error
    rig.pass_ms(29_999)
    assert rig.dialer.state is LinkState.WAITING
    rig.pass_ms(7_000)
    assert rig.dialer.state is not LinkState.WAITING
    rig.feed(LinkOpened(), Welcomed(10_000))
    assert rig.dialer.refusal is None


def test_a_retryable_error_ends_a_greeting_and_not_a_connection() -> None:
    rig = Rig()
    rig.feed(Started(), LinkOpened())
    assert rig.feed(ErrorReceived(Overloaded("full"))) == [HangUp()]
    rig = Rig()
    rig.online()
    assert rig.feed(ErrorReceived(Overloaded("a request"))) == []


@pytest.mark.parametrize("after_ms", [0, 700])
def test_a_goodbye_says_when_to_come_back(after_ms: int) -> None:
    rig = Rig()
    rig.online()
    assert rig.feed(ByeReceived("restart", after_ms)) == [HangUp(), GoOffline()]
    if after_ms:
        rig.pass_ms(after_ms - 1)
        assert rig.dialer.state is LinkState.WAITING
    rig.pass_ms(after_ms // 5 + 1)
    assert rig.dialer.state is LinkState.DIALING


def test_a_goodbye_for_ever_is_believed() -> None:
    rig = Rig()
    rig.online()
    effects = rig.feed(ByeReceived("gone", -1))
    assert GoOffline() in effects
    assert any(isinstance(e, TellRefused) for e in effects)
    assert rig.dialer.deadline_ms() is None
    assert rig.feed(Started(), LinkLost(None), Closed()) == []


def test_idle_connections_are_pinged_at_the_heartbeat() -> None:
    rig = Rig()
    rig.online()
    pings = []
    for _ in range(60):
        for at_ms, effect in rig.pass_ms(1_000):
            assert isinstance(effect, SendPing)
            pings.append(at_ms)
            rig.heard_ms = at_ms  # PONG
    assert pings == [10_000, 20_000, 30_000, 40_000, 50_000, 60_000]


def test_a_client_that_only_listens_is_heard_of() -> None:
    rig = Rig()
    rig.online()
    pings = 0
    for _ in range(100):
        rig.heard_ms = rig.now_ms
        pings += len(rig.pass_ms(1_000))
    assert 9 <= pings <= 10


def test_two_unanswered_pings_end_an_idle_connection() -> None:
    rig = Rig()
    rig.online()
    effects = rig.pass_ms(30_000)
    assert [type(e) for _, e in effects] == [SendPing, SendPing, HangUp, GoOffline]


def test_while_an_answer_is_missing_silence_is_noticed_sooner() -> None:
    rig = Rig()
    rig.online()
    rig.pass_ms(5_000)
    rig.waiting = True
    rig.sent_ms = 5_000
    effects = rig.pass_ms(9_000)
    assert [type(e) for _, e in effects][:4] == [SendPing, SendPing, HangUp, GoOffline]


def test_closing_ends_everything() -> None:
    rig = Rig()
    rig.online()
    assert rig.feed(Closed()) == [GoOffline(), HangUp()]
    assert rig.feed(LinkLost(None), Started()) == []


def test_urls() -> None:
    assert parse_url("im://a:1,b:2") == ((A, B), False)
    assert parse_url("im://localhost/") == ((Address("localhost", 7070),), False)
    assert parse_url("ims://[::1]:9") == ((Address("::1", 9),), True)
    assert str(Address("::1", 9)) == "[::1]:9"
