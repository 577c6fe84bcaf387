"""``python -m bench.mailbox``: conversation lists and unread counts, asked by clients over TCP.

It starts a cluster as ``im-actors up`` does, fills mailboxes by sending real messages between two
users each, waits until both mailboxes have heard of all of them, and asks:

- ``list``: the first 25 conversations, by 32 clients of users with 200 conversations each.
- ``big``: the first page of a user with 200,000 conversations, in turns with one of 200.
- ``unread``: the total, by 32 clients.

Every answer is checked: a list that is too short or an unread count that is not what was sent ends
the run. The clients run in this process; its CPU is told beside the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from bench.machine import describe, fsync_us
from bench.running import Cluster, run, say, until_quiet
from im_actors.cli.bench.latencies import Latencies
from im_actors.core.model import DEVICE_WINDOW, EventKind
from im_actors.core.names import direct_session
from im_actors.errors import ImError, error_for
from im_actors.wire import answers, messages, queries
from im_actors.wire.codec import FrameDecoder, Message, encode_frame

PAGE_ROWS = 25
READ_BYTES = 262_144
BIG_USER = "big"
MESSAGE = int(EventKind.MESSAGE)


class Caller:
    """One connection that sends messages and asks questions, one thing after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = FrameDecoder()
        self._came: list[Message] = []
        self._request = 0

    @classmethod
    async def connect(cls, address: tuple[str, int], user: str) -> Caller:
        caller = cls(*await asyncio.open_connection(*address))
        caller._write(messages.hello(user, "bench-00000000", None, "bench"))
        answers.read_welcome(await caller._next())
        return caller

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def send_all(self, rows: Sequence[tuple[str, int, int, bytes]]) -> None:
        """Send these, each until it is ACKed, a window at a time."""
        for start in range(0, len(rows), DEVICE_WINDOW):
            await self._send_window({(row[0], row[1]): row for row in rows[start:][:DEVICE_WINDOW]})

    async def ask(self, what: str, args: Sequence[Any]) -> Any:
        """The value of an answer; an ImError when it is refused."""
        self._request += 1
        self._write(queries.query(self._request, what, args))
        while True:
            message = await self._next()
            if message[0] == messages.ANSWER and message[1] == self._request:
                answer = queries.read_answer(message)
                if answer.code:
                    raise error_for(answer.code, answer.detail)
                return answer.value

    async def _send_window(self, waiting: dict[tuple[str, int], tuple[Any, ...]]) -> None:
        self._write(messages.send(list(waiting.values())))
        while waiting:
            message = await self._next()
            if message[0] == messages.ACK:
                for ack in answers.read_acks(message):
                    waiting.pop((ack.session, ack.n), None)
            elif message[0] == messages.NACK:
                refused = answers.read_nacks(message)
                await asyncio.sleep(max(row.retry_after_ms for row in refused) / 1_000)
                again = [waiting[row.session, row.n] for row in refused]
                self._write(messages.send(again))

    def _write(self, message: Sequence[Any]) -> None:
        self._writer.write(encode_frame(message))

    async def _next(self) -> Message:
        while not self._came:
            data = await self._reader.read(READ_BYTES)
            if not data:
                raise RuntimeError("the gateway has closed the connection")
            self._came += self._decoder.feed(data)
        message = self._came.pop(0)
        if message[0] == messages.ERROR:
            raise answers.read_error(message)
        return message


async def fill(cluster: Cluster, args: argparse.Namespace) -> None:
    """One message in each conversation: to every user from as many peers, and from the big user to
    as many others."""
    users = [f"user-{number}" for number in range(args.clients)]

    async def peer(number: int) -> None:
        name = f"peer-{number}"
        caller = await Caller.connect(cluster.address, name)
        await caller.send_all(
            [(direct_session(name, user), 1, MESSAGE, b"hello") for user in users]
        )
        await caller.close()

    for start in range(0, args.conversations, 50):
        await asyncio.gather(*map(peer, range(start, min(start + 50, args.conversations))))
    say(f"{args.clients} users with {args.conversations} conversations")
    caller = await Caller.connect(cluster.address, BIG_USER)
    rows = [(direct_session(BIG_USER, f"other-{i}"), 1, MESSAGE, b"hi") for i in range(args.big)]
    await caller.send_all(rows)
    await caller.close()
    say(f"one user with {args.big} conversations")


async def until_told(cluster: Cluster, args: argparse.Namespace) -> None:
    """Return when every mailbox has heard of every message."""

    async def lacking() -> str:
        for user in [f"user-{number}" for number in range(args.clients)]:
            caller = await Caller.connect(cluster.address, user)
            try:
                _, total = await caller.ask("unread", [])
            except ImError as error:
                return str(error)
            finally:
                await caller.close()
            if total != args.conversations:
                return f"{user} has {total} unread messages of {args.conversations}"
        return await _lacking_big(cluster, args)

    await until_quiet(lacking, args.patience)


async def _lacking_big(cluster: Cluster, args: argparse.Namespace) -> str:
    caller = await Caller.connect(cluster.address, BIG_USER)
    try:
        for number in (0, args.big // 2, args.big - 1):
            await caller.ask("conversation", [direct_session(BIG_USER, f"other-{number}")])
    except ImError as error:
        return str(error)
    finally:
        await caller.close()
    return ""


def in_ms(seconds: list[float]) -> dict[str, float]:
    """Percentiles in ms."""
    micros = Counter(round(1e6 * took) for took in seconds)
    summary = Latencies(micros.items()).summary()
    assert summary is not None
    return summary


async def load(
    cluster: Cluster, args: argparse.Namespace, call: Callable[[Caller], Awaitable[None]]
) -> dict[str, Any]:
    """All clients call, each again as soon as it is answered."""
    callers = [
        await Caller.connect(cluster.address, f"user-{number}") for number in range(args.clients)
    ]
    for caller in callers:
        await call(caller)
    took: list[float] = []
    cpu, began = time.process_time(), time.monotonic()
    until = began + args.seconds

    async def keep_on(caller: Caller) -> None:
        while (at := time.monotonic()) < until:
            await call(caller)
            took.append(time.monotonic() - at)

    await asyncio.gather(*map(keep_on, callers))
    elapsed = time.monotonic() - began
    for caller in callers:
        await caller.close()
    return {
        "per_s": round(len(took) / elapsed),
        "ms": in_ms(took),
        "client_cores": round((time.process_time() - cpu) / elapsed, 2),
    }


async def list_page(caller: Caller) -> None:
    _, rows, _, _ = await caller.ask("conversations", [None, PAGE_ROWS, False, ""])
    if len(rows) != PAGE_ROWS:
        raise RuntimeError(f"a list has {len(rows)} rows of {PAGE_ROWS}")


async def big_and_small(cluster: Cluster, args: argparse.Namespace) -> dict[str, float]:
    """p50 of a first page in ms, of the big user and of one like the others, in turns."""
    callers = {
        "big": await Caller.connect(cluster.address, BIG_USER),
        "small": await Caller.connect(cluster.address, "user-0"),
    }
    took: dict[str, list[float]] = {name: [] for name in callers}
    until = time.monotonic() + args.seconds
    while time.monotonic() < until:
        for name, caller in callers.items():
            at = time.monotonic()
            await list_page(caller)
            took[name].append(time.monotonic() - at)
    for caller in callers.values():
        await caller.close()
    return {name: in_ms(seconds)["p50"] for name, seconds in took.items()}


async def measure(cluster: Cluster, args: argparse.Namespace) -> dict[str, Any]:
    await cluster.settled()
    await fill(cluster, args)
    await until_told(cluster, args)

    async def unread(caller: Caller) -> None:
        _, total = await caller.ask("unread", [])
        if total != args.conversations:
            raise RuntimeError(f"{total} unread messages of {args.conversations}")

    lists = await load(cluster, args, list_page)
    say(f"lists {lists}")
    totals = await load(cluster, args, unread)
    say(f"unread {totals}")
    pages = await big_and_small(cluster, args)
    return {
        "list_per_s": lists["per_s"],
        "list_p99_ms": lists["ms"]["p99"],
        "unread_per_s": totals["per_s"],
        "big_over_small_p50": round(pages["big"] / pages["small"], 2),
        "list": lists,
        "unread": totals,
        "first_page_p50_ms": pages,
    }


def bench(args: argparse.Namespace) -> dict[str, Any]:
    settings = {
        name: getattr(args, name) for name in ("clients", "conversations", "big", "seconds")
    }
    with Cluster(args.directory) as cluster:
        fsync = fsync_us(cluster.data)
        found = asyncio.run(measure(cluster, args))
    return {**found, "settings": settings, "fsync_us": fsync, "machine": describe()}


def shown(report: dict[str, Any]) -> str:
    pages = report["first_page_p50_ms"]
    return "\n".join(
        [
            f"conversation lists  {report['list_per_s']:,}/s, p99 {report['list_p99_ms']} ms",
            f"total unread        {report['unread_per_s']:,}/s",
            f"first page          {pages['big']} ms of the big account, {pages['small']} ms of a"
            f" small one (p50): {report['big_over_small_p50']} ×",
            f"{report['machine']}, fsync {report['fsync_us']} µs",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.mailbox", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--clients", type=int, default=32, metavar="N")
    parser.add_argument("--conversations", type=int, default=200, metavar="N", help="of each")
    parser.add_argument("--big", type=int, default=200_000, metavar="N", help="of the big account")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--patience", type=float, default=300.0, help="seconds for the mailboxes")
    parser.add_argument("--directory", type=Path, help="where the cluster's data goes")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return run(parser.parse_args(argv), bench, shown)


if __name__ == "__main__":
    sys.exit(main())
