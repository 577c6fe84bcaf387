"""Between the client and the screen: tells the model what happens, and does what keys ask for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from im_actors.cli.chat_commands import Commands
from im_actors.cli.chat_model import EVENTS_MAX, Model, Own
from im_actors.client import LIVE, Conversation, EventKind, Page
from im_actors.core.names import SessionKind, session_kind
from im_actors.errors import BadRequest, ImError
from im_actors.wire.limits import QUERY_ROWS_MAX

if TYPE_CHECKING:
    from im_actors.client import Client, Sent

PAGE = 100
LISTED_MAX = 1_000
"""Most conversations of the list, and of each label, that are shown."""
FOLLOWED_MAX = 50
"""Most groups whose messages are followed for their unread counts; a mailbox does not tell them."""
LIST_EVERY_S = 0.1
"""The list is read at most so often."""
LIST_ANEW_S = 20.0
"""The beginning of the list is asked for so often: a copy that lagged may have answered before."""
REFRESH_S = 0.25
TYPING_EVERY_S = 3.0
MORE_BELOW = 10
"""With fewer entries below the chosen one the next part of the list is asked for."""


class Desk:
    """One running screen. Use as ``async with``."""

    def __init__(self, client: Client, model: Model, changed: Callable[[], None]) -> None:
        self.client = client
        self.model = model
        self.changed = changed
        """To be called when there is something to draw."""
        self.leave: Callable[[], None] = lambda: None
        self.give_back: Callable[[str], None] = lambda text: None
        """To be called with what was typed and could not be taken."""
        self.failed: Callable[[BaseException], None] = lambda error: None
        """To be called with an error that nobody expected."""
        self._commands = Commands(self)
        self._tasks: set[asyncio.Task[None]] = set()
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._opening: asyncio.Task[None] | None = None
        self._own: dict[Sent, Own] = {}
        self._marked: dict[str, int] = {}
        self._next: str | None = None
        self._typed_at = 0.0
        self._listed_at = -LIST_ANEW_S
        """When the server was asked for the beginning of the list."""

    async def __aenter__(self) -> Desk:
        for sent in self.client.outbox():
            if sent.kind == EventKind.MESSAGE:
                self._sent(sent, (sent.body or b"").decode(errors="replace"))
        await self._read_list()
        self.do(self._follow_list())
        self.do(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def do(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have it done beside the drawing; an error is shown."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ImError):
            self.say(f"! {error}")
        elif error is not None:
            self.failed(error)

    def say(self, text: str) -> None:
        self.model.notice = text
        self.changed()

    # -- the list --------------------------------------------------------------------------------

    async def _follow_list(self) -> None:
        version = 0
        while True:
            version = await self.client.list_changed(version)
            await self._read_list()
            await asyncio.sleep(LIST_EVERY_S)

    async def _read_list(self) -> None:
        """What this device knows, at once; servers are asked beside it."""
        found = await self.client.conversations(1, local=True)
        rows = await self._local("")
        folded = {label: await self._local(label) for label in self.client.labels()}
        self.model.listed(rows, folded, found.unread)
        if self.model.online:
            self._follow_groups(rows)
        self.changed()

    async def _local(self, label: str) -> list[Conversation]:
        rows: list[Conversation] = []
        after: str | None = None
        while len(rows) < LISTED_MAX:
            page = await self.client.conversations(QUERY_ROWS_MAX, after, label=label, local=True)
            rows += page.conversations
            after = page.next
            if after is None:
                break
        return rows

    def _follow_groups(self, rows: list[Conversation]) -> None:
        for row in rows[:FOLLOWED_MAX]:
            wanted = not row.left and not _told_by_mailbox(row.session)
            if wanted and row.session not in self._readers and len(self._readers) < FOLLOWED_MAX:
                self._read(row.session, LIVE)
                # What was said before it was followed is in no row that is here.
                self._listed_at = -LIST_ANEW_S

    async def refresh(self) -> None:
        """Ask the server for the beginning of the list: of groups no one tells what was missed."""
        try:
            page = await self.client.conversations(QUERY_ROWS_MAX)
        except BadRequest:
            return  # a server without mailboxes; what was read here is the list
        self._next = page.next
        self._follow_groups(page.conversations)

    async def _more(self) -> None:
        after, self._next = self._next, None
        page = await self.client.conversations(QUERY_ROWS_MAX, after)
        if not page.offline:
            self._next = page.next

    def choose(self, step: int) -> None:
        self.model.notice = ""
        before = self.model.chosen
        session = self.model.choose(step)
        if session and session != before:
            self.open(session)
        if self._next is not None and self.model.left_below() < MORE_BELOW:
            self.do(self._more())

    # -- a conversation --------------------------------------------------------------------------

    def open(self, session: str) -> None:
        """Show it: what this computer has at once, then its newest page."""
        left = self.model.session
        if left and left != session and _told_by_mailbox(left):
            self._stop_reading(left)
        self.model.opened(session)
        self._load(session)
        self.changed()

    def _load(self, session: str) -> None:
        if self._opening is not None:
            self._opening.cancel()
        self._opening = self.do(self._open(session))

    async def _open(self, session: str) -> None:
        talk = self.model.talk
        if talk is not None and not talk.loaded:
            self.model.kept(session, await self.client.history(session, limit=PAGE, local=True))
            self.changed()
        try:
            page = await self.client.history(session, limit=PAGE)
        except ImError as error:
            self.model.failed(session, f"! {error}")
            self.changed()
            return
        self.model.paged(session, page)
        # Without a server the page may end anywhere; it is read again when there is one.
        if not page.offline:
            self._stop_reading(session)
            self._read(session, page.events[-1].seq if page.events else 0)
        self.changed()

    def _read(self, session: str, after: int | str) -> None:
        self._readers[session] = self.do(self._reading(session, after))

    def _stop_reading(self, session: str) -> None:
        if reader := self._readers.pop(session, None):
            reader.cancel()

    async def _reading(self, session: str, after: int | str) -> None:
        try:
            async with self.client.follow(session, after=after) as follower:
                async for event in follower:
                    self.model.took(session, [event])
                    if session == self.model.session:
                        self.changed()
        except ImError as error:
            if session == self.model.session:
                self.say(f"! {error}")

    def older(self) -> None:
        """Read the page before what there is of the open conversation."""
        talk = self.model.talk
        if talk is None or talk.older is None or talk.loading:
            return
        if len(talk.seqs) >= EVENTS_MAX:
            self.say("im-actors history shows what is older")
        else:
            talk.loading = True
            self.do(self._older(talk.session, talk.older))

    async def _older(self, session: str, before: int) -> None:
        page = Page([], before, offline=True, complete=True)
        try:
            page = await self.client.history(session, before, PAGE)
        finally:
            self.model.paged(session, page, is_older=True)
        self.changed()

    def shown(self, session: str, seq: int) -> None:
        """The user sees the conversation up to there."""
        upto = self.model.to_read(session, seq)
        if upto > self._marked.get(session, 0):
            self._marked[session] = upto
            self.do(self._mark_read(session, upto))

    async def _mark_read(self, session: str, upto: int) -> None:
        await self.client.mark_read(session, upto)

    # -- what is typed ---------------------------------------------------------------------------

    def entered(self, line: str) -> None:
        """Enter was pressed."""
        model = self.model
        model.notice = ""
        if model.editing is not None:
            seq, model.editing = model.editing, None
            if line.strip():
                self.do(self._edit(model.session, seq, line))
        elif line.startswith("/") and not line.startswith("//"):
            self.do(self._commands.run(line))
        elif not line.strip():
            model.show([])
            model.fold()
        elif not model.session:
            self.say("! choose a conversation first, or begin one: /new USER")
        else:
            model.show([])
            text = line.removeprefix("/") if line.startswith("//") else line
            self.do(self._send(model.session, text))
        self.changed()

    async def _send(self, session: str, text: str) -> None:
        self._typed_at = 0.0
        self.client.typing(session, False)
        try:
            sent = await self.client.send(session, text)
        except ImError:
            self.give_back(text)
            raise
        self._sent(sent, text)

    def _sent(self, sent: Sent, text: str) -> None:
        own = self._own[sent] = Own(sent.n, text, sent.state)
        self.model.knows(sent.session)
        self.model.sent(sent.session, own)
        self.do(self._settled(sent))
        self.changed()

    async def _settled(self, sent: Sent) -> None:
        while sent.ack is None and sent.error is None:
            with contextlib.suppress(ImError):
                await sent.acked()
                break
            await asyncio.sleep(REFRESH_S)
        self._look()
        del self._own[sent]

    def typed(self, text: str) -> None:
        """The input line has changed: who reads along may know."""
        now = time.monotonic()
        writes = bool(text) and not text.startswith("/") and self.model.session
        if writes and now - self._typed_at > TYPING_EVERY_S:
            self._typed_at = now
            self.client.typing(self.model.session)

    def begin_edit(self) -> str | None:
        """The text of the last own message, to be changed; None: there is none."""
        talk, seq = self.model.talk, self.model.last_own()
        if talk is None or seq is None:
            self.say("! there is no message of yours here that could be edited")
            return None
        self.model.editing = seq
        return talk.text(seq)

    async def _edit(self, session: str, seq: int, text: str) -> None:
        await self._amended(await self.client.edit(session, seq, text), seq, "edit")

    def recall(self) -> None:
        """Take the last own message back."""
        seq = self.model.last_own()
        if seq is None:
            self.say("! there is no message of yours here that could be taken back")
        else:
            self.do(self._recall(self.model.session, seq))

    async def _recall(self, session: str, seq: int) -> None:
        await self._amended(await self.client.recall(session, seq), seq, "recall")

    async def _amended(self, sent: Sent, seq: int, what: str) -> None:
        """Until the event comes, the message says what was asked for."""
        talk = self.model.talk
        if talk is not None and talk.session == sent.session:
            talk.asked[seq] = what
            self.changed()
        try:
            await sent.acked()
        except ImError as error:
            if sent.error is not None and talk is not None:
                talk.asked.pop(seq, None)
                self.say(f"! the {what} was refused: {error}")

    # -- the connection --------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Neither the connection's state nor who types has an event that one could wait for."""
        while True:
            self._look()
            await asyncio.sleep(REFRESH_S)

    def _look(self) -> None:
        status = self.client.status()
        was_online, model = self.model.online, self.model
        why = "" if status.online else str(status.last_error or "")
        new = model.connection(status.online, why, status.pending, int(time.time() * 1000))
        now = time.monotonic()
        if status.online and (not was_online or now - self._listed_at > LIST_ANEW_S):
            self._listed_at = now
            self.do(self.refresh())
        talk = model.talk
        if status.online and talk is not None and talk.offline and not talk.loading:
            talk.loading = True
            self._load(talk.session)
        for sent, own in self._own.items():
            before = own.state
            own.n, own.state = sent.n, sent.state
            own.seq = sent.ack.seq if sent.ack else 0
            own.why = str(sent.error or "")
            new |= own.state is not before
        if talk is not None:
            typing = tuple(self.client.who_types(talk.session)) if status.online else ()
            new |= typing != talk.typing
            talk.typing = typing
        if new:
            self.changed()


def _told_by_mailbox(session: str) -> bool:
    """Whether the mailbox tells of its messages, so that it need not be followed to count them."""
    return session_kind(session) not in (SessionKind.GROUP, SessionKind.OPEN)
