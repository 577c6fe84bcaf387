"""Every anomaly by its name: a ledger that cannot see a fault is worth nothing."""

from __future__ import annotations

import pytest

from im_actors.cli.ledger import Entry, Ledger, Seen, quantiles

DEVICE = "alice/phone-1"


def book(ledger: Ledger, n: int, seq: int | None, text: str = "", device: str = DEVICE) -> Entry:
    entry = ledger.sent("team", device, n, "alice", (text or f"{device} {n}").encode(), n * 1.0)
    if seq is not None:
        ledger.acked(entry, seq, 1, 3, n + 0.5)
    return entry


def seen(seq: int, n: int, device: str = DEVICE, text: str = "", at_s: float = 9.0) -> Seen:
    return Seen(seq, device, n, (text or f"{device} {n}").encode(), at_s)


def three() -> Ledger:
    """Three messages of one device, ACKed in order."""
    ledger = Ledger()
    for n in (1, 2, 3):
        book(ledger, n, n)
    return ledger


def read(ledger: Ledger, *events: Seen, final: tuple[Seen, ...] | None = None) -> None:
    ledger.follower("reader", "team").events = list(events)
    ledger.final("auditor", "team").events = list(events if final is None else final)


GOOD = (seen(1, 1), seen(2, 2), seen(3, 3))


def test_a_good_run_has_nothing_wrong() -> None:
    ledger = three()
    read(ledger, *GOOD)
    verdict = ledger.check()
    assert verdict.ok
    assert (verdict.sent, verdict.acked, verdict.received) == (3, 3, 3)
    assert verdict.anomalies == []


def test_what_was_never_acked_fails_the_run_and_is_not_called_lost() -> None:
    ledger = three()
    book(ledger, 4, None)
    read(ledger, *GOOD)
    verdict = ledger.check()
    assert not verdict.ok
    assert (verdict.sent, verdict.acked, verdict.lost) == (4, 3, 0)


def test_an_unacked_message_may_be_there() -> None:
    ledger = three()
    book(ledger, 4, None)
    read(ledger, *GOOD, seen(4, 4))
    verdict = ledger.check()
    assert (verdict.lost, verdict.mismatched, verdict.received) == (0, 0, 4)


def test_lost_write() -> None:
    ledger = three()
    read(ledger, *GOOD[:2])
    verdict = ledger.check()
    assert verdict.lost == 1
    assert verdict.anomalies[0].startswith("lost-write: message 3 of alice/phone-1")


def test_unseen_by_the_follower_counts_as_lost() -> None:
    ledger = three()
    read(ledger, *GOOD[:2], final=GOOD)
    verdict = ledger.check()
    assert verdict.lost == 1
    assert verdict.anomalies[0].startswith("unseen")


def test_a_message_that_only_the_follower_saw_is_lost() -> None:
    ledger = three()
    read(ledger, *GOOD, final=GOOD[:2])
    assert ledger.check().anomalies[0].startswith("lost-write")


def test_duplicate_under_another_seq() -> None:
    ledger = three()
    read(ledger, *GOOD, seen(4, 2))
    verdict = ledger.check()
    assert verdict.duplicated == 1
    assert verdict.anomalies[0].startswith("duplicate: message 2")
    assert not verdict.ok


def test_the_same_place_twice_for_one_reader() -> None:
    ledger = three()
    read(ledger, GOOD[0], GOOD[1], GOOD[1], GOOD[2], final=GOOD)
    verdict = ledger.check()
    assert (verdict.duplicated, verdict.gaps, verdict.reordered) == (1, 0, 0)


def test_poll_skip() -> None:
    ledger = three()
    read(ledger, GOOD[0], GOOD[2], final=GOOD)
    verdict = ledger.check()
    assert verdict.gaps == 1
    assert verdict.lost == 1
    assert verdict.anomalies[0] == "poll-skip: reader in 'team' got seq 3 and not 2"


def test_a_history_that_does_not_begin_at_1_has_a_gap() -> None:
    ledger = three()
    read(ledger, *GOOD, final=GOOD[1:])
    assert ledger.check().gaps == 1


def test_nonmonotonic_poll() -> None:
    ledger = three()
    read(ledger, GOOD[0], GOOD[2], GOOD[1], final=GOOD)
    verdict = ledger.check()
    assert verdict.reordered == 1
    assert any(text.startswith("nonmonotonic-poll") for text in verdict.anomalies)


def test_one_device_out_of_its_order() -> None:
    ledger = Ledger()
    book(ledger, 1, 2)
    book(ledger, 2, 1)
    read(ledger, seen(1, 2), seen(2, 1))
    verdict = ledger.check()
    assert verdict.reordered == 1
    assert verdict.anomalies[0].startswith("reorder: message 1")


def test_devices_may_interleave() -> None:
    ledger = Ledger()
    book(ledger, 1, 2)
    book(ledger, 1, 1, device="bob/phone-2")
    read(ledger, seen(1, 1, "bob/phone-2"), seen(2, 1))
    assert ledger.check().ok


def test_other_bytes() -> None:
    ledger = Ledger()
    book(ledger, 1, 1, "e\u0301")
    read(ledger, seen(1, 1, text="\u00e9"))
    verdict = ledger.check()
    assert verdict.mismatched == 1
    assert verdict.anomalies[0].startswith("wrong-content")


def test_inconsistent_offsets() -> None:
    ledger = Ledger()
    book(ledger, 1, 7)
    read(ledger, seen(1, 1))
    verdict = ledger.check()
    assert verdict.mismatched == 1
    assert "was ACKed at seq 7 and read at seq 1" in verdict.anomalies[0]


def test_two_acks_for_one_place() -> None:
    ledger = Ledger()
    book(ledger, 1, 1)
    book(ledger, 1, 1, device="bob/phone-2")
    read(ledger, seen(1, 1))
    verdict = ledger.check()
    assert verdict.mismatched == 1
    assert verdict.lost == 1


def test_what_nobody_sent() -> None:
    ledger = three()
    read(ledger, *GOOD, seen(4, 99))
    verdict = ledger.check()
    assert verdict.mismatched == 1
    assert verdict.anomalies == ["wrong-content: nobody sent message 99 of alice/phone-1 in"
                                 " 'team', which is at seq 4"]  # fmt: skip
    assert verdict.received == 3


def test_a_number_that_was_given_twice() -> None:
    ledger = Ledger()
    book(ledger, 1, 1)
    book(ledger, 1, 2)
    read(ledger, seen(1, 1))
    assert ledger.check().mismatched >= 1


def test_one_anomaly_counts_once_for_all_readers() -> None:
    ledger = three()
    for _ in range(3):
        read(ledger, *GOOD, seen(4, 2))
    assert ledger.check().duplicated == 1


def test_figures() -> None:
    ledger = three()
    ledger.follower("a", "team").events = [seen(1, 1, at_s=2.0)]
    ledger.follower("b", "team").events = [seen(1, 1, at_s=1.25), seen(2, 77)]
    assert ledger.ack_ms() == [500.0, 500.0, 500.0]
    assert ledger.delivery_ms() == [250.0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (None, None, None)),
        ([4.0], (4.0, 4.0, 4.0)),
        ([float(n) for n in range(1, 101)], (50.0, 99.0, 100.0)),
        ([1.0, 2.0, 300.0], (2.0, 300.0, 300.0)),
    ],
)
def test_quantiles(values: list[float], expected: tuple[float | None, ...]) -> None:
    found = quantiles(values)
    assert (found["p50"], found["p99"], found["max"]) == expected
