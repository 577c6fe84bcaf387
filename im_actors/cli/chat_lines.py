"""chat line by line: for scripts, plain terminals, and people who like their scrollback.

A message of one's own is shown when it has its place, with a check mark, in the order that all
see. Until then the prompt counts it as pending; without a server it is kept and sent later.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from im_actors.cli.output import event_line, printable
from im_actors.cli.terminal import Plain, Terminal
from im_actors.errors import ImError

if TYPE_CHECKING:
    from im_actors.client import Client, Sent

SHOWN_AT_START = 20
SHOWN_BY_HISTORY = 50
REFRESH_S = 0.25
DRAIN_S = 5.0
HELP = """\
/join SESSION    talk in another conversation; the ones before stay on the screen
/history [N]     show the last messages again
/sessions        the conversations that this device knows
/where           what is pending, and why
/help            this
/quit            end (Ctrl-D does too); what is pending is kept and sent next time"""


class Chat:
    """One running chat."""

    def __init__(self, client: Client, screen: Terminal | Plain) -> None:
        self._client = client
        self._screen = screen
        self._session = ""
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._sends: set[asyncio.Task[None]] = set()
        self._online: bool | None = None
        self._commands: dict[str, Callable[[str], object]] = {
            "/help": lambda _: self._screen.say(HELP),
            "/join": self._join,
            "/history": self._history,
            "/sessions": self._sessions,
            "/where": self._where,
        }

    async def run(self, session: str | None) -> int:
        """Returns 0; raises what the server refused this user with."""
        with contextlib.suppress(ImError):
            await self._client.connected(2.0)
        watch = asyncio.create_task(self._watch())
        try:
            if session:
                await self._join(session)
            else:
                await self._sessions("")
                self._screen.say("/join SESSION begins a conversation, /help explains")
            async for line in self._screen.lines():
                if line.strip() in ("/quit", "/exit"):
                    break
                await self._typed(line)
            await self._until_answered()
        finally:
            tasks = [watch, *self._readers.values(), *self._sends]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return 0

    async def _typed(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        try:
            if word in self._commands:
                result = self._commands[word](rest.strip())
                if asyncio.iscoroutine(result):
                    await result
            elif word.startswith("/") and not line.startswith("//"):
                self._screen.say(f"{printable(word)} is not a command; /help shows them")
            elif line.strip():
                await self._send(line.removeprefix("/") if line.startswith("//") else line)
        except ImError as error:
            self._screen.say(f"! {printable(str(error))}")

    # -- sending ---------------------------------------------------------------------------------

    async def _send(self, text: str) -> None:
        if not self._session:
            self._screen.say("! /join SESSION first")
            return
        sent = await self._client.send(self._session, text)
        if not self._client.status().online:
            self._screen.say(f"… {printable(text)}  (kept on this computer, goes out later)")
        task = asyncio.create_task(self._until_refused(sent, text))
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)
        self._draw_prompt()

    async def _until_refused(self, sent: Sent, text: str) -> None:
        try:
            await sent.acked()
        except ImError as error:
            self._screen.say(f"✗ {printable(text)}  ({printable(str(error))})")
        self._draw_prompt()

    async def _until_answered(self) -> None:
        """At the end of piped input, so that a script sees its own messages and their marks."""
        if isinstance(self._screen, Plain) and self._client.status().online:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S):
                    await asyncio.gather(*self._sends)

    # -- reading ---------------------------------------------------------------------------------

    async def _join(self, session: str) -> None:
        if not session:
            self._screen.say("! /join SESSION: which one?")
            return
        page = await self._client.history(session, limit=SHOWN_AT_START)
        self._session = session
        self._screen.say(f"-- {printable(session)} --")
        if session not in self._readers:
            for event in page.events:
                self._screen.say(event_line(event, self._mark(event.device)))
            after = page.events[-1].seq if page.events else 0
            self._readers[session] = asyncio.create_task(self._read(session, after))
        self._draw_prompt()

    async def _read(self, session: str, after: int) -> None:
        try:
            async with self._client.follow(session, after=after) as follower:
                async for event in follower:
                    where = "" if session == self._session else f"[{printable(session)}] "
                    self._screen.say(where + event_line(event, self._mark(event.device)))
        except ImError as error:
            self._screen.say(f"! {printable(session)}: {printable(str(error))}")
            del self._readers[session]

    def _mark(self, device: str) -> str:
        return " ✓" if device == self._client.address else ""

    async def _history(self, count: str) -> None:
        if not self._session:
            self._screen.say("! /join SESSION first")
            return
        limit = int(count) if count.isdecimal() and int(count) > 0 else SHOWN_BY_HISTORY
        page = await self._client.history(self._session, limit=min(limit, 1_000))
        for event in page.events:
            self._screen.say(event_line(event, self._mark(event.device)))
        if page.offline:
            self._screen.say("-- offline: this is what this computer has --")

    async def _sessions(self, _: str) -> None:
        for info in await self._client.sessions():
            pending = f", {info.pending} pending" if info.pending else ""
            last = f": {event_line(info.last)}" if info.last else ""
            self._screen.say(f"{printable(info.session)}{pending}{last}")

    async def _where(self, _: str) -> None:
        waiting = self._client.outbox()
        for sent in waiting:
            text = printable(self._client.where(sent).text)
            self._screen.say(f"{printable(sent.session)} {sent.n}: {text}")
        if not waiting:
            self._screen.say("nothing is pending")

    # -- the prompt ------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """The state of the connection has no event that one could wait for, so it is looked at."""
        while True:
            status = self._client.status()
            if status.online != self._online:
                first = self._online is None
                self._online = status.online
                if not status.online:
                    why = printable(str(status.last_error or "no server answers"))
                    self._screen.say(f"-- offline: {why} --")
                elif not first:
                    self._screen.say("-- online again --")
            self._draw_prompt()
            await asyncio.sleep(REFRESH_S)

    def _draw_prompt(self) -> None:
        status = self._client.status()
        states = [] if status.online else ["offline"]
        if status.pending:
            states.append(f"{status.pending} pending")
        state = f" ({', '.join(states)})" if states else ""
        prompt = f"{printable(self._session)}{state}> "
        if prompt != self._screen.prompt:
            self._screen.prompt = prompt
            self._screen.redraw()
