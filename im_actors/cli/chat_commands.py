"""The commands of the full-screen chat."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from im_actors.cli.chat_help import COMMANDS, KEYS
from im_actors.client.groups import session_of
from im_actors.core.names import SessionKind, check_session, session_kind
from im_actors.errors import BadRequest

if TYPE_CHECKING:
    from im_actors.cli.chat_desk import Desk
    from im_actors.client import Sent

MEMBERS_SHOWN = 100


class Commands:
    """What a line that begins with / does."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._client = desk.client
        self._model = desk.model
        self._commands: dict[str, Callable[[str], Awaitable[None]]] = {
            "/new": self._new,
            "/join": self._join,
            "/find": self._find,
            "/pin": lambda _: self._setting(lambda s: self._client.pin(s)),
            "/unpin": lambda _: self._setting(lambda s: self._client.pin(s, False)),
            "/mute": lambda _: self._setting(lambda s: self._client.mute(s)),
            "/unmute": lambda _: self._setting(lambda s: self._client.mute(s, False)),
            "/hide": self._hide,
            "/fold": self._fold,
            "/unfold": lambda _: self._setting(lambda s: self._client.fold(s, "")),
            "/group": self._group,
            "/readers": self._readers,
            "/online": self._online,
            "/where": self._where,
            "/help": self._help,
            "/quit": self._quit,
            "/exit": self._quit,
        }

    async def run(self, line: str) -> None:
        """Raises what the client raises; BadRequest for what is none."""
        word, _, rest = line.strip().partition(" ")
        if word not in self._commands:
            raise BadRequest(f"{word} is not a command; /help shows them")
        await self._commands[word](rest.strip())

    def _open_session(self) -> str:
        if not self._model.session:
            raise BadRequest("choose a conversation first")
        return self._model.session

    async def _new(self, user: str) -> None:
        self._desk.open(self._client.direct(user))

    async def _join(self, session: str) -> None:
        self._desk.open(check_session(session))

    async def _find(self, text: str) -> None:
        found = self._model.find(text) if text else ""
        if not found:
            raise BadRequest(f"no conversation is called {text!r}" if text else "/find TEXT: what?")
        self._desk.open(found)

    async def _setting(self, change: Callable[[str], Awaitable[Sent]]) -> None:
        sent = await change(self._open_session())
        await sent.acked()

    async def _hide(self, _: str) -> None:
        sent = await self._client.hide(self._open_session())
        self._model.closed()
        self._desk.changed()
        await sent.acked()

    async def _fold(self, label: str) -> None:
        if not label:
            raise BadRequest("/fold LABEL: under which one?")
        await self._setting(lambda session: self._client.fold(session, label))

    # -- groups ----------------------------------------------------------------------------------

    async def _group(self, rest: str) -> None:
        what, *words = rest.split() or [""]
        groups = self._client.groups
        match what, words:
            case "create", [name, *users]:
                await self._entering(name, await groups.create(name, name, users))
            case "join", [name]:
                await self._entering(name, await groups.join(name))
            case "add", [_, *_]:
                await self._changed(await groups.add(self._open_group(), *words))
            case "remove", [_, *_]:
                await self._changed(await groups.remove(self._open_group(), *words))
            case "leave", []:
                await self._changed(await groups.leave(self._open_group()))
            case "members", []:
                await self._members(self._open_group())
            case _:
                raise BadRequest("/group create NAME, add USER, remove USER, join, leave, members")

    def _open_group(self) -> str:
        session = self._open_session()
        if session_kind(session) is not SessionKind.GROUP:
            raise BadRequest("this conversation is no group")
        return session

    async def _entering(self, group: str, sent: Sent) -> None:
        session = session_of(group)
        self._model.knows(session)
        self._desk.say(f"{sent.session}: asked for; it opens when that is granted")
        await sent.acked()
        self._desk.say("")
        self._desk.open(session)
        await self._desk.refresh()

    async def _changed(self, sent: Sent) -> None:
        await sent.acked()
        self._desk.say("done")

    async def _members(self, session: str) -> None:
        page = await self._client.groups.members(session, limit=MEMBERS_SHOWN)
        lines = [f"{member.user}  {member.role}" for member in page.members]
        if page.next is not None:
            lines.append("and more: im-actors group members shows all")
        self._show(lines or ["nothing is known of its members here"])

    # -- being told ------------------------------------------------------------------------------

    def _show(self, lines: list[str]) -> None:
        self._model.show(lines)
        self._desk.changed()

    async def _readers(self, _: str) -> None:
        seq = self._model.last_own()
        if seq is None:
            raise BadRequest("there is no message of yours here")
        found = await self._client.receipts(self._open_session(), seq)
        names = ", ".join(found.users)
        more = " …" if len(found.users) < found.read else ""
        self._desk.say(f"#{seq} was read by {found.read}: {names}{more}")

    async def _online(self, _: str) -> None:
        users = await self._client.who_is_online(self._open_session())
        self._desk.say(f"connected: {', '.join(users)}" if users else "nobody else is connected")

    async def _where(self, _: str) -> None:
        waiting = self._client.outbox()
        lines = [f"{sent.session} {sent.n}: {self._client.where(sent).text}" for sent in waiting]
        self._show(lines or ["nothing is pending"])

    async def _help(self, _: str) -> None:
        self._show([*KEYS.split("\n"), "", *COMMANDS.split("\n")])

    async def _quit(self, _: str) -> None:
        self._desk.leave()
