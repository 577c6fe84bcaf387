"""The months of a replica's history: listed, moved and dropped while it serves.

One month at a time is written anew, in steps of the history's thread with rests between them. What
has been decided to be dropped stays decided: it is in the index before the first step, and what a
crash or a disk that is away has left undone is taken up again here.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from im_actors.errors import BadRequest, ImError, MonthAway
from im_actors.server.clock import now_ms
from im_actors.server.storage import ReplicaStorage
from im_actors.server.turns import in_turns
from im_actors.storage.directory import DataDirectory
from im_actors.storage.history import History
from im_actors.storage.month_list import list_months
from im_actors.storage.months import month_at
from im_actors.storage.places import month_text

logger = logging.getLogger(__name__)

REST_S = 0.02
"""Between two turns of writing a month anew."""
RETRY_S = 30.0
"""How often it is looked whether what could not be dropped can be dropped now."""
AWAY_S = 2.0
"""How often it is looked whether moved months are where they were moved to."""
_MONTH = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")


def read_month(text: str) -> int:
    """The month of a text like 2026-09, as year * 100 + month."""
    found = _MONTH.fullmatch(text)
    if found is None:
        raise BadRequest(f"{text!r} is no month: write it like 2026-09")
    return int(found[1]) * 100 + int(found[2])


def read_past_month(text: str) -> int:
    """The same of one that is over, here where the clock says what is over."""
    month = read_month(text)
    current = month_at(now_ms())
    if month >= current:
        raise BadRequest(f"{text} is not over: only months before {month_text(current)}")
    return month


def place_for(data: DataDirectory, history: History, directory: str) -> Path:
    """Where in a directory the months of a replica's disk go: another disk of the same name never
    meets them. An empty directory is the history's own."""
    if not directory:
        return history.path
    if not Path(directory).is_absolute():
        raise BadRequest(f"{directory!r} must be an absolute path on the replica's host")
    return Path(directory) / f"{data.replica}-{data.disk[:8]}"


class Months:
    """Those of one replica. ``stage``: give history all that is committed."""

    def __init__(
        self, storage: ReplicaStorage, name: str, stage: Callable[[], Awaitable[None]]
    ) -> None:
        self._storage = storage
        self._name = name
        self._stage = stage
        self._one = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._told: set[int] = set()
        """Months that a task drops, or has dropped."""
        self.away: list[str] = []
        """Files of moved months that are not there."""

    def start(self) -> None:
        """Take up what was left undone, and look after what was moved."""
        self._spawn(self._look_after())

    def stop(self) -> None:
        """End what is under way; a drop goes on at the next start."""
        for task in list(self._tasks):
            task.cancel()

    # -- for operators ---------------------------------------------------------------------------

    async def told_all(self) -> list[dict[str, Any]]:
        """The months, as plain types."""
        await self._stage()
        await self._storage.in_history(self._storage.history.write)
        found = await in_turns(self._storage.in_history, list_months(self._storage.history))
        return [info.to_dict() for info in found]

    async def move(self, text: str, directory: str) -> None:
        """Move a month that is over to a directory of this host, below which this disk gets one of
        its own; an empty text: back. Returns when it is there."""
        month = read_past_month(text)
        target = place_for(self._storage.data, self._storage.history, directory)
        await asyncio.shield(self._spawn(self._move(month, target)))

    async def drop(self, text: str) -> None:
        """Drop the content of a month that is over. Returns when it is gone."""
        month = read_past_month(text)
        await asyncio.shield(self._spawn(self._drop(month)))

    async def dropped(self) -> list[int]:
        """The months whose content is dropped, or is to be dropped."""
        return await self._storage.in_history(self._storage.history.index.places.dropped)

    # -- inside ----------------------------------------------------------------------------------

    def told(self, months: Iterable[int]) -> None:
        """The content of these is dropped in the whole cluster."""
        for month in set(months) - self._told:
            self._told.add(month)
            self._spawn(self._drop_at_last(month))

    async def _move(self, month: int, target: Path) -> None:
        async with self._one:
            history = self._storage.history
            try:
                await self._in_turns(history.move(month, target))
            except ImError:
                # What was copied is no use to anybody; the month is where it was.
                await self._storage.in_history(history.index.places.tidy)
                raise
        logger.info("%s has moved %s to %s", self._name, month_text(month), target)
        await self._look()

    async def _drop(self, month: int) -> None:
        async with self._one:
            await self._stage()
            await self._in_turns(self._storage.history.drop_content(month))
        logger.warning("%s has no content of %s any more", self._name, month_text(month))

    async def _drop_at_last(self, month: int) -> None:
        while True:
            try:
                await self._drop(month)
                return
            except MonthAway as error:
                logger.warning("%s is not dropped yet: %s", month_text(month), error)
            except ImError:
                logger.exception("ALARM %s cannot be dropped: im-actors verify tells more", month)
                return
            await asyncio.sleep(RETRY_S)

    async def _in_turns(self, work: Iterator[None]) -> None:
        await in_turns(self._gently, work)

    async def _gently(self, call: Callable[..., Any], *args: Any) -> Any:
        found = await self._storage.in_history_gently(partial(call, *args))
        await asyncio.sleep(REST_S)
        return found

    async def _look_after(self) -> None:
        places = self._storage.history.index.places
        self.told(await self._storage.in_history(places.unfinished))
        while True:
            await self._look()
            await asyncio.sleep(AWAY_S)

    async def _look(self) -> None:
        # In the thread: a disk that hangs must not hang the event loop.
        if self._storage.history.index.places.moved:
            self.away = await self._storage.in_history_gently(self._storage.history.away)
        else:
            self.away = []

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.warning("%s: %s", self._name, task.exception())
