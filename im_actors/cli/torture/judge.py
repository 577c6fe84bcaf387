"""Reads everything back and asks the checkers.

Three times: every session through every gateway while the cluster runs, ``verify``, which compares
the replicas, and the logs of all members from their files when the cluster is down.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from im_actors.actors.logs import LOGS
from im_actors.cli.torture.cluster import TortureCluster
from im_actors.cli.torture.readers import whole_history
from im_actors.cli.torture.wire_client import WireClient
from im_actors.errors import ImError, NotReachable
from im_actors.proof import Anomaly, History
from im_actors.storage.directory import open_existing

READ_S = 60.0
"""How long the last reading of one gateway may take."""
CONNECT_TRIES = 60
ALARM = " ALARM "
CHUNK_BYTES = 4 * 1024 * 1024
STORY_LINES_MAX = 60

LogRecord = tuple[int, int, bytes, int]
"""(lsn, epoch, payload, checksum)."""


async def read_by_all_gateways(
    cluster: TortureCluster, history: History, heads: dict[str, int], sessions: Sequence[str]
) -> list[str]:
    """The whole history of every session, once by each gateway; what could not be read."""
    names = (await cluster.call("names"))["gateway"]
    problems = await asyncio.gather(
        *(_read_by(cluster, history, heads, sessions, name) for name in names)
    )
    return [problem for problem in problems if problem]


async def _read_by(
    cluster: TortureCluster,
    history: History,
    heads: dict[str, int],
    sessions: Sequence[str],
    gateway: str,
) -> str:
    give_up_s = time.monotonic() + READ_S
    left = list(sessions)
    while True:
        client = None
        try:
            client = await _connect_to(cluster, gateway)
            while left:
                session = left[-1]
                found = await whole_history(client, session)
                if (found[-1][0] if found else 0) < heads.get(session, 0):
                    # A true prefix, and an old one: it is allowed to be, for a moment.
                    raise NotReachable(f"{session!r} is shorter than its ACKs say")
                history.final_read(session, found, f"auditor by {gateway}")
                left.pop()
            return ""
        except ImError as error:
            if time.monotonic() > give_up_s:
                return f"{len(left)} sessions cannot be read by {gateway}: {error}"
            await asyncio.sleep(0.2)
        finally:
            if client is not None:
                client.close()


async def _connect_to(cluster: TortureCluster, gateway: str) -> WireClient:
    """Gateways share a port and the kernel chooses, so it takes some tries."""
    for number in range(CONNECT_TRIES):
        way = cluster.ways[number % len(cluster.ways)]
        client = await WireClient.connect(*way, "auditor", f"a{number}")
        if client.server == gateway:
            return client
        client.close()
    raise NotReachable(f"{gateway} is never met")


def read_logs(data: Path, members: dict[str, list[str]], history: History) -> None:
    """Give the checkers every log of every member, from the files of a cluster that is down."""
    for path in sorted(data.glob("replica-*")):
        slots = [int(slot) for slot, names in members.items() if path.name in names]
        for slot, records in logs_of(path, slots):
            history.final_log(path.name, slot, records)


def logs_of(path: Path, slots: Sequence[int]) -> Iterator[tuple[int, list[LogRecord]]]:
    """The logs of these slots in one replica's directory: history, and the journal beyond it."""
    directory = open_existing(path)
    journal, past = directory.open_existing_journal(), directory.open_existing_history()
    try:
        for slot in slots:
            found: dict[int, LogRecord] = {}
            end = past.applied().get(slot, 0) if past is not None else 0
            while past is not None and len(found) < end:
                part = past.records(slot, len(found) + 1, end, CHUNK_BYTES)
                if not part:
                    break
                found.update((r.lsn, (r.lsn, r.epoch, r.payload, r.checksum)) for r in part)
            if journal is not None:
                for lsn in journal.lsns(slot):
                    for r in journal.read(slot, lsn, lsn, 0):
                        found.setdefault(lsn, (r.lsn, r.epoch, r.payload, r.checksum))
            yield slot, [found[lsn] for lsn in sorted(found)]
    finally:
        if journal is not None:
            journal.close()
        if past is not None:
            past.close()
        directory.close()


def alarms_in(data: Path) -> list[str]:
    """What shards and replicas have sounded an alarm about, from their logs."""
    return [
        f"{path.name}: {line}"
        for path in sorted((data / LOGS).glob("*.log*"))
        for line in path.read_text(errors="replace").splitlines()
        if ALARM in line
    ]


async def story(cluster: TortureCluster, anomaly: Anomaly) -> list[str]:
    """What the cluster remembers of the message concerned; it does not remember for long."""
    if anomaly.session is None:
        return []
    device, n = anomaly.key or (None, None)
    try:
        told: list[str] = await cluster.call("story", anomaly.session, device, n)
    except ImError as error:
        told = [f"no story: {error}"]
    return [str(anomaly), *(f"    {line}" for line in told[-STORY_LINES_MAX:])]


def verdict_words(found: dict[str, Any]) -> str:
    names = ("events", "records", "slots", "divergent", "corrupt", "missing")
    return ", ".join(f"{found[name]:,} {name}" for name in names if name in found)
