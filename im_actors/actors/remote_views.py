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
"""Bound of one call. Afterwards the outcome is unknown, and the shard reads and asks again."""


class Calls(Protocol):
    """The part of ``ray_api`` that this module needs."""

    def find(self, name: str, namespace: str) -> Any: ...

    async def call(self, handle: Any, method: str, *args: Any) -> Any: ...

    def tell(self, handle: Any, method: str, *args: Any) -> None: ...


class ControllerViews:
    """Calls the controller actor. Any failure means "unknown"."""

    def __init__(self, namespace: str, calls: Calls, call_s: float = CALL_S) -> None:
        self._namespace = namespace
        self._calls = calls
        self._call_s = call_s
        self._handle: Any = None
        self._finding = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, slot: int) -> View | None:
        view: View | None = await self._ask("view_read", slot)
        return view

    async def swap(self, old: View, new: View) -> View:
        view: View = await self._ask("view_swap", old, new)
        return view

    def activated(self, view: View) -> None:
        """Tell the controller, which finds it out by itself when the word is lost."""
        task = asyncio.get_running_loop().create_task(self._tell(view))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell(self, view: View) -> None:
        try:
            async with asyncio.timeout(self._call_s):
                self._calls.tell(await self._controller(), "activated", view)
        except Exception as error:
            logger.info("the controller did not hear of slot %d: %s", view.slot, error)

    async def _ask(self, method: str, *args: Any) -> Any:
        try:
            async with asyncio.timeout(self._call_s):
                return await self._calls.call(await self._controller(), method, *args)
        except TimeoutError:
            self._handle = None
            raise Unknown(f"the controller did not answer within {self._call_s:g} s") from None
        except ImError:
            self._handle = None
            raise
        except Exception as error:
            self._handle = None
            raise Unknown(f"the controller: {error}") from error

    async def _controller(self) -> Any:
        """Its handle; by name again after each failure, since it may be another actor by now."""
        async with self._finding:
            if self._handle is None:
                self._handle = await asyncio.to_thread(
                    self._calls.find, CONTROLLER, self._namespace
                )
            return self._handle
