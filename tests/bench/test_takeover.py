"""The figures of the takeover bench: which ACKs count, and what is made of them."""

from __future__ import annotations

import pytest

from bench.probe import Probe, Probed, session_in
from bench.takeover import Kill, main, spread, summary, table
from im_actors.core.model import slot_of


def probed(sent_s: float, acked_s: float, slot: int = 1, client: int = 0) -> Probed:
    message = Probed(client, "session", slot, sent_s)
    message.acked_s = acked_s
    return message


def test_only_messages_that_were_sent_after_the_kill_count() -> None:
    kill = Kill("shard", "shard-1", 1, 10.0, {1, 2})
    kill.look(
        [
            probed(10.5, 10.6),  # of the time before: not looked at
            probed(9.9, 10.1),  # sent before the kill, answered after it
            probed(10.1, 0.0),  # without an ACK
            probed(10.2, 10.3, slot=3),  # another shard's slot
            probed(10.3, 10.9, slot=1),
            probed(10.4, 10.8, slot=1),
            probed(10.4, 11.5, slot=2),
        ]
    )
    assert kill.first_ms == pytest.approx(800)
    assert kill.all_ms == pytest.approx(1500)


def test_of_a_gateway_its_clients_are_what_was_hit() -> None:
    kill = Kill("gateway", "gateway-1", 0, 10.0, {1})
    kill.look([probed(10.1, 10.2, client=0), probed(10.1, 10.7, client=1)])
    assert kill.seen_s.keys() == {1}
    assert kill.first_ms == pytest.approx(700)


def test_percentiles_are_values_that_occurred_and_the_99th_of_50_is_the_worst() -> None:
    assert spread([float(n) for n in range(1, 51)]) == {"p50": 25, "p90": 45, "p99": 50, "max": 50}
    assert spread([7.0]) == {"p50": 7, "p90": 7, "p99": 7, "max": 7}


def test_the_summary_counts_by_tenths_of_a_second() -> None:
    kills = []
    for ms in (120, 180, 250):
        kill = Kill("shard", "shard-1", 0, 1.0, {1})
        kill.seen_s = {1: 1.0 + ms / 1000}
        kills.append(kill)
    found = summary(kills)
    assert found["histogram_ms"] == {"100": 2, "200": 1}
    assert found["first_ack_ms"]["p50"] == 180
    assert "| shard | 3 | 180 | 250 | 250 | 250 | 250 | 100:2 200:1 |" in table(
        {"kinds": {"shard": found}}
    )


def test_a_session_is_found_for_every_slot() -> None:
    assert [slot_of(session_in(slot, 64, "probe"), 64) for slot in range(64)] == list(range(64))


def test_a_lost_doubled_or_reordered_message_makes_it_void() -> None:
    for seqs, wrong in (([1, 2, 3], 0), ([1, 3, 2], 2), ([1, 1, 2], 2), ([1, 3, 4], 2)):
        probe = Probe("im://127.0.0.1:1", 1, 1, 1.0)
        for seq in seqs:
            probe.messages.append(probed(1.0, 2.0))
            probe.messages[-1].seq = seq
        assert probe.wrong() == wrong


def test_unknown_kinds_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--kinds", "shard,disk"])
    assert "disk: none of shard, replica, gateway" in capsys.readouterr().err
