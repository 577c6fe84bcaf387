"""The months of a cluster that is down, in its replicas' data directories."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from im_actors.errors import BadRequest, ImError
from im_actors.server.months import place_for, read_past_month
from im_actors.storage.directory import DataDirectory, open_existing
from im_actors.storage.history import History
from im_actors.storage.month_list import list_months


def list_directories(data: Path) -> dict[str, Any]:
    """The months of every replica below ``data``, as a running cluster tells them."""

    def told(_: DataDirectory, history: History) -> list[dict[str, Any]]:
        return [info.to_dict() for info in list_months(history) if info is not None]

    return _on_each(data, "", told)


def move_directories(data: Path, month: str, target: str, only: str) -> dict[str, str | None]:
    """Move a month of every replica, or of one; None for each that is done, else its error."""
    number = read_past_month(month)

    def move(directory: DataDirectory, history: History) -> None:
        for _ in history.move(number, place_for(directory, history, target)):
            pass

    found = _on_each(data, only, move)
    return {name: said["error"] if said else None for name, said in found.items()}


def _on_each(
    data: Path, only: str, work: Callable[[DataDirectory, History], Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(path for path in data.glob("replica-*") if path.is_dir()):
        if only in ("", path.name):
            try:
                found[path.name] = _with_history(path, work)
            except ImError as error:
                found[path.name] = {"name": path.name, "error": str(error)}
    if only and not found:
        raise BadRequest(f"there is no {only} below {data}")
    return found


def _with_history(path: Path, work: Callable[[DataDirectory, History], Any]) -> Any:
    directory = open_existing(path)
    try:
        history = directory.open_existing_history()
        if history is None:
            return []
        found = work(directory, history)
        history.close()
        return found
    finally:
        directory.close()
