"""A bounded trace of what a machine did: the life of one message, on demand.

After ``story()`` of dask.distributed's worker state machine: every machine keeps the last things
that it decided, and an invariant error or a support call asks for those about one key.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable

STORY_NOTES_MAX = 4096


class Story:
    """The last ``limit`` notes. A note costs one tuple; its text is formatted only when read."""

    __slots__ = ("_notes",)

    def __init__(self, limit: int = STORY_NOTES_MAX) -> None:
        assert limit > 0
        self._notes: deque[tuple[int, tuple[Hashable, ...], str, tuple[object, ...]]] = deque(
            maxlen=limit
        )

    def note(self, now_ms: int, keys: tuple[Hashable, ...], text: str, *args: object) -> None:
        """Remember ``text % args`` about ``keys``, for example ``(session, n)``."""
        self._notes.append((now_ms, keys, text, args))

    def story(self, *keys: Hashable) -> list[str]:
        """The notes about ``keys``, oldest first; all notes when no key is given.

        ``story("team", 5)`` has the notes about message 5 of "team" and those about "team" as a
        whole; ``story("team")`` has the notes about any message of "team".
        """
        wanted = frozenset(keys)
        return [
            _line(now_ms, about, text, args)
            for now_ms, about, text, args in self._notes
            if wanted.issubset(about) or wanted.issuperset(about)
        ]

    def __len__(self) -> int:
        return len(self._notes)


def _line(now_ms: int, about: Iterable[Hashable], text: str, args: tuple[object, ...]) -> str:
    names = " ".join(str(key) for key in about)
    return f"{now_ms} [{names}] {text % args if args else text}"
