"""Plays a chat through real clients over TCP, injects faults, and keeps the ledger.

A run writes to sessions of its own, ``CONVERSATION#RUN``, so that their numbers start at 1 and the
same file can be played on the same cluster again. Senders get a client each; when there are more of
them than clients, several share one, and the ledger remembers who was who.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from im_actors.cli.chatfile import Line, Rate, due_times
from im_actors.cli.faults import FaultPlan, Hit, Injector
from im_actors.cli.ledger import Entry, Ledger, Seen, Verdict, View, quantiles
from im_actors.client import Client, ClientConfig, Follower, ImError, Sent, Unknown
from im_actors.core.model import check_name
from im_actors.errors import NotReachable

DEVICE = "replay"
TAKE_MAX = 512
HISTORY_PAGE = 500
FINAL_READS_AT_ONCE = 16
FOLLOWED_PER_READER_MAX = 500


@dataclass(frozen=True, slots=True)
class ReplayConfig:
    """How a chat is played."""

    clients_max: int = 64
    """Most clients that send."""
    readers: int = 4
    """Clients that follow; more when there are more conversations than they may follow."""
    window: int = 32
    """Most sends of one client that wait for their ACK. More of them raise the rate a little and
    the latencies in proportion."""
    rate: Rate | None = None
    """None: as fast as it goes."""
    silence_s: float = 60.0
    """When nothing at all was ACKed, or delivered, for so long, the rest is given up."""


class Watcher(Protocol):
    """Who is told how it goes."""

    def moved(self, acked: int, total: int) -> None:
        """So many messages have their ACK."""

    def say(self, text: str) -> None:
        """Something that a person wants to know."""


@dataclass(slots=True)
class Report:
    """The result; ``to_json`` is the last line of ``im-actors replay`` and ``demo``."""

    verdict: Verdict
    faults: list[dict[str, Any]]
    takeovers: int
    elapsed_s: float
    ack_ms: dict[str, float | None]
    delivery_ms: dict[str, float | None]
    conversations: int
    readers: int

    @property
    def ok(self) -> bool:
        return self.verdict.ok

    def to_json(self) -> dict[str, Any]:
        counts = asdict(self.verdict)
        del counts["anomalies"]
        mismatched = counts.pop("mismatched")
        rate = self.verdict.acked / self.elapsed_s if self.elapsed_s else 0.0
        return counts | {
            "faults": self.faults,
            "takeovers": self.takeovers,
            "elapsed_s": round(self.elapsed_s, 3),
            "msgs_per_s": round(rate, 1),
            "ack_ms": self.ack_ms,
            "delivery_ms": self.delivery_ms,
            "mismatched": mismatched,
            "conversations": self.conversations,
            "readers": self.readers,
        }


@dataclass(slots=True)
class Player:
    """One sending client and its part of the file, in order."""

    user: str
    client: Client
    lines: list[tuple[float, Line]] = field(default_factory=list)


class Replay:
    """One run. ``gateways`` are host:port; ``token_for`` gives a user's token."""

    def __init__(
        self,
        lines: Sequence[Line],
        gateways: Sequence[str],
        plan: FaultPlan,
        config: ReplayConfig,
        token_for: Callable[[str], str | None],
        watcher: Watcher,
        scheme: str = "im",
        client: ClientConfig | None = None,
    ) -> None:
        self._lines = list(lines)
        self._gateways = list(gateways)
        self._plan = plan
        self._config = config
        self._token_for = token_for
        self._watcher = watcher
        self._scheme = scheme
        self._client_config = replace(client or ClientConfig(), mailbox=False)
        self.run_id = secrets.token_hex(4)
        self.ledger = Ledger()
        self._players: list[Player] = []
        self._readers: list[Client] = []
        self._acked = 0
        self._given_up = False
        self._moved_s = 0.0
        self._milestones: list[tuple[float, asyncio.Event]] = []
        self._start_s = 0.0
        self._targets: dict[str, int] | None = None
        self._caught_up: dict[str, asyncio.Event] = {}

    async def run(self) -> Report:
        """Play, wait for the readers, read everything again, check."""
        self._cast()
        injector = Injector(self._plan, self)
        async with _Open([p.client for p in self._players] + self._readers):
            await asyncio.gather(*(c.connected(30) for c in self._clients()))
            epochs = await self._plan.epochs()
            self._start_s = self._moved_s = time.monotonic()
            self._watcher.moved(0, len(self._lines))
            following = self._follow_all()
            injecting = asyncio.create_task(injector.run())
            try:
                await self._play_all()
                if self._acked == len(self._lines):
                    await asyncio.wait({injecting}, timeout=self._config.silence_s)
                await self._drain_readers(following)
                injector.settle()
            finally:
                for task in (injecting, *following):
                    task.cancel()
                await asyncio.gather(injecting, *following, return_exceptions=True)
        await self._read_again()
        takeovers = await self._plan.takeovers(epochs, self.ledger)
        return self._report(injector.hits, takeovers)

    # -- who plays -------------------------------------------------------------------------------

    def _clients(self) -> list[Client]:
        return [player.client for player in self._players] + self._readers

    def client(self, user: str, first_gateway: int = 0) -> Client:
        """A client with its store in memory. Its gateways begin at another one each time."""
        count = len(self._gateways)
        turn = [self._gateways[(first_gateway + i) % count] for i in range(count)]
        url = f"{self._scheme}://{','.join(turn)}"
        config, token = self._client_config, lambda: self._token_for(user)
        return Client(url, user, DEVICE, token=token, config=config)

    def _cast(self) -> None:
        """Give every sender a client, and every conversation a reader."""
        senders = list(dict.fromkeys(line.sender for line in self._lines))
        shared = len(senders) > self._config.clients_max
        count = min(len(senders), self._config.clients_max)
        names = [f"player-{i:02}" if shared else _user(senders[i], i) for i in range(count)]
        self._players = [Player(name, self.client(name, i)) for i, name in enumerate(names)]
        player_of = {sender: self._players[i % count] for i, sender in enumerate(senders)}
        due = due_times(self._lines, self._config.rate)
        for at_s, line in zip(due, self._lines, strict=True):
            player_of[line.sender].lines.append((at_s, line))
        for player in self._players:
            # Stable, and times never go back inside a conversation: its order is kept.
            player.lines.sort(key=lambda part: part[0])
        self._conversations = list(dict.fromkeys(line.conversation for line in self._lines))
        needed = -(-len(self._conversations) // FOLLOWED_PER_READER_MAX)
        count = max(needed, min(self._config.readers, len(self._conversations)))
        self._readers = [self.client(f"reader-{i}", i + 1) for i in range(count)]

    def session(self, conversation: str) -> str:
        """Where a conversation of the file is played in this run."""
        return f"{conversation}#{self.run_id}"

    # -- sending ---------------------------------------------------------------------------------

    async def _play_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for player in self._players:
                group.create_task(self._play(player))

    async def _play(self, player: Player) -> None:
        waiting: deque[tuple[Entry, Sent]] = deque()
        client, ledger = player.client, self.ledger
        for due_s, line in player.lines:
            pause_s = self._start_s + due_s - time.monotonic() if due_s else 0.0
            if pause_s > 0:
                await asyncio.sleep(pause_s)
            if len(waiting) >= self._config.window and not await self._settle(waiting):
                break
            session, body = self.session(line.conversation), line.text.encode()
            sent_s = time.monotonic()
            sent = await client.send(session, body)
            entry = ledger.sent(session, client.address, sent.n, line.sender, body, sent_s)
            waiting.append((entry, sent))
        while waiting and await self._settle(waiting):
            pass

    async def _settle(self, waiting: deque[tuple[Entry, Sent]]) -> bool:
        """Wait for the oldest ACK and book it with those that came with it. False: given up."""
        entry, sent = waiting[0]
        while sent.ack is None:
            if self._given_up:
                return False
            try:
                await sent.acked(self._config.silence_s)
            except Unknown as error:
                if self._is_hopeless(error):
                    return False
            except ImError as error:
                # Refused for good; it stays in the ledger as sent and not ACKed.
                self._watcher.say(f"refused: {type(error).__name__}: {error}")
                waiting.popleft()
                return True
        booked = 0
        while waiting and (ack := waiting[0][1].ack) is not None:
            entry, _ = waiting.popleft()
            latency_ms = ack.latency_ms or 0.0
            self.ledger.acked(
                entry, ack.seq, ack.epoch, ack.copies, entry.sent_s + latency_ms / 1000
            )
            booked += 1
        self._note_acked(booked)
        return True

    def _is_hopeless(self, error: ImError) -> bool:
        """Whether nothing at all has moved for so long that the run ends here."""
        silent = time.monotonic() - self._moved_s >= self._config.silence_s
        if silent and not self._given_up:
            self._given_up = True
            self._watcher.say(f"given up: {error}")
        return self._given_up

    def _note_acked(self, count: int) -> None:
        self._acked += count
        self._moved_s = time.monotonic()
        self._watcher.moved(self._acked, len(self._lines))
        for needed, event in self._milestones:
            if self._acked >= needed:
                event.set()

    # -- reading ---------------------------------------------------------------------------------

    def _follow_all(self) -> list[asyncio.Task[None]]:
        tasks = []
        for index, conversation in enumerate(self._conversations):
            number = index % len(self._readers)
            session = self.session(conversation)
            view = self.ledger.follower(f"reader-{number}", session)
            self._caught_up[session] = asyncio.Event()
            follower = self._readers[number].follow(session, after=0)
            tasks.append(asyncio.create_task(self._follow(follower, view)))
        return tasks

    async def _follow(self, follower: Follower, view: View) -> None:
        keep = view.events.append
        while True:
            try:
                events = await follower.take(TAKE_MAX)
            except StopAsyncIteration:
                return
            now_s = time.monotonic()
            for event in events:
                keep(Seen(event.seq, event.device, event.n, event.body, now_s))
            self._moved_s = now_s
            self._check_caught_up(view)

    def _check_caught_up(self, view: View) -> None:
        if self._targets is None:
            return
        if view.last_seq >= self._targets.get(view.conversation, 0):
            self._caught_up[view.conversation].set()

    async def _drain_readers(self, following: list[asyncio.Task[None]]) -> None:
        """Until every follower has reached the highest seq that was ACKed in its conversation."""
        self._targets = self._highest()
        for view in self.ledger.followers:
            self._check_caught_up(view)
        self._moved_s = time.monotonic()
        for session, event in self._caught_up.items():
            while not event.is_set():
                left_s = self._moved_s + self._config.silence_s - time.monotonic()
                try:
                    async with asyncio.timeout(max(0.0, left_s)):
                        await event.wait()
                except TimeoutError:
                    if time.monotonic() - self._moved_s >= self._config.silence_s:
                        self._watcher.say(f"the reader of {session!r} does not get on")
                        return
        for task in following:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def _highest(self) -> dict[str, int]:
        highest: dict[str, int] = {}
        for (session, _, _), entry in self.ledger.entries.items():
            highest[session] = max(entry.seq, highest.get(session, 0))
        return highest

    async def _read_again(self) -> None:
        """The whole history of everything, by clients that know nothing yet, each with its own
        connection, through every gateway."""
        highest = self._highest()
        free = asyncio.Semaphore(FINAL_READS_AT_ONCE)
        auditors = [self.client(f"auditor-{i}", i) for i in range(len(self._gateways))]

        async def read(index: int, session: str) -> None:
            auditor = auditors[index % len(auditors)]
            view = self.ledger.final(f"auditor-{index % len(auditors)}", session)
            async with free:
                view.events = await self._whole_history(auditor, session, highest.get(session, 0))

        async with _Open(auditors):
            await asyncio.gather(*(auditor.connected(30) for auditor in auditors))
            sessions = map(self.session, self._conversations)
            await asyncio.gather(*(read(i, session) for i, session in enumerate(sessions)))

    async def _whole_history(self, client: Client, session: str, highest: int) -> list[Seen]:
        """A read may be answered with an older prefix, and a server may be away for a moment, so
        it is repeated until it is as long as the ACKs say, or time is up."""
        deadline = time.monotonic() + self._config.silence_s
        while True:
            found = await _pages(client, session)
            whole = found is not None and (found[-1].seq if found else 0) >= highest
            if whole or time.monotonic() > deadline:
                if found is None:
                    raise NotReachable(f"the history of {session!r} cannot be read")
                return found
            await client.connected(self._config.silence_s)

    # -- what faults need ------------------------------------------------------------------------

    @property
    def start_s(self) -> float:
        return self._start_s

    async def reached(self, share: float) -> None:
        """Return when this share of all messages was ACKed."""
        milestone = (share * len(self._lines), asyncio.Event())
        self._milestones.append(milestone)
        self._note_acked(0)
        await milestone[1].wait()
        self._milestones.remove(milestone)

    def say(self, text: str) -> None:
        self._watcher.say(text)

    def connects(self) -> dict[str, int]:
        """How often each sending client has connected."""
        return {p.client.address: p.client.status().connects for p in self._players}

    def cut_connections(self) -> int:
        """Reset every client's TCP connection, as a cable that is pulled; how many there were."""
        return sum(_cut(client) for client in self._clients())

    # -- the end ---------------------------------------------------------------------------------

    def _report(self, hits: list[Hit], takeovers: int) -> Report:
        entries = self.ledger.entries.values()
        ends = [entry.acked_s for entry in entries if entry.acked_s is not None]
        return Report(
            verdict=self.ledger.check(),
            faults=[hit.told(self._start_s, entries) for hit in hits],
            takeovers=takeovers,
            elapsed_s=max(ends, default=self._start_s) - self._start_s,
            ack_ms=quantiles(self.ledger.ack_ms()),
            delivery_ms=quantiles(self.ledger.delivery_ms()),
            conversations=len(self._conversations),
            readers=len(self._readers),
        )


async def _pages(client: Client, session: str) -> list[Seen] | None:
    """The whole history, oldest first; None when the server did not give all of it."""
    found: list[Seen] = []
    before: int | None = None
    while True:
        page = await client.history(session, before, HISTORY_PAGE)
        if page.offline:
            return None
        now_s = time.monotonic()
        found[:0] = [Seen(e.seq, e.device, e.n, e.body, now_s) for e in page.events]
        before = page.before
        if before is None:
            return found


def _user(sender: str, index: int) -> str:
    """The sender's own name when it can name a user."""
    try:
        return check_name("user", sender)
    except ImError:
        return f"player-{index:02}"


def _cut(client: Client) -> int:
    # The SDK offers no way to lose a connection on purpose, so this reaches into it.
    link = client._engine.connection._link
    if link is None:
        return 0
    link.abort()
    return 1


class _Open:
    """Opens clients one after the other and closes those that were opened, together."""

    def __init__(self, clients: Sequence[Client]) -> None:
        self._clients = clients
        self._opened: list[Client] = []

    async def __aenter__(self) -> None:
        try:
            for client in self._clients:
                self._opened.append(await client.__aenter__())
        except BaseException:
            await self.__aexit__(None, None, None)
            raise

    async def __aexit__(self, *_: object) -> None:
        closing = (client.__aexit__(None, None, None) for client in self._opened)
        await asyncio.gather(*closing, return_exceptions=True)
