"""A cluster that runs grows and shrinks: what is planned, and what really moves under load."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from im_actors.cli.cluster_commands import sound
from im_actors.cli.verify_offline import verify_directories
from im_actors.client import Client, ClientConfig
from im_actors.core.model import COPIES, View, ViewState
from im_actors.core.owner import OwnerSettings
from im_actors.core.placement import members_for, ranked_replicas
from im_actors.core.takeover import ReplicaInfo, fill_up
from im_actors.errors import BadRequest
from im_actors.proof import ClientHistory, Seen
from im_actors.server.controller import ControllerConfig
from im_actors.server.growth import Change, misplaced, next_change
from im_actors.server.topology import Topology
from im_actors.testing.local import LocalCluster

SLOTS = 4
WAIT_S = 60.0
QUICK = ControllerConfig(settle_ms=50, reconcile_every_ms=50)


def infos(count: int, hosts: int) -> list[ReplicaInfo]:
    return [ReplicaInfo(f"replica-{n}", f"disk-{n}", f"host-{n % hosts}") for n in range(count)]


def placed(slots: int, replicas: list[ReplicaInfo]) -> dict[int, View]:
    return {
        slot: View(slot, 1, ViewState.ACTIVE, "s", tuple(i.member for i in chosen))
        for slot in range(slots)
        for chosen in [members_for(slot, replicas)]
    }


def carried_out(view: View, change: Change, replicas: list[ReplicaInfo]) -> View:
    """As an owner does it that sees the barred ones as out of reach."""
    remain = [member for member in view.members if member not in change.barred]
    ranked = [info.member for info in ranked_replicas(view.slot, replicas)]
    spares = [m for m in ranked if m not in view.members and m not in change.barred]
    return view._replace(members=tuple(fill_up(remain, spares, replicas)), epoch=view.epoch + 1)


@settings(max_examples=60)
@given(
    before=st.integers(3, 6),
    added=st.integers(0, 3),
    hosts=st.integers(1, 5),
    drained=st.sets(st.integers(0, 8), max_size=3),
    lost=st.integers(0, 1000),
)
def test_all_changes_together_lead_to_where_placement_wants_members(
    before: int, added: int, hosts: int, drained: set[int], lost: int
) -> None:
    """One member at a time, each change one step nearer, and never on fewer than three."""
    everybody = infos(before + added, hosts)
    leaving = frozenset(f"replica-{n}" for n in drained if n < len(everybody))
    staying = [info for info in everybody if info.name not in leaving]
    views = placed(SLOTS, everybody[:before])
    # Faults have left some members where nobody would have placed them.
    rng = random.Random(lost)
    for slot in rng.sample(range(SLOTS), 2):
        members = tuple(info.member for info in rng.sample(everybody, COPIES))
        views[slot] = views[slot]._replace(members=members)
    if len(staying) < COPIES:
        assert next_change(views, everybody, leaving, True) is None
        return

    def left() -> int:
        return sum(len(misplaced(v, staying, leaving, True)) for v in views.values())

    while change := next_change(views, everybody, leaving, True):
        todo, old = left(), views[change.slot]
        assert change.leaves in old.members
        new = views[change.slot] = carried_out(old, change, everybody)
        assert len(set(new.members)) == COPIES
        assert len(set(old.members) & set(new.members)) == COPIES - 1
        assert left() == todo - 1
    assert left() == 0
    for slot, view in views.items():
        assert set(view.members) == {info.member for info in members_for(slot, staying)}


def test_who_leaves_the_cluster_goes_before_who_only_makes_room() -> None:
    everybody = infos(6, 6)
    views = placed(64, everybody[:5])
    change = next_change(views, everybody, frozenset({"replica-0"}), True)
    assert change is not None
    assert change.leaves.replica == "replica-0"


def test_a_drain_alone_moves_nobody_else() -> None:
    """What is uneven stays so until somebody asks for more than a drain."""
    everybody = infos(6, 6)
    views = placed(64, everybody[:3])
    assert next_change(views, everybody, frozenset(), False) is None
    moved = 0
    while change := next_change(views, everybody, frozenset({"replica-0"}), False):
        assert change.leaves.replica == "replica-0"
        views[change.slot] = carried_out(views[change.slot], change, everybody)
        moved += 1
    assert moved == 64


# -- with real owners and replicas, in one process -------------------------------------------------


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await condition():
            await asyncio.sleep(0.02)


async def until_done(cluster: LocalCluster) -> dict[str, Any]:
    async def done() -> bool:
        status = await cluster.status()
        return not status["growth"]["busy"] and status["healthy"]

    await until(done)
    return await cluster.status()


@asynccontextmanager
async def load(
    cluster: LocalCluster,
    sessions: int = 8,
    configs: Sequence[ClientConfig] = (ClientConfig(),),
    history: ClientHistory | None = None,
) -> AsyncIterator[list[int]]:
    """Sends one message after the other in each session, and judges it all at the end. A writer and
    a reader for each of ``configs``; yields how many were ACKed to each writer."""
    history, ending = history or ClientHistory(), asyncio.Event()
    acked = [0] * len(configs)

    async def talk(number: int, client: Client, session: str) -> None:
        while not ending.is_set():
            body = f"{session} {acked[number]}"
            sent = await client.send(session, body)
            history.sent(session, client.address, sent.n, 1, body.encode())
            ack = await sent.acked()
            history.acked(session, client.address, sent.n, ack.seq, ack.epoch, ack.copies)
            acked[number] += 1

    async def follow(number: int, client: Client, session: str) -> None:
        async for event in client.follow(session):
            at = (event.seq, event.device, event.n, event.kind, event.body)
            history.delivered(f"reader {number}", session, *at)

    names = [f"talk {number}" for number in range(sessions)]
    readers, writers = [], []
    async with AsyncExitStack() as clients:
        for number, config in enumerate(configs):
            alice, bob = [
                await clients.enter_async_context(
                    Client(cluster.url, user=user, device=str(number), config=config)
                )
                for user in ("alice", "bob")
            ]
            readers += [asyncio.create_task(follow(number, bob, name)) for name in names]
            writers += [asyncio.create_task(talk(number, alice, name)) for name in names]
        yield acked
        ending.set()
        async with asyncio.timeout(WAIT_S):
            await asyncio.gather(*writers)
        for name in names:
            events = await everything(alice, name)
            history.final_read(name, events)
            for number in range(len(configs)):
                await until_read(history, f"reader {number}", name, len(events))
        for reader in readers:
            reader.cancel()
            with suppress(asyncio.CancelledError):
                await reader
    assert not history.finish(), history.anomalies
    assert all(acked)


async def everything(client: Client, session: str) -> list[Seen]:
    events: list[Seen] = []
    before = None
    while page := (await client.history(session, before=before, limit=200)).events:
        events[:0] = [(e.seq, e.device, e.n, e.kind, e.body) for e in page]
        before = page[0].seq
    return events


async def until_read(history: ClientHistory, reader: str, session: str, upto: int) -> None:
    async def there() -> bool:
        return history._sessions[session].readings[reader].expected > upto

    await until(there)


@pytest.fixture
async def grown(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    owner = OwnerSettings(seal_wait_ms=50, replace_after_ms=60_000)
    async with LocalCluster(
        tmp_path, slots=SLOTS, replicas=4, hosts=9, controller=QUICK, owner=owner
    ) as cluster:
        yield cluster


async def test_members_and_slots_move_to_who_is_new_while_messages_flow(
    grown: LocalCluster,
) -> None:
    async with load(grown) as acked:
        async with grown.admin() as admin:
            found = await admin.call("scale", 3, 5, 2)
        assert found["busy"]
        assert "replica-5" in found["replicas"]
        status = await until_done(grown)
        before = acked[0]
        await until(lambda: _more(acked, before))
    running = grown.controller.running("replica")
    for slot, members in status["slots"]["members"].items():
        wanted = [info.name for info in members_for(int(slot), [r.info for r in running])]
        assert sorted(members) == sorted(wanted)
    assert sorted(status["gateways"]) == ["gateway-1", "gateway-2"]
    owners = {owner.rpartition(".")[0] for owner in status["slots"]["owners"].values()}
    assert owners <= {"shard-1", "shard-2", "shard-3"}
    verdict = await grown.verify()
    assert verdict["ok"], verdict


async def _more(acked: list[int], than: int) -> bool:
    return acked[0] > than


@pytest.fixture
async def forgetful(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Who takes a place gets none of the history with it, and has to fetch it."""
    owner = OwnerSettings(seal_wait_ms=50, replace_after_ms=60_000, copy_records_max=0)
    async with LocalCluster(
        tmp_path, slots=SLOTS, replicas=4, hosts=9, controller=QUICK, owner=owner
    ) as cluster:
        yield cluster


@pytest.mark.slow
async def test_a_drained_replica_goes_when_three_others_have_everything(
    forgetful: LocalCluster,
) -> None:
    """At no moment is a committed record on fewer than three disks, counting the one that leaves;
    in the end that one is in no view, and does not run."""
    copies = Copies(forgetful)
    async with load(forgetful):
        await forgetful.operations.methods()["drain"]("replica-2")
        watching = asyncio.create_task(copies.watch())
        status = await until_done(forgetful)
        watching.cancel()
    assert copies.looks
    assert not copies.too_few
    assert sorted(status["replicas"]) == ["replica-1", "replica-3", "replica-4"]
    assert all("replica-2" not in members for members in status["slots"]["members"].values())
    verdict = await forgetful.verify()
    assert verdict["ok"], verdict
    with pytest.raises(BadRequest, match="is no replica"):
        await forgetful.operations.methods()["drain"]("replica-2")
    with pytest.raises(BadRequest, match="scale --replicas 4 first"):
        await forgetful.operations.methods()["drain"]("replica-1")
    assert (forgetful.data / "replica-2").is_dir(), "nobody deletes a directory for the operator"
    await forgetful.stop()
    offline = await asyncio.to_thread(verify_directories, forgetful.data)
    assert sound(offline), offline


class Copies:
    """Counts, all the while, how many replicas hold each committed record."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self.looks = 0
        self.too_few: list[tuple[int, int, int]] = []

    async def watch(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(0)

    def look(self) -> None:
        replicas = [i.node for n, i in self._cluster._instances.items() if n.startswith("replica")]
        for slot in range(SLOTS):
            logs = [r.machine.logs[slot] for r in replicas if slot in r.machine.logs]
            committed = max(log.commit_lsn for log in logs)
            stretches = [tuple(stretch) for log in logs for stretch in log.held]
            # Between two of these all records are held by the same replicas.
            edges = {1, committed, *(a for a, _ in stretches), *(b + 1 for _, b in stretches)}
            for lsn in edges:
                copies = sum(first <= lsn <= last for first, last in stretches)
                if 1 <= lsn <= committed and copies < COPIES:
                    self.too_few.append((slot, lsn, copies))
            self.looks += 1


@pytest.mark.slow
async def test_growth_goes_on_where_it_was_when_everything_starts_again(tmp_path: Path) -> None:
    """Whoever asked for it is long gone."""
    with_four: dict[str, Any] = {"slots": SLOTS, "replicas": 4, "hosts": 9, "controller": QUICK}
    async with LocalCluster(tmp_path, **with_four) as cluster:
        async with cluster.admin() as admin:
            await admin.call("scale", 3, None, 2)
            found = await admin.call("drain", "replica-1")
        assert found["leaving"] == ["replica-1"]
        assert found["members_to_move"] > 0
    async with LocalCluster(tmp_path, **with_four) as cluster:
        status = await until_done(cluster)
        assert sorted(status["replicas"]) == ["replica-2", "replica-3", "replica-4"]
        assert sorted(status["shards"]) == ["shard-1", "shard-2", "shard-3"]
        assert len(status["gateways"]) == 2


@pytest.mark.slow
async def test_fewer_shards_and_gateways_hand_over_first(grown: LocalCluster) -> None:
    methods = grown.operations.methods()
    async with load(grown):
        await methods["scale"](4, None, 3)
        await until_done(grown)
        await methods["scale"](1, None, 1)
        status = await until_done(grown)
    assert sorted(status["gateways"]) == ["gateway-1"]
    assert sorted(status["shards"]) == ["shard-1", "shard-2"], "one works, one stands by"
    assert len(set(status["slots"]["owners"].values())) == 1


class OtherHost:
    """Places of which ``out`` stray when a replica is drained, until they are resettled."""

    def __init__(self, out: list[str], running: Callable[[], list[str]]) -> None:
        self.out = out
        self.running = running

    async def allot(self, topology: Topology) -> None:
        pass

    def strays(self, topology: Topology) -> list[str]:
        return [] if "replica-1" in topology.replicas else list(self.out)

    async def resettle(self, name: str, topology: Topology) -> None:
        assert name not in self.running()
        self.out.remove(name)


async def test_shards_and_gateways_leave_the_host_of_a_drained_replica(
    grown: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run elsewhere afterwards, and the shard has handed over its slots before."""
    growth, controller = grown.operations._growth, grown.controller
    names = ["shard-1", "gateway-1"]
    places = OtherHost(names.copy(), lambda: [*controller.running_names()["shard"]])
    monkeypatch.setattr(growth, "_places", places)
    before = {name: grown.node(name) for name in names}
    async with load(grown):
        found = await growth.drain("replica-1")
        assert set(names) <= set(found["leaving"])
        status = await until_done(grown)
    assert places.out == []
    assert "replica-1" not in status["replicas"]
    assert sorted(status["shards"]) == ["shard-1", "shard-2"]
    assert all(grown.node(name) is not old for name, old in before.items())


@pytest.mark.slow
async def test_a_drain_waits_while_a_replica_is_away_and_can_be_cancelled(
    grown: LocalCluster,
) -> None:
    methods = grown.operations.methods()
    await grown.crash("replica-3", hold=True)
    with pytest.raises(BadRequest, match="missing: replica-3"):
        await methods["drain"]("replica-1")
    grown.release("replica-3")
    await until_done(grown)
    await methods["drain"]("replica-1")
    await grown.crash("replica-3", hold=True)

    async def waits() -> bool:
        return "replica-3 does not run" in (await methods["growth"]())["waits"]

    await until(waits)
    with pytest.raises(BadRequest, match="replica-4 is not being drained"):
        await methods["drain"]("replica-4", True)
    await methods["drain"]("replica-1", True)
    grown.release("replica-3")
    status = await until_done(grown)
    assert len(status["replicas"]) == 4
    assert status["growth"]["leaving"] == []
