"""The stories of all machines of a run, of former lives too, merged by time."""

from __future__ import annotations

from collections.abc import Callable, Hashable

LINES_MAX = 120


class Stories:
    """Who can tell something."""

    def __init__(self) -> None:
        self._tellers: list[tuple[str, Callable[..., list[str]]]] = []

    def add(self, name: str, story: Callable[..., list[str]]) -> None:
        self._tellers.append((name, story))

    def about(self, *topics: tuple[Hashable, ...]) -> list[str]:
        """The last notes about any of the topics: a slot, or a session and a number."""
        found: list[tuple[int, int, str]] = []
        for order, (name, story) in enumerate(self._tellers):
            lines = dict.fromkeys(line for topic in topics for line in story(*topic))
            for line in lines:
                time_ms, _, rest = line.partition(" ")
                found.append((int(time_ms), order, f"{time_ms[-6:]} {name:14} {rest}"))
        found.sort(key=lambda entry: entry[:2])
        return [line for _, _, line in found[-LINES_MAX:]]
