"""What coroutines need of an event loop, on virtual time: the gateway's user side runs in it."""

from __future__ import annotations

import asyncio
from asyncio import events
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.sim.network import Process


class SimEventLoop(asyncio.AbstractEventLoop):
    """The loop of one life of a process. What is planned in it is lost with that life."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._life = process.life

    def run(self, call: Callable[[], object]) -> None:
        """Make the call as one that a running loop makes."""
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            call()
        finally:
            events._set_running_loop(before)

    def time(self) -> float:
        return self._process.clock.now_ms / 1_000

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._plan(0.0, handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._plan(max(0.0, when - self.time()) * 1_000, handle)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, Any], **named: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, **named)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What a callback raised breaks the run. A task that is destroyed before its end belongs to
        a life that is over."""
        error = context.get("exception")
        if error is not None and self._process.life == self._life:
            self._process.world.broken = error

    def _plan(self, delay_ms: float, handle: asyncio.Handle) -> None:
        self._process.later(delay_ms, lambda: None if handle.cancelled() else handle._run())

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It does nothing when its time comes."""
