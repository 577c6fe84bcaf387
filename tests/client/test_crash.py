"""Programs that are killed, interrupted, or end without closing their client."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from im_actors.client import Client
from im_actors.errors import WrongDirectory


@asynccontextmanager
async def program(code: str, *args: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Python program; killed at the end if it still runs."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(code), *map(str, args),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def line(child: asyncio.subprocess.Process) -> str:
    assert child.stdout is not None
    async with asyncio.timeout(60):
        return (await child.stdout.readline()).decode().strip()


async def ended(child: asyncio.subprocess.Process) -> tuple[int, str]:
    """The exit code and what was written to stderr."""
    async with asyncio.timeout(60):
        _, errors = await child.communicate()
    assert child.returncode is not None
    return child.returncode, errors.decode()


SENDER = """
    import asyncio, sys
    from im_actors.client import Client

    async def main(url, store):
        async with Client(url, "alice", "phone", store=store) as im:
            for i in range(20):
                await im.send("team", str(i))
            print("saved", flush=True)
            await asyncio.Event().wait()

    asyncio.run(main(*sys.argv[1:]))
"""


async def test_killed_between_saving_and_the_ack(gateway: Any, tmp_path: Path) -> None:
    """kill -9 when all is accepted by the server and no ACK has come: the restart sends all of it
    again, under the same keys, and nobody sees anything twice."""
    store = tmp_path / "alice.db"
    gateway.swallow_acks = True
    async with program(SENDER, gateway.url, store) as child:
        assert await line(child) == "saved"
        await gateway.until(lambda: len(gateway.texts("team")) == 20)
        child.kill()
        await child.wait()
    gateway.swallow_acks = False
    async with Client(gateway.url, "alice", "phone", store=store) as im:
        assert len(im.outbox()) == 20
        for sent in im.outbox():
            await sent.acked(timeout=60)
        await (await im.send("team", "20")).acked(timeout=60)
    assert gateway.texts("team") == [str(i) for i in range(21)]
    assert sorted(n for _, _, n in gateway.keys) == list(range(1, 22))
    assert all(gateway.seen[key] >= 2 for key in gateway.keys if key[2] <= 20)


async def test_killed_before_the_first_connection(gateway: Any, tmp_path: Path) -> None:
    store = tmp_path / "alice.db"
    async with program(SENDER, "im://127.0.0.1:1", store) as child:
        assert await line(child) == "saved"
        with pytest.raises(WrongDirectory, match=f"in use by process {child.pid}"):
            await Client(gateway.url, "alice", "phone", store=store).__aenter__()
        child.kill()
        await child.wait()
    async with Client(gateway.url, "alice", "phone", store=store):
        await gateway.until(lambda: len(gateway.texts("team")) == 20)
    assert gateway.texts("team") == [str(i) for i in range(20)]


async def test_ctrl_c_closes_an_asyncio_program_in_order(gateway: Any, tmp_path: Path) -> None:
    store = tmp_path / "alice.db"
    async with program(SENDER, gateway.url, store) as child:
        assert await line(child) == "saved"
        child.send_signal(signal.SIGINT)
        code, errors = await ended(child)
        assert code == -signal.SIGINT
        assert "KeyboardInterrupt" in errors
        assert "ResourceWarning" not in errors
    assert not (tmp_path / "alice.db-wal").exists(), "SQLite was closed in order"


READER = """
    import sys
    from im_actors.client.sync import Client

    with Client(sys.argv[1], "alice", "phone", store=sys.argv[2]) as im:
        try:
            for event in im.follow("team"):
                print(event.text, flush=True)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    print("closed", flush=True)
"""


async def test_ctrl_c_interrupts_a_plain_program_that_waits(gateway: Any, tmp_path: Path) -> None:
    gateway.post("team", "a")
    async with program(READER, gateway.url, tmp_path / "alice.db") as child:
        assert await line(child) == "a"
        child.send_signal(signal.SIGINT)
        assert await line(child) == "interrupted"
        assert await line(child) == "closed"
        assert await ended(child) == (0, "")


LEFT_OPEN = """
    import sys
    from im_actors.client.sync import Client

    im = Client(sys.argv[1], "alice", "phone", store=sys.argv[2]).__enter__()
    im.send("team", "x")
    im.follow("team").next(timeout=60)
    print("end", flush=True)
"""


async def test_a_program_that_forgets_to_close_ends_all_the_same(
    gateway: Any, tmp_path: Path
) -> None:
    async with program(LEFT_OPEN, gateway.url, tmp_path / "alice.db") as child:
        assert await line(child) == "end"
        assert await ended(child) == (0, "")
    # The event may have come before its ACK; then the row is still there, and is sent again.
    async with Client(gateway.url, "alice", "phone", store=tmp_path / "alice.db") as im:
        await gateway.until(lambda: im.outbox() == [])
    assert gateway.texts("team") == ["x"]


BARE = """
    import sys

    class Refuse:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {"ray", "redis", "jwt", "rich", "psutil", "uvloop"}:
                raise ImportError(name)

    sys.meta_path.insert(0, Refuse())
    import im_actors.client, im_actors.client.sync
    print("imported")
"""


async def test_the_sdk_imports_with_the_base_install_only() -> None:
    async with program(BARE) as child:
        assert await line(child) == "imported"
        assert await ended(child) == (0, "")
