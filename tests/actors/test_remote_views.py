"""The view store in the controller, as shards see it: every failure is "unknown"."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from im_actors.actors.remote_views import BATCH_MAX, ControllerViews, Question
from im_actors.core.model import View, ViewState
from im_actors.errors import InvariantBroken, NotReachable, Unknown

OLD = View(3, 1, ViewState.RECOVERING, "a", ())
NEW = View(3, 2, ViewState.RECOVERING, "b", ())


class FakeCalls:
    """A controller that gives to each question what ``answer`` gives; a call fails with what
    ``failures`` holds."""

    def __init__(self, answer: Callable[[Question], Any]) -> None:
        self.answer = answer
        self.failures: list[Exception] = []
        self.hangs = False
        self.found = 0
        self.called: list[tuple[Any, ...]] = []
        self.told: list[tuple[Any, ...]] = []

    def find(self, name: str, namespace: str) -> Any:
        assert (name, namespace) == ("controller", "im-c")
        self.found += 1
        return self.found

    async def call(self, handle: Any, method: str, questions: list[Question]) -> Any:
        assert method == "view_calls"
        self.called.append((handle, *questions))
        await asyncio.sleep(60 if self.hangs else 0)
        if self.failures:
            raise self.failures.pop()
        return [self.answer(question) for question in questions]

    def tell(self, handle: Any, method: str, *args: Any) -> None:
        self.told.append((handle, method, *args))


async def test_what_is_asked_at_the_same_moment_is_one_call() -> None:
    calls = FakeCalls(lambda _: NEW)
    views = ControllerViews("im-c", calls)
    assert await asyncio.gather(views.read(3), views.swap(OLD, NEW)) == [NEW, NEW]
    assert calls.called == [(1, ("read", 3), ("swap", OLD, NEW))]
    assert await views.read(4) == NEW
    assert calls.called[1:] == [(1, ("read", 4))]
    assert calls.found == 1, "the handle is looked up once"


async def test_one_call_at_a_time_and_a_bounded_one() -> None:
    calls = FakeCalls(lambda question: question[1])
    views = ControllerViews("im-c", calls)
    slots = list(range(BATCH_MAX + 10))
    assert await asyncio.gather(*(views.read(slot) for slot in slots)) == slots
    assert [len(call) - 1 for call in calls.called] == [BATCH_MAX, 10]


async def test_each_question_has_its_own_error() -> None:
    calls = FakeCalls(lambda question: NEW if question[1] == 3 else InvariantBroken("I2"))
    views = ControllerViews("im-c", calls)
    found = await asyncio.gather(views.read(3), views.read(4), return_exceptions=True)
    assert found[0] == NEW
    assert isinstance(found[1], InvariantBroken)


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (NotReachable("gone"), NotReachable),
        (RuntimeError("Ray"), Unknown),
        (ConnectionError("lost"), Unknown),
    ],
)
async def test_after_a_failure_the_controller_is_looked_up_again(
    failure: Exception, raised: type[Exception]
) -> None:
    calls = FakeCalls(lambda _: NEW)
    calls.failures = [failure]
    views = ControllerViews("im-c", calls)
    with pytest.raises(raised):
        await views.swap(OLD, NEW)
    assert await views.read(3) == NEW
    assert calls.found == 2


async def test_an_answer_that_does_not_come_is_unknown() -> None:
    calls = FakeCalls(lambda _: NEW)
    calls.hangs = True
    views = ControllerViews("im-c", calls, call_s=0.02)
    with pytest.raises(Unknown):
        await views.swap(OLD, NEW)


async def test_a_question_that_was_given_up_is_not_asked_late() -> None:
    """A swap that its shard holds for lost must not come up long afterwards."""
    calls = FakeCalls(lambda _: NEW)
    calls.hangs = True
    views = ControllerViews("im-c", calls, call_s=0.05)
    first = asyncio.ensure_future(views.read(1))
    await asyncio.sleep(0.01)
    behind = asyncio.ensure_future(views.swap(OLD, NEW))
    await asyncio.sleep(0)
    behind.cancel()
    with pytest.raises(Unknown):
        await first
    calls.hangs = False
    assert await views.read(2) == NEW
    assert calls.called == [(1, ("read", 1)), (2, ("read", 2))]


async def test_activations_are_told_and_a_lost_word_does_no_harm() -> None:
    calls = FakeCalls(lambda _: None)
    views = ControllerViews("im-c", calls)
    views.activated(OLD)
    views.activated(NEW)
    async with asyncio.timeout(60):
        while not calls.told:
            await asyncio.sleep(0.001)
    assert calls.told == [(1, "activated", [OLD, NEW])], "in one word"

    def lost(*_: Any) -> Any:
        raise NotReachable("no controller")

    calls.find = lost  # type: ignore[method-assign]
    views._handle = None
    views.activated(NEW)
    await asyncio.gather(*views._tasks)
    assert len(calls.told) == 1
