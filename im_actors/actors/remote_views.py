"""The view store as a shard sees it when the store is in the controller."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Protocol

from im_actors.actors.settings import CONTROLLER
from im_actors.core.model import View
from im_actors.errors import ImError, Unknown

logger = logging.getLogger(__name__)

CALL_S = 2.0
"""Bound of one question. Afterwards the outcome is unknown, and the shard reads and asks again."""
BATCH_MAX = 256
"""Questions in one call."""

Question = tuple[Any, ...]
"""("read", slot) or ("swap", old, new)."""


class Calls(Protocol):
    """The part of ``ray_api`` that this module needs."""

    def find(self, name: str, namespace: str) -> Any: ...

    async def call(self, handle: Any, method: str, *args: Any) -> Any: ...

    def tell(self, handle: Any, method: str, *args: Any) -> None: ...


class ControllerViews:
    """Calls the controller actor. Any failure means "unknown".

    A shard that takes over asks for all of its slots at the same moment. One call is under way at a
    time, and what is asked meanwhile goes with the next: a call through Ray costs a millisecond.
    """

    def __init__(self, namespace: str, calls: Calls, call_s: float = CALL_S) -> None:
        self._namespace = namespace
        self._calls = calls
        self._call_s = call_s
        self._handle: Any = None
        self._finding = asyncio.Lock()
        self._waiting: list[tuple[asyncio.Future[Any], Question]] = []
        self._asking: asyncio.Task[None] | None = None
        self._activated: list[View] = []
        """What the controller has not been told."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, slot: int) -> View | None:
        view: View | None = await self._ask("read", slot)
        return view

    async def swap(self, old: View, new: View) -> View:
        view: View = await self._ask("swap", old, new)
        return view

    def activated(self, view: View) -> None:
        """Tell the controller, which finds it out by itself when the word is lost. What one turn of
        the loop brings is one word."""
        self._activated.append(view)
        if len(self._activated) == 1:
            task = asyncio.get_running_loop().create_task(self._tell())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _tell(self) -> None:
        views, self._activated = self._activated, []
        try:
            async with asyncio.timeout(self._call_s):
                self._calls.tell(await self._controller(), "activated", views)
        except Exception as error:
            logger.info("the controller did not hear of %d slots: %s", len(views), error)

    async def _ask(self, *question: Any) -> Any:
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        self._waiting.append((answer, question))
        if self._asking is None:
            self._asking = loop.create_task(self._ask_all())
        try:
            async with asyncio.timeout(self._call_s):
                return await answer
        except TimeoutError:
            raise Unknown(f"the controller did not answer within {self._call_s:g} s") from None

    async def _ask_all(self) -> None:
        try:
            while self._waiting:
                # A question that was given up waiting is not asked late.
                waiting = [entry for entry in self._waiting if not entry[0].done()]
                batch, self._waiting = waiting[:BATCH_MAX], waiting[BATCH_MAX:]
                if batch:
                    answers = await self._call([question for _, question in batch])
                    for (future, _), answer in zip(batch, answers, strict=True):
                        _settle(future, answer)
        finally:
            # Whatever went wrong, the next question starts over.
            self._asking = None

    async def _call(self, questions: list[Question]) -> list[Any]:
        failure: ImError
        try:
            async with asyncio.timeout(self._call_s):
                controller = await self._controller()
                answers: list[Any] = await self._calls.call(controller, "view_calls", questions)
                return answers
        except ImError as error:
            failure = error
        except Exception as error:
            failure = Unknown(f"the controller: {error!r}")
        self._handle = None
        return [failure] * len(questions)

    async def _controller(self) -> Any:
        """Its handle; by name again after each failure, since it may be another actor by now."""
        async with self._finding:
            if self._handle is None:
                self._handle = await asyncio.to_thread(
                    self._calls.find, CONTROLLER, self._namespace
                )
            return self._handle


def _settle(future: asyncio.Future[Any], answer: Any) -> None:
    if future.done():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)
