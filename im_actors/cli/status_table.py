"""``im-actors status`` for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from im_actors.cli.output import printable

UNHEALTHY_SHOWN = 10
WIDTH_IN_FILES = 160


def show_status(status: dict[str, Any]) -> None:
    """Print the status of a cluster as tables."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() else WIDTH_IN_FILES
    console = Console(highlight=False, width=wide)
    for part in status_parts(status):
        console.print(part)


def status_parts(status: dict[str, Any], paths: bool = True) -> Iterator[Any]:
    """What rich prints of it: lines and tables; without ``paths`` narrow ones."""
    slots = status["slots"]
    healthy = "[green]healthy[/]" if status["healthy"] else "[bold red]not healthy[/]"
    rate = status.get("rates", {}).get("acked_per_s")
    yield f"{healthy}: {slots['active']} of {slots['total']} slots active" + (
        f", {rate:,.0f} msg/s" if rate is not None else ""
    )
    for name, why in status.get("missing", {}).items():
        yield f"[red]missing[/] {_plain(name)}: {_plain(why)}"
    if status.get("view_store", "ok") != "ok":
        yield f"[red]view store[/]: {_plain(status['view_store'])}"
    if status.get("degraded_placement"):
        count = len(status["degraded_placement"])
        yield f"[yellow]{count} slots have two of their copies on one host[/]"
    for name, replica in sorted(status["replicas"].items()):
        for path in replica.get("months_away", ()):
            yield f"[red]away[/] {_plain(name)}: {_plain(path)} is not there: mount it"
    yield from map(_plain, growth_lines(status.get("growth", {})))
    yield from map(_plain, restart_lines(status.get("upgrade", {})))
    if slots["unhealthy"]:
        yield _unhealthy(slots["unhealthy"])
        hidden = len(slots["unhealthy"]) - UNHEALTHY_SHOWN
        if hidden > 0:
            yield f"… and {hidden} more slots; --json shows all"
    starts = status.get("starts", {})
    yield _shards(status["shards"], starts)
    yield _replicas(status["replicas"], starts, paths)
    yield _gateways(status["gateways"], starts)


def growth_lines(growth: dict[str, Any]) -> Iterator[str]:
    """What a cluster that is being scaled or drained has still to do."""
    if growth.get("hosts_out"):
        yield f"out of use: {', '.join(growth['hosts_out'])}"
    if not growth.get("busy"):
        return
    counts = [
        f"{growth[name]} {what}"
        for name, what in (
            ("slots_to_move", "slots to move to other shards"),
            ("members_to_move", "members to move to other replicas"),
        )
        if growth[name]
    ]
    if growth["leaving"]:
        counts.append(f"{', '.join(growth['leaving'])} to leave")
    counts += [f"{name}: {why}" for name, why in growth["starting"].items()]
    now = f" (now: {growth['waits']})" if growth["waits"] else ""
    yield f"changing: {'; '.join(counts) or 'almost done'}{now}"


def restart_lines(upgrade: dict[str, Any]) -> Iterator[str]:
    """Who is still to start anew, in an upgrade."""
    if not upgrade.get("busy"):
        return
    left = [f"{', '.join(upgrade['restarting'])} to start anew"] if upgrade["restarting"] else []
    if upgrade["disks"] > upgrade["records"]:
        left.append(f"format {upgrade['disks']} is being taken over")
    if left:
        now = f" (now: {upgrade['waits']})" if upgrade["waits"] else ""
        yield f"upgrade: {'; '.join(left)}{now}"


def _plain(value: object) -> str:
    from rich.markup import escape

    return escape(printable(str(value)))


def _table(title: str, *columns: str) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        # Names and numbers stay whole; a path may be broken.
        whole = column not in ("directory", "why", "members")
        number = whole and index > 0
        table.add_column(
            column, justify="right" if number else "left", overflow="fold", no_wrap=whole
        )
    return table


def _unhealthy(slots: list[dict[str, Any]]) -> Any:
    table = _table("slots that are not active", "slot", "state", "epoch", "members", "why")
    for slot in slots[:UNHEALTHY_SHOWN]:
        members = ", ".join(slot.get("members", []))
        cells = (slot["slot"], slot["state"], slot.get("epoch", ""), members, slot.get("why", ""))
        table.add_row(*map(_plain, cells))
    return table


def _rows(table: Any, actors: dict[str, Any], starts: dict[str, int], fields: Iterable[str]) -> Any:
    for name, actor in sorted(actors.items()):
        if "error" in actor:
            table.add_row(_plain(name), f"[red]{_plain(actor['error'])}[/]")
            continue
        cells = [_plain(_cell(actor.get(field), field)) for field in fields]
        table.add_row(_plain(name), *cells, str(max(0, starts.get(name, 1) - 1)))
    return table


def _cell(value: object, field: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | dict):
        return str(len(value))
    if field.endswith("_bytes") and isinstance(value, int):
        return _size(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _shards(shards: dict[str, Any], starts: dict[str, int]) -> Any:
    columns = ("host", "serving", "working", "sessions", "acked")
    return _rows(_table("shards", "name", *columns, "restarts"), shards, starts, columns)


def _replicas(replicas: dict[str, Any], starts: dict[str, int], paths: bool) -> Any:
    columns = ["host", "slots", "filling", "lag", "records", "free"]
    fields = ["host", "slots", "incomplete_slots", "apply_lag_records", "records", "free_bytes"]
    if paths:
        columns.append("directory")
        fields.append("directory")
    return _rows(_table("replicas", "name", *columns, "restarts"), replicas, starts, fields)


def _gateways(gateways: dict[str, Any], starts: dict[str, int]) -> Any:
    columns = ("address", "connections", "users", "followed", "acked", "restarts")
    fields = ("address", "connections", "users", "sessions_followed", "acked")
    return _rows(_table("gateways", "name", *columns), gateways, starts, fields)
