"""Runs scenario files: text scripts with a prose header, after etcd-io/raft's interaction tests.

A file is a header of ``#`` lines and then blocks, with a blank line after each:

    # Prose, also between blocks.
    take shard-1
    deliver
    ----
    what is told about it

The commands of a block stand above ``----``, what they are expected to tell below it. A small
cluster of the real machines of ``core`` (owners, replicas, outboxes, inboxes; one slot) does what
the commands say and nothing else: each message waits until it is delivered, the clock stands still
until it is told to go on, and jitter is always at its least. Gateways are left out: what a client
sends goes straight to the owner, and what one refuses comes straight back.

The cluster:
    start [replicas=3] [shards=1] [clients=alice,…] [copy=256] [flights=1]
                             ``copy``: committed records that a takeover copies to a spare itself;
                             ``flights``: records that an owner has under way at once
    take SHARD [force]       the controller tells a shard to take the slot over
    crash NODE               what its disk has not written is lost
    restart NODE             with what its disk holds; a shard as another incarnation of itself
    wipe REPLICA             while it is down: an empty disk in the place of its disk
    flip REPLICA LSN         while it is down: a bit changes in a record in its journal
    pause NODE, resume NODE  it neither hears nor does anything meanwhile
    slow NODE, sync NODE     its disk writes nothing before ``sync``
    rollback EPOCH           the view store is back at that epoch's last record
    tick MS                  time passes

Messages, all or the first COUNT, chosen by ``from=``, ``to=`` (names with commas), ``about=TEXT``:
    deliver [COUNT] …        in the order in which they were sent, and what follows from them
    settle                   all messages; then 3 ms pass, and an idle owner tells its commit point
    drop [COUNT] …           they get lost
    duplicate [COUNT] …      a second copy of each is put at the end
    hold …, release          they stay where they are until all holds are ended
    refuse ERROR [COUNT] …   the gateway refuses sends for good

Clients:
    send CLIENT SESSION TEXT through its outbox
    follow CLIENT SESSION [after=SEQ]
    disconnect CLIENT        until it is restarted
    gateway CLIENT [SHARD]   its gateway has old news and sends to SHARD; back to the true owner

Looking: ``show log``, ``show view``, ``show shards``, ``show client NAME``, ``show network``, and
``outcome``, which every file ends with. ``quietly COMMAND`` tells only alarms.

A message is told when it is delivered, as ``source -> target: what it says``, with what the target
did on its account below it; the same between several nodes is told once. A record is written
``lsn@epoch``. The invariants of design 5.5 are checked after each command, so that a scenario with
a broken outcome cannot be written down as the expected one.
"""

from __future__ import annotations

import copy
import difflib
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from im_actors.core import owner as own
from tests.scenarios import words
from tests.scenarios.cluster import STEPS_MAX, Choice, Cluster
from tests.scenarios.nodes import Client, Replica, Shard

HERE = Path(__file__).parent
MARK = "----"
IDLE_MS = 3
REWRITE = "python -m tests.scenarios --rewrite"


@dataclass
class Block:
    """Lines up to ``----`` (prose and commands) and the expected output after it."""

    line: int
    script: list[str]
    expected: list[str]

    @property
    def commands(self) -> list[str]:
        return [text for text in self.script if text and not text.startswith("#")]


def parse(text: str) -> tuple[list[Block], list[str]]:
    """The blocks of a file, and the lines after the last one."""
    blocks: list[Block] = []
    script: list[str] = []
    lines = text.splitlines()
    index = 0
    while index < len(lines):
        if lines[index] != MARK:
            script.append(lines[index])
            index += 1
            continue
        end = lines.index("", index) if "" in lines[index:] else len(lines)
        blocks.append(Block(index - len(script) + 1, script, lines[index + 1 : end]))
        script, index = [], end + 1
    return blocks, script


def files() -> list[Path]:
    return sorted(HERE.glob("*.txt"))


def run(path: Path) -> str:
    """The file as it would have to be: its script with what the machines told."""
    blocks, rest = parse(path.read_text(encoding="utf-8"))
    parts: list[str] = []
    script = Script()
    for block in blocks:
        try:
            told = script.block(block.commands)
        except Exception as error:
            error.add_note(f"in the block at {path.name}:{block.line}")
            raise
        parts += [*block.script, MARK, *told, ""]
    return "\n".join(parts + rest).rstrip("\n") + "\n"


def difference(path: Path) -> str:
    """Empty, or how what is told differs from what is written, and how to accept it."""
    written, told = path.read_text(encoding="utf-8"), run(path)
    lines = difflib.unified_diff(
        written.splitlines(), told.splitlines(), "written", "told", lineterm=""
    )
    text = "\n".join(lines)
    return text and f"{path.name}\n{text}\nif this is right: {REWRITE} {path.stem}"


class Script:
    """Carries out commands on a cluster."""

    def __init__(self) -> None:
        self._cluster: Cluster | None = None
        self._shown: list[str] = []
        self._options: dict[str, str] = {}

    @property
    def cluster(self) -> Cluster:
        assert self._cluster is not None, "the first command is start"
        return self._cluster

    def block(self, commands: list[str]) -> list[str]:
        lines: list[str] = []
        for command in commands:
            quiet = command.startswith("quietly ")
            told = self.command(command.removeprefix("quietly "))
            lines += [line for line in told if not quiet or "ALARM" in line]
        waiting = len(self.cluster.queue)
        if waiting and "network" not in commands[-1]:
            lines.append(f"({waiting} message{'s' * (waiting > 1)} under way)")
        return lines or ["ok"]

    def command(self, line: str) -> list[str]:
        name, *rest = shlex.split(line)
        self._options = dict(word.split("=", 1) for word in rest if _is_option(word))
        arguments = [word for word in rest if not _is_option(word)]
        self._shown = []
        getattr(self, f"do_{name}")(*arguments)
        self.cluster.check()
        return self.cluster.told() + self._shown

    def choice(self, count: str = "") -> Choice:
        parts = [self._options.get(key, "") for key in ("from", "to")]
        sources, targets = ([name for name in part.split(",") if name] for part in parts)
        about = self._options.get("about", "")
        return Choice(sources, targets, about, int(count or STEPS_MAX))

    # -- the cluster ---------------------------------------------------------------------------

    def do_start(self) -> None:
        given = {"replicas": "3", "shards": "1", "clients": "alice", "copy": "256", "flights": "1"}
        given |= self._options
        clients = given.pop("clients").split(",")
        self._cluster = Cluster(clients=clients, **{key: int(n) for key, n in given.items()})

    def do_take(self, name: str, force: str = "") -> None:
        shard = self.cluster.nodes[name]
        assert isinstance(shard, Shard)
        with self.cluster.telling(name):
            shard.handle(own.Take("the controller wants it", bool(force)))

    def do_crash(self, name: str) -> None:
        self.cluster.nodes[name].crash()
        self.cluster.tell_shards()

    def do_restart(self, name: str) -> None:
        self.cluster.restart(name)

    def do_wipe(self, name: str) -> None:
        self._replica_down(name).new_disk()

    def do_flip(self, name: str, lsn: str) -> None:
        replica = self._replica_down(name)
        # What was durable before stays known to the invariants under the disk's identity.
        replica.disk = copy.deepcopy(replica.disk)
        replica.disk.flip(int(lsn))

    def _replica_down(self, name: str) -> Replica:
        replica = self.cluster.nodes[name]
        assert isinstance(replica, Replica)
        assert not replica.running, f"{name} runs"
        return replica

    def do_pause(self, name: str) -> None:
        self.cluster.nodes[name].paused = True

    def do_resume(self, name: str) -> None:
        self.cluster.nodes[name].paused = False
        self.cluster.tell_shards()

    def do_slow(self, name: str) -> None:
        self.cluster.nodes[name].slow = True

    def do_sync(self, name: str) -> None:
        with self.cluster.telling(name):
            self.cluster.nodes[name].sync()

    def do_rollback(self, epoch: str) -> None:
        self.cluster.roll_back(int(epoch))

    def do_tick(self, ms: str) -> None:
        self.cluster.pass_time(int(ms))

    # -- messages ------------------------------------------------------------------------------

    def do_deliver(self, count: str = "") -> None:
        self.cluster.deliver(self.choice(count))

    def do_settle(self) -> None:
        for idle_ms in (0, IDLE_MS):
            if idle_ms:
                self.cluster.pass_time(idle_ms)
            self.cluster.deliver(Choice())

    def do_drop(self, count: str = "") -> None:
        self.cluster.drop(self.choice(count))

    def do_duplicate(self, count: str = "") -> None:
        self.cluster.queue += self.cluster.under_way(self.choice(count))

    def do_hold(self) -> None:
        self.cluster.held.append(self.choice())

    def do_release(self) -> None:
        self.cluster.held.clear()

    def do_refuse(self, error: str, count: str = "") -> None:
        self.cluster.refuse(self.choice(count), error)

    # -- clients -------------------------------------------------------------------------------

    def _client(self, name: str, act: Callable[[Client], None]) -> None:
        with self.cluster.telling(name):
            act(self.cluster.client(name))

    def do_send(self, name: str, session: str, text: str) -> None:
        self._client(name, lambda client: client.submit(session, text))

    def do_follow(self, name: str, session: str) -> None:
        after = int(self._options.get("after", "0"))
        self._client(name, lambda client: client.follow(session, after))

    def do_disconnect(self, name: str) -> None:
        self._client(name, Client.disconnect)

    def do_gateway(self, name: str, shard: str = "") -> None:
        self.cluster.client(name).via = shard

    # -- looking -------------------------------------------------------------------------------

    def do_show(self, what: str, name: str = "") -> None:
        self._shown += self._client_lines(name) if name else getattr(self, f"_{what}")()

    def do_outcome(self) -> None:
        clients = [n.name for n in self.cluster.nodes.values() if isinstance(n, Client)]
        self._shown += [line for name in clients for line in self._client_lines(name)]
        self._shown += [*self._view(), *self._log()]

    def _view(self) -> list[str]:
        return [f"view: {words.view(self.cluster.views.view)}"]

    def _shards(self) -> list[str]:
        lines = []
        for shard in self.cluster.shards():
            owner = shard.owner
            ends = f" epoch {owner.epoch}, commit point {owner.commit_lsn}, last {owner.last_lsn}"
            state = owner.phase.value + ends * (owner.phase is own.Phase.SERVING)
            why = f" ({owner.reason})" if owner.reason else ""
            lines.append(f"{shard.name}: " + (f"{state}{why}" if shard.running else "down"))
        return lines

    def _network(self) -> list[str]:
        return [f"{m.source} -> {m.target}: {m.text}" for m in self.cluster.queue] or ["quiet"]

    def _client_lines(self, name: str) -> list[str]:
        client = self.cluster.client(name)
        rows = {(s, n): words.text(r.kind, r.body) for (s, n), r in client.stored.items()}
        keys = sorted({*rows, *client.outcomes})
        lines = []
        for key in keys:
            waiting = f"in the outbox, {rows[key]}" if key in rows else ""
            states = [state for state in (client.outcomes.get(key, ""), waiting) if state]
            lines.append(f"{name}: {key[0]} n={key[1]} {', '.join(states)}")
        for session, shown in client.shown.items():
            lines.append(f"{name}: has shown {session} {', '.join(str(e.seq) for e in shown)}")
        return lines

    def _log(self) -> list[str]:
        groups: list[tuple[list[str], list[str]]] = []
        for replica in self.cluster.replicas():
            lines = self._replica_lines(replica)
            if groups and groups[-1][1] == lines:
                groups[-1][0].append(replica.name)
            else:
                groups.append(([replica.name], lines))
        return [
            line for who, (head, *rest) in groups for line in (f"{words.names(who)}: {head}", *rest)
        ]

    def _replica_lines(self, replica: Replica) -> list[str]:
        """What its disk holds, and what it believes committed (on disk when it is down)."""
        log = replica.log
        disk = "" if replica.disks == 1 else f"{replica.disk.identity}, "
        state = "" if replica.running else "down, "
        hole = "" if log.complete else f", whole from {log.from_lsn}"
        head = f"{state}{disk}promised {log.promised}, commit point {log.commit_lsn}{hole}"
        lines = [head]
        for lsn in replica.disk.lsns():
            record = replica.disk.record(0, lsn)
            assert record is not None
            mark = "  (above its commit point)" if lsn > log.commit_lsn else ""
            lines.append(f"  {words.record(record)}{mark}")
        return lines


OPTIONS = {"from", "to", "about", "after", "replicas", "shards", "clients", "copy", "flights"}


def _is_option(word: str) -> bool:
    return "=" in word and word.partition("=")[0] in OPTIONS
