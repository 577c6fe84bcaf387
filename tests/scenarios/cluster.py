"""A cluster in which nothing happens by itself: a script moves every message and the clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from im_actors.core import invariants
from im_actors.core import owner as own
from im_actors.core.model import Member, View, ViewState
from im_actors.core.outbox_words import Nacked, NackRow, OutboxRow
from im_actors.core.serving import ServingLimits
from im_actors.core.takeover import ReplicaInfo
from tests.scenarios import words
from tests.scenarios.disk import SLOT, Disk
from tests.scenarios.nodes import Client, Node, Replica, Shard, ViewStore, code_of

START_MS = 1_700_000_000_000
STEPS_MAX = 1_000
"""A command that moves more messages or wakes more machines than this goes round in circles."""


@dataclass(frozen=True)
class Message:
    source: str
    target: str
    body: Any
    disk: str = ""
    """The disk that a request is addressed to, or that an answer speaks of."""

    @property
    def text(self) -> str:
        return words.message(self.body)


@dataclass
class Choice:
    """Which messages a command is about: all that fit, or the first ``count`` of them."""

    sources: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    about: str = ""
    count: int = STEPS_MAX

    def fits(self, message: Message) -> bool:
        return (
            (not self.sources or message.source in self.sources)
            and (not self.targets or message.target in self.targets)
            and self.about in message.text
        )


@dataclass
class Entry:
    """Something that happened and what came of it. Equal ones in a row are told once."""

    sources: list[str]
    targets: list[str]
    text: str
    effects: list[str] = field(default_factory=list)

    def joined(self, later: Entry) -> bool:
        """Take ``later`` in, if it is the same between one other node."""
        if (self.text, self.effects) != (later.text, later.effects):
            return False
        if self.sources == later.sources and later.targets[0] not in self.targets:
            self.targets += later.targets
        elif self.targets == later.targets and later.sources[0] not in self.sources:
            self.sources += later.sources
        else:
            return False
        return True

    def lines(self) -> list[str]:
        names = [words.names(self.sources)] + [words.names(self.targets)] * bool(self.targets)
        head = " -> ".join(names) + (f": {self.text}" if self.text else "")
        return [head, *(f"  {effect}" for effect in self.effects)]


class Cluster:
    def __init__(
        self, replicas: int, shards: int, clients: list[str], copy: int, flights: int
    ) -> None:
        self.settings = own.OwnerSettings(copy_records_max=copy)
        self.limits = ServingLimits(records_in_flight_max=flights)
        self.now_ms = START_MS
        self.ledger = invariants.Ledger()
        self.disks: dict[str, Disk] = {}
        self.nodes: dict[str, Node] = {}
        self.queue: list[Message] = []
        self.held: list[Choice] = []
        self.followers: dict[str, set[str]] = {}
        self.entries: list[Entry] = []
        self.lives: dict[str, int] = {}
        self.rolled_back = False
        with self.telling("start"):
            for number in range(1, replicas + 1):
                self.nodes[f"replica-{number}"] = Replica(self, f"replica-{number}")
            members = tuple(replica.member for replica in self.replicas()[:3])
            self.views = ViewStore(self, "views", View(SLOT, 0, ViewState.RECOVERING, "", members))
            self.nodes["views"] = self.views
            for number in range(1, shards + 1):
                self.add_shard(f"shard-{number}")
            for name in clients:
                self.nodes[name] = Client(self, name)
            self.tell_shards()
        self.entries.clear()

    # -- who is there --------------------------------------------------------------------------

    def replicas(self) -> list[Replica]:
        return [node for node in self.nodes.values() if isinstance(node, Replica)]

    def replica_names(self) -> list[str]:
        return [replica.name for replica in self.replicas()]

    def shards(self) -> list[Shard]:
        return [node for node in self.nodes.values() if isinstance(node, Shard)]

    def client(self, name: str) -> Client:
        node = self.nodes[name]
        assert isinstance(node, Client)
        return node

    def route(self) -> str:
        """Where a gateway with the newest view sends."""
        return self.views.view.owner or self.shards()[0].name

    def reader(self) -> str:
        """A replica whose history has no hole, for reads."""
        able = [r for r in self.replicas() if r.running and r.log.epochs and r.log.complete]
        return able[0].name if able else self.replicas()[0].name

    # -- telling -------------------------------------------------------------------------------

    @contextmanager
    def telling(self, source: str, target: str = "", text: str = "") -> Iterator[None]:
        """What ``say`` is told meanwhile came of this."""
        entry = Entry([source], [target] if target else [], text)
        self.entries.append(entry)
        yield
        before = self.entries[-2] if len(self.entries) > 1 else None
        silent = not entry.effects and not text
        if silent or (before is not None and target and before.joined(entry)):
            self.entries.remove(entry)

    def say(self, text: str) -> None:
        self.entries[-1].effects.append(text)

    def told(self) -> list[str]:
        lines = [line for entry in self.entries for line in entry.lines()]
        self.entries.clear()
        return lines

    # -- messages ------------------------------------------------------------------------------

    def post(self, source: str, target: str, body: Any, disk: str) -> None:
        self.queue.append(Message(source, target, body, disk))

    def under_way(self, choice: Choice) -> list[Message]:
        """Those chosen that are free to move, oldest first."""
        return [
            message
            for message in self.queue
            if choice.fits(message)
            and not self.nodes[message.target].paused
            and not any(rule.fits(message) for rule in self.held)
        ][: choice.count]

    def deliver(self, choice: Choice) -> None:
        """Also what comes of it, as far as it is chosen."""
        for _ in range(choice.count):
            found = self.under_way(choice)
            if not found:
                return
            self.take_out(found[0])
            self.hand_over(found[0])
        assert choice.count < STEPS_MAX, "messages without end"

    def take_out(self, message: Message) -> None:
        index = next(i for i, waiting in enumerate(self.queue) if waiting is message)
        del self.queue[index]

    def hand_over(self, message: Message) -> None:
        node = self.nodes[message.target]
        with self.telling(message.source, message.target, message.text):
            if node.running:
                node.receive(message)
            else:
                self.say(f"lost: {message.target} is down")
                self.unanswered(message)

    def drop(self, choice: Choice) -> None:
        for message in self.under_way(choice):
            self.take_out(message)
            with self.telling(message.source, message.target, message.text):
                self.say("lost on the way")
                self.unanswered(message)

    def unanswered(self, message: Message) -> None:
        """A call to the view store that gets no answer ends by its timeout, and not as a failure
        but as an outcome that nobody knows."""
        asker = self.nodes[message.target if message.source == "views" else message.source]
        match message.body:
            case own.ReadView() | own.ViewRead():
                outcome: Any = own.ViewRead(None)
            case own.SwapView() | own.ViewSwapped():
                outcome = own.ViewSwapped(None)
            case _:
                return
        if isinstance(asker, Shard) and asker.running:
            self.say(f"{asker.name} does not know the outcome")
            asker.handle(outcome)

    def refuse(self, choice: Choice, error: str) -> None:
        """The gateway answers for good, instead of passing a send on."""
        for message in self.under_way(choice):
            if isinstance(message.body, OutboxRow):
                self.take_out(message)
                with self.telling(message.source, "gateway", message.text):
                    self.say(f"refuses it: {error}")
                row = NackRow(message.body.session, message.body.n, code_of(error), 0, 0, error)
                self.post("gateway", message.source, Nacked([row]), "")

    # -- processes and time --------------------------------------------------------------------

    def tell_shards(self) -> None:
        """What the controller and the links tell each shard that runs: which replicas there are,
        and who went and came since it heard the last time."""
        infos = tuple(ReplicaInfo(r.name, r.disk.identity, r.name) for r in self.replicas())
        up = {(r.member, r.lives) for r in self.replicas() if r.running}
        for shard in self.shards():
            if not shard.running or shard.paused:
                continue
            with self.telling(shard.name):
                gone, come = shard.links - up, up - shard.links
                shard.links = up
                for member, _ in sorted(gone):
                    shard.handle(own.MemberDown(member))
                shard.handle(own.ReplicasKnown(infos))
                for member, _ in sorted(come):
                    shard.handle(own.MemberUp(member))

    def add_shard(self, name: str) -> None:
        self.nodes[name] = Shard(self, name, self.settings, self.limits)

    def restart(self, name: str) -> None:
        """A replica or a client comes back with what it has on disk. A shard has no disk: it comes
        back as another incarnation, whether the former one still runs or not."""
        node = self.nodes[name]
        with self.telling(name):
            if isinstance(node, Shard):
                self.lives[name] = self.lives.get(name, 1) + 1
                fresh = f"{name}.{self.lives[name]}"
                self.add_shard(fresh)
                self.say(f"runs as {fresh}")
            else:
                assert not node.running, f"{name} runs"
                node.start()  # type: ignore[attr-defined]
        self.tell_shards()

    def pass_time(self, ms: int) -> None:
        until = self.now_ms + ms
        for _ in range(STEPS_MAX):
            awake = [n for n in self.nodes.values() if n.running and not n.paused]
            dues = [(due, n.name) for n in awake if (due := n.deadline_ms()) is not None]
            due, name = min(dues, default=(until + 1, ""))
            if due > until:
                break
            self.now_ms = max(self.now_ms, due)
            self.wake(name)
        else:
            raise AssertionError("machines that want to be called without end")
        self.now_ms = until
        for replica in self.replicas():
            if replica.running and not replica.paused:
                self.wake(replica.name)

    def wake(self, name: str) -> None:
        with self.telling(name):
            self.nodes[name].tick()

    # -- checking ------------------------------------------------------------------------------

    def roll_back(self, epoch: int) -> None:
        """The store loses its last changes. What it says is no measure from here on; the others are
        held to the invariants as before."""
        self.rolled_back = True
        self.views.view = next(v for v in reversed(self.views.past) if v.epoch == epoch)
        owners = self.ledger.owners
        self.ledger.owners = {key: owner for key, owner in owners.items() if key[1] <= epoch}

    def check(self) -> None:
        """The invariants of design 5.5 over everybody who runs."""
        running = [
            invariants.Running(Member(r.name, r.disk.identity), r.machine, r.disk)
            for r in self.replicas()
            if r.running and not r.unsynced
        ]
        owners = [shard.owner for shard in self.shards() if shard.running]
        views = {} if self.rolled_back else {SLOT: self.views.view}
        invariants.check_cluster(self.ledger, owners, running, views)
