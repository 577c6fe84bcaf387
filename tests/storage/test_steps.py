"""Long work in small steps."""

from __future__ import annotations

import threading
import time

from im_actors.storage.steps import STEP_ROWS, Pacer, in_steps

LONG_S = 60.0
"""No test waits so long."""


def test_steps_are_all_of_it_in_order_with_a_rest_after_each() -> None:
    rests: list[int] = []
    rows = list(range(2 * STEP_ROWS + 1))
    seen: list[int] = []

    def rest() -> None:
        rests.append(len(seen))

    for step in in_steps(rows, rest):
        assert len(step) <= STEP_ROWS
        seen.extend(step)
    assert seen == rows
    assert rests == [STEP_ROWS, 2 * STEP_ROWS, len(rows)]
    assert list(in_steps([], rest)) == []
    assert len(rests) == 3


def work(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def resting(pacer: Pacer, used_s: float = 0.002) -> threading.Thread:
    """A thread that has used a step's time and rests for long."""
    began = threading.Event()

    def run() -> None:
        work(used_s)
        began.set()
        pacer.rest()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert began.wait(LONG_S)
    return thread


def test_who_has_used_its_step_rests_until_somebody_waits() -> None:
    pacer = Pacer(step_s=0.001, rests=LONG_S * 1_000)
    thread = resting(pacer)
    thread.join(0.05)
    assert thread.is_alive()
    pacer.hurry()
    thread.join(LONG_S / 2)
    assert not thread.is_alive()


def test_nobody_rests_until_the_last_one_in_a_hurry_has_gone() -> None:
    pacer = Pacer(step_s=0.001, rests=LONG_S * 1_000)
    pacer.hurry()
    pacer.hurry()
    pacer.relax()
    thread = resting(pacer)
    thread.join(LONG_S / 2)
    assert not thread.is_alive()
    pacer.relax()
    thread = resting(pacer, used_s=0.02)
    thread.join(0.05)
    assert thread.is_alive()
    pacer.hurry()
    thread.join(LONG_S / 2)


def test_a_short_step_needs_no_rest() -> None:
    thread = resting(Pacer(step_s=LONG_S, rests=1.0), used_s=0.0)
    thread.join(LONG_S / 2)
    assert not thread.is_alive()
