"""The dedup set against a model that forgets nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from im_actors.core import sessions
from im_actors.core.messages import DeviceImage, SessionImage
from im_actors.core.sessions import Admission, SessionState

WINDOW = 3
DEVICES = ("a/1", "b/1", "c/1")
Log = list[tuple[str, int, int]]
"""(device, n, body checksum) of each event; its seq is its place, from 1."""


@pytest.fixture(autouse=True)
def _small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "DEVICE_WINDOW", WINDOW)


logs = st.lists(st.sampled_from(DEVICES), max_size=20).map(
    lambda devices: [
        (device, devices[: index + 1].count(device), index * 7 + 1)
        for index, device in enumerate(devices)
    ]
)


def image_of(log: Log) -> SessionImage:
    """What tables that have applied this log would say."""
    images = []
    for device in sorted({device for device, _, _ in log}):
        sent = [(seq, check) for seq, (d, _, check) in enumerate(log, 1) if d == device]
        images.append(DeviceImage(device, len(sent), tuple(sent[-WINDOW:])))
    return SessionImage("s", len(log), tuple(images))


def replayed(log: Log, first: int = 0) -> SessionState:
    state = SessionState("s")
    for seq, (device, n, check) in enumerate(log[first:], first + 1):
        state.replay(seq, device, n, check, lsn=seq)
    return state


def loaded(log: Log) -> SessionState:
    state = SessionState("s")
    state.merge(image_of(log))
    return state


@given(logs, st.data())
def test_admitting_decides_as_a_model_that_knows_every_event(log: Log, data: st.DataObject) -> None:
    state = loaded(log)
    device = data.draw(st.sampled_from(DEVICES))
    sent = [(seq, check) for seq, (d, _, check) in enumerate(log, 1) if d == device]
    n = data.draw(st.integers(1, len(sent) + 2))
    right = data.draw(st.booleans())
    check = sent[n - 1][1] if n <= len(sent) and right else 999_999
    expected = (Admission.NEW, len(log) + 1)
    if n > len(sent) + 1:
        expected = (Admission.GAP, len(sent) + 1)
    elif n <= len(sent) - WINDOW:
        expected = (Admission.ANCIENT, 0)
    elif n <= len(sent):
        expected = (Admission.KNOWN, sent[n - 1][0])
        if check != sent[n - 1][1]:
            expected = (Admission.CONFLICT, len(sent) + 1)
    assert state.admit(device, n, 1, check) == expected


@given(logs, st.data())
def test_tables_and_replayed_end_join_to_the_same_wherever_the_tables_are_cut(
    log: Log, data: st.DataObject
) -> None:
    floor = data.draw(st.integers(0, len(log)))
    applied = data.draw(st.integers(floor, len(log)))
    state = replayed(log, floor)
    state.merge(image_of(log[:applied]))
    assert state.image() == image_of(log)
    assert state.committed_seq == len(log)


@given(logs)
def test_a_whole_log_replayed_is_what_the_tables_say(log: Log) -> None:
    assert replayed(log).image() == image_of(log)


def test_a_replayed_end_that_does_not_join_the_tables_is_our_own_bug() -> None:
    log = [("a/1", n, n) for n in range(1, 6)]
    state = replayed(log, 4)
    with pytest.raises(AssertionError, match="join"):
        state.merge(image_of(log[:3]))


def test_a_session_is_loaded_once() -> None:
    state = loaded([])
    with pytest.raises(AssertionError, match="twice"):
        state.merge(image_of([]))


def test_a_device_begins_with_one() -> None:
    state = loaded([])
    assert state.admit("a/1", 2, 1, 5) == (Admission.GAP, 1)
    assert state.admit("a/1", 1, 1, 5) == (Admission.NEW, 1)


def test_seqs_go_on_across_devices() -> None:
    state = loaded([])
    seqs = [state.admit(device, n, 1, 0)[1] for device, n in
            [("a/1", 1), ("b/1", 1), ("a/1", 2), ("b/1", 2)]]  # fmt: skip
    assert seqs == [1, 2, 3, 4]


def test_a_void_asks_what_became_of_its_number() -> None:
    state = loaded([("a/1", 1, 5)])
    assert state.admit("a/1", 1, 0, 77) == (Admission.KNOWN, 1)
    assert state.admit("a/1", 1, 1, 77) == (Admission.CONFLICT, 2)


def test_a_device_may_not_push_its_uncommitted_sends_out_of_what_is_remembered() -> None:
    state = loaded([("a/1", n, n) for n in range(1, 5)])
    for n in range(5, 5 + WINDOW):
        assert state.admit("a/1", n, 1, n)[0] is Admission.NEW
    assert state.admit("a/1", 5 + WINDOW, 1, 0) == (Admission.FULL, 0)
    assert state.admit("b/1", 1, 1, 0)[0] is Admission.NEW
    state.committed_seq = 5
    assert state.admit("a/1", 5 + WINDOW, 1, 0)[0] is Admission.NEW
