"""Two releases side by side, and back: a pretended next one has other frames, records and files."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

import msgpack
import pytest

from im_actors.cli.cluster_commands import sound
from im_actors.cli.verify_offline import verify_directories
from im_actors.client import ClientConfig
from im_actors.client.connection import Link as ClientLink
from im_actors.core import dropping, facts, model
from im_actors.core.formats import FORMATS, Formats
from im_actors.core.model import Record, sealed_record
from im_actors.core.serving import Flight, Serving
from im_actors.errors import BadRequest, NewerFormat, ProtocolViolation
from im_actors.gateway.client_connection import ClientConnection
from im_actors.net.connection import FramedProtocol
from im_actors.net.link_connection import LinkConnection
from im_actors.proof import ClientHistory
from im_actors.server import upgrade
from im_actors.server.controller import ControllerConfig
from im_actors.server.topology import Desired, kind_of
from im_actors.server.upgrade import Upgrade, Written
from im_actors.storage import directory
from im_actors.storage.database import Format
from im_actors.storage.directory import FILES
from im_actors.testing.local import LocalCluster
from im_actors.wire.codec import encode_frame
from im_actors.wire.links import LINK_FRAME_BYTES_MAX
from im_actors.wire.messages import BYE, ERROR, SERVER_BYE, VERSIONS, WELCOME
from tests.server.test_growth import load, until

NOW = FORMATS.newest
QUICK = ControllerConfig(settle_ms=50, reconcile_every_ms=50, restart_ms_max=100)
NEXT = NOW + 1
BOTH = Formats(NOW, NEXT)
LATER_VERSION = VERSIONS.newest + 1
BOTH_VERSIONS = Formats(VERSIONS.newest, LATER_VERSION)
MARK = "a field that only the next release has"
"""At the end of every frame of the next format of links, and of the next client protocol."""
NEW_FORM = b"\xc1"
"""What records of the next format begin with: no msgpack does."""
NO_MARK = frozenset((ERROR, BYE, SERVER_BYE, WELCOME))
TABLE = "CREATE TABLE of_the_next_release(x INTEGER)"


class Pretended:
    """The next release. Actors of this one, in the same process, must never meet what only the next
    one knows: whatever does is in ``met``."""

    def __init__(self) -> None:
        self.met: list[str] = []
        self.records_allowed = False
        self.links: set[int] = set()
        """The formats that frames of links have come in."""
        self.versions: set[int] = set()
        """The same for clients."""
        self.writers: WeakSet[Serving] = WeakSet()
        """Those that write records of the next format."""
        self.records_read = 0

    # -- frames

    def speaks(self, connection: FramedProtocol) -> int:
        """The format of a link or the version of a client, when its frames are counted by it."""
        if isinstance(connection, LinkConnection):
            return connection.format if connection.up else 0
        if isinstance(connection, ClientConnection):
            return connection.hello.version if connection.hello else 0
        assert isinstance(connection, ClientLink)
        owner = connection._connection
        return owner.version if owner is not None and owner.is_online else 0

    def packed(self, connection: FramedProtocol, frames: bytes) -> bytes:
        if self.speaks(connection) not in (NEXT, LATER_VERSION):
            return frames
        out, at = [], 0
        while at < len(frames):
            size = int.from_bytes(frames[at : at + 4], "big")
            message = msgpack.unpackb(frames[at + 4 : at + 4 + size], raw=False)
            marked = message if message[0] in NO_MARK else [*message, MARK]
            out.append(encode_frame(marked, LINK_FRAME_BYTES_MAX))
            at += 4 + size
        return b"".join(out)

    def read(self, connection: FramedProtocol, message: list[Any]) -> list[Any]:
        speaks = self.speaks(connection)
        if not speaks or message[0] in NO_MARK:
            return message
        seen = self.links if isinstance(connection, LinkConnection) else self.versions
        seen.add(speaks)
        marked = message[-1] == MARK
        if marked != (speaks in (NEXT, LATER_VERSION)):
            self.met.append(f"{connection!r} speaks {speaks} and got {message}"[:500])
            raise ProtocolViolation("another format than was agreed on")
        return message[:-1] if marked else message

    # -- records

    def unpackb(self, data: bytes, **options: Any) -> Any:
        if data[:1] == NEW_FORM:
            self.records_read += 1
            if not self.records_allowed:
                self.met.append("a record of the next format")
            data = data[1:]
        return msgpack.unpackb(data, **options)

    def written(self, serving: Serving, record: Record | None) -> Record | None:
        if record is None or serving not in self.writers:
            return record
        new = sealed_record(serving.slot, record.lsn, record.epoch, NEW_FORM + record.payload)
        serving.flights[-1] = Flight(new, serving.flights[-1].events)
        return new


def with_table(form: Format) -> Format:
    """The next format of a file."""
    return replace(
        form,
        version=form.version + 1,
        schema=(*form.schema, TABLE),
        migrations={**form.migrations, form.version: lambda connection: connection.execute(TABLE)},
    )


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    next_release = Pretended()
    monkeypatch.setattr(upgrade, "LOOK_S", 0.05)
    monkeypatch.setitem(FILES, NEXT, directory.Files(*map(with_table, FILES[NOW])))
    for name in ("send", "send_now"):
        original: Callable[..., bool] = getattr(FramedProtocol, name)

        def send(
            self: FramedProtocol, frame: bytes, original: Callable[..., bool] = original
        ) -> bool:
            return original(self, next_release.packed(self, frame))

        monkeypatch.setattr(FramedProtocol, name, send)
    for kind in (LinkConnection, ClientConnection, ClientLink):
        receive: Callable[..., None] = kind.frames_received  # type: ignore[attr-defined]

        def received(
            self: Any, messages: list[Any], receive: Callable[..., None] = receive
        ) -> None:
            # One by one: the first may be the one that says what the others speak.
            for message in messages:
                receive(self, [next_release.read(self, message)])

        monkeypatch.setattr(kind, "frames_received", received)
    for module in (model, facts, dropping):
        shim = SimpleNamespace(**{**vars(msgpack), "unpackb": next_release.unpackb})
        monkeypatch.setattr(module, "msgpack", shim)
    cut = Serving.cut_record
    monkeypatch.setattr(
        Serving,
        "cut_record",
        lambda self, lsn, epoch: next_release.written(self, cut(self, lsn, epoch)),
    )
    return next_release


class Mixed(LocalCluster):
    """Actors of two releases in one cluster."""

    pretended: Pretended

    def _make(self, desired: Desired) -> Any:
        known = self.releases.get(desired.name, FORMATS)
        versions = BOTH_VERSIONS if known == BOTH else VERSIONS
        self._gateway_config = replace(self._gateway_config, versions=versions)
        node = super()._make(desired)
        if desired.kind == "shard" and node.form == NEXT:
            self.pretended.writers.update(owner.serving for owner in node._owners.values())
        return node

    @property
    def names(self) -> list[str]:
        return [desired.name for desired in self._desired]

    async def install(self, release: Formats, *names: str) -> None:
        """Put a release on a host and start its actors anew, as an operator does."""
        for name in names:
            self.releases[name] = release
            async with self.admin() as admin:
                await admin.call("restart", name)
            await self.settle()
        async with self.admin() as admin:
            found = await admin.call("upgrade")
        assert {tuple(found["formats"][name]) for name in names} == {release}

    async def settle(self) -> None:
        async def done() -> bool:
            status = await self.status()
            return not status["upgrade"]["busy"] and status["healthy"]

        await until(done)

    def directory_formats(self) -> set[int]:
        files = self.data.glob("replica-*/identity.json")
        return {json.loads(file.read_text())["format"] for file in files}


CLIENTS = (ClientConfig(), ClientConfig(versions=BOTH_VERSIONS))
"""Of this release, and of the next one."""


@pytest.mark.timeout(300)
async def test_two_releases_side_by_side_under_load_back_and_forth_again(
    tmp_path: Path, pretended: Pretended, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"slots": 4, "gateways": 2, "controller": QUICK}
    async with LocalCluster(tmp_path, **options):
        pass  # What this release makes is of its format.
    cluster = Mixed(tmp_path, **options)
    cluster.pretended = pretended
    cluster.releases["controller"] = BOTH
    history = ClientHistory()

    async def sound_so_far() -> None:
        """All goes on, for both kinds of clients, and nothing was lost, doubled or misread."""
        before = list(acked)

        async def more() -> bool:
            return all(now > then for now, then in zip(acked, before, strict=True))

        await until(more)
        verdict = await cluster.verify()
        assert verdict["ok"], verdict
        assert not history.anomalies
        assert not pretended.met

    async with cluster:
        async with load(cluster, 4, CLIENTS, history) as acked:
            await sound_so_far()
            assert (pretended.links, pretended.versions) == ({NOW}, {VERSIONS.newest})

            for name in cluster.names:
                await cluster.install(BOTH, name)
                await sound_so_far()
                if name == cluster.names[0]:
                    with pytest.raises(BadRequest, match=f"replica-2.* not know format {NEXT}"):
                        await cluster.upgrade.finish()
            assert (pretended.links, pretended.versions) == ({NOW, NEXT}, set(BOTH_VERSIONS))
            pretended.links.clear()
            await sound_so_far()
            assert pretended.links == {NEXT}
            assert cluster.directory_formats() == {NOW}, "nothing on disks has changed"

            # Now it is the listening sides that know less; above it was the dialing ones.
            for name in cluster.names:
                await cluster.install(FORMATS, name)
                await sound_so_far()
            pretended.links.clear()
            await sound_so_far()
            assert pretended.links == {NOW}
            with pytest.raises(BadRequest, match="does not know format"):
                await cluster.upgrade.finish()

            await cluster.install(BOTH, *cluster.names)
            await sound_so_far()
            assert cluster.directory_formats() == {NOW}

            pretended.records_allowed = True
            async with cluster.admin() as admin:
                assert (await admin.call("finish_upgrade"))["busy"]
            await cluster.settle()
            assert cluster.upgrade.written == (NEXT, NEXT)
            assert cluster.directory_formats() == {NEXT}
            read = pretended.records_read
            await sound_so_far()
            assert pretended.records_read > read, "records are of the next format"
        await no_way_back(cluster)
    assert not pretended.met
    with pytest.raises(NewerFormat, match=rf"cluster\.json: this cluster writes format {NEXT}"):
        await LocalCluster(tmp_path, **options).start()
    with pytest.raises(NewerFormat, match="no going back"):
        await asyncio.to_thread(verify_directories, tmp_path)
    monkeypatch.setattr(directory, "FORMATS", BOTH)
    offline = await asyncio.to_thread(verify_directories, tmp_path)
    assert sound(offline), offline


async def no_way_back(cluster: Mixed) -> None:
    """An actor of the old release does not start any more, and says what to do."""
    for name in ("replica-1", "shard-1", "gateway-1"):
        cluster.releases[name] = FORMATS
        await cluster.crash(name)

        async def refused(name: str = name) -> bool:
            why = cluster.controller.missing().get(name, "")
            return f"this cluster writes format {NEXT}" in why and "install a newer one" in why

        await until(refused)
        cluster.releases[name] = BOTH
        await cluster.settle()


# -- the order of things ---------------------------------------------------------------------------


class Cluster:
    """What the upgrade sees of a cluster in which one thing happens after the other."""

    def __init__(self, formats: Formats = BOTH) -> None:
        self.formats = formats
        self.saved = Written(NOW, NOW)
        names = [f"{kind}-{n}" for kind in ("replica", "shard", "gateway") for n in (1, 2, 3)]
        self.known = dict.fromkeys(names, formats)
        self.writes = dict.fromkeys(names, NOW)
        self.away: dict[str, str] = {}
        self.deaf: set[str] = set()
        self.obstacles = ""
        self.filling: list[dict[str, Any]] = []
        self.restarted: list[str] = []
        self.upgrade = self.controller()

    def controller(self) -> Upgrade:
        """A controller that begins with what was saved."""
        seen: Any = self
        return Upgrade(seen, seen, self.saved, self.save, self.formats)

    def save(self, written: Written) -> None:
        disks = [form for name, form in self.writes.items() if kind_of(name) == "replica"]
        assert written.records <= min(disks), "no record is of a format that its disk is not"
        assert written.disks >= self.saved.disks
        self.saved = written

    def missing(self) -> dict[str, str]:
        return self.away

    def obstacle(self) -> str:
        return self.obstacles

    async def incomplete(self) -> list[dict[str, Any]]:
        return self.filling

    async def call_all(self, kind: str, method: str) -> dict[str, Any]:
        assert method == "status"
        return {
            name: {"error": "no answer"}
            if name in self.deaf
            else {"formats": list(self.known[name]), "host": f"host-{name[-1]}"}
            | ({} if kind == "gateway" else {"format": self.writes[name]})
            for name in self.known
            if kind_of(name) == kind and name not in self.away
        }

    async def restart(self, name: str) -> None:
        assert not self.away
        assert not self.filling
        self.restarted.append(name)
        self.writes[name] = self.upgrade.form_of(kind_of(name))

    async def steps(self, most: int = 20) -> None:
        for _ in range(most):
            if self.upgrade.status()["busy"]:
                await self.upgrade._step()


async def test_disks_come_before_records_and_one_after_the_other() -> None:
    there = Cluster()
    there.known["gateway-1"] = FORMATS
    with pytest.raises(BadRequest, match=f"gateway-1: does not know format {NEXT}"):
        await there.upgrade.finish()
    there.known["gateway-1"] = BOTH
    there.away["shard-3"] = "its host is away"
    with pytest.raises(BadRequest, match="shard-3: not known"):
        await there.upgrade.finish()
    del there.away["shard-3"]
    assert there.saved == (NOW, NOW)
    assert (await there.upgrade.finish())["busy"]
    assert there.saved == (NEXT, NOW), "written down before anything is done"
    await there.steps()
    replicas, shards = ([f"{kind}-{n}" for n in (1, 2, 3)] for kind in ("replica", "shard"))
    assert there.restarted == [*replicas, *shards], "gateways write nothing"
    assert there.saved == (NEXT, NEXT)
    assert not there.upgrade.status()["busy"]
    assert not (await there.upgrade.finish())["busy"], "again is fine"


async def test_nobody_is_taken_away_while_something_is_amiss() -> None:
    there = Cluster()
    await there.upgrade.finish()
    await there.steps(1)
    assert there.restarted == ["replica-1"]
    there.away["replica-1"] = "it starts"
    await there.steps()
    assert there.upgrade.status()["waits"] == "replica-1: it starts"
    del there.away["replica-1"]
    there.obstacles = "2 slots are not active: 3, 4"
    await there.steps()
    assert there.upgrade.status()["waits"] == there.obstacles
    there.obstacles = ""
    there.filling = [{"slot": 7, "replica": "replica-1"}]
    await there.steps()
    assert there.upgrade.status()["waits"] == "replica-1 fetches the history of slot 7"
    there.deaf = {"replica-1", "shard-2"}
    await there.steps()
    assert there.upgrade.status()["waits"] == "no answer from replica-1, shard-2"
    there.deaf = set()
    assert there.restarted == ["replica-1"]
    assert there.saved == (NEXT, NOW)
    there.filling = []
    await there.steps()
    assert there.saved == (NEXT, NEXT)


async def test_an_older_release_that_comes_in_between_holds_records_up() -> None:
    there = Cluster()
    await there.upgrade.finish()
    there.known["shard-2"] = FORMATS
    await there.steps()
    assert there.saved == (NEXT, NOW), "it was started in the old format, which is still written"
    assert there.upgrade.status()["waits"] == f"shard-2: does not know format {NEXT}"
    there.known["shard-2"] = BOTH
    await there.steps()
    assert there.saved == (NEXT, NEXT)


@pytest.mark.parametrize("after", range(7))
async def test_a_controller_that_starts_anew_goes_on(after: int) -> None:
    there = Cluster()
    await there.upgrade.finish()
    await there.steps(after)
    there.upgrade = there.controller()
    await there.steps()
    assert there.saved == (NEXT, NEXT)
    assert {there.writes[f"shard-{n}"] for n in (1, 2, 3)} == {NEXT}
    assert len(there.restarted) == 6


async def test_without_anything_newer_there_is_nothing_to_finish() -> None:
    there = Cluster(FORMATS)
    found = await there.upgrade.finish()
    assert (found["disks"], found["newest"]) == (NOW, NOW)
    await there.steps()
    assert not there.upgrade.status()["busy"]
    assert there.restarted == []


async def test_a_host_or_an_actor_starts_anew() -> None:
    there = Cluster()
    await there.upgrade.restart("gateway-2")
    await there.upgrade.restart("host-1")
    await there.upgrade.restart("shard-1")
    assert there.upgrade.status()["restarting"] == [
        "gateway-2",
        "replica-1",
        "shard-1",
        "gateway-1",
    ]
    await there.steps()
    assert there.restarted == ["gateway-2", "replica-1", "shard-1", "gateway-1"]
    assert not there.upgrade.status()["busy"]
    with pytest.raises(BadRequest, match=r"'host-9' is no actor .* and no host \(host-1, h"):
        await there.upgrade.restart("host-9")
