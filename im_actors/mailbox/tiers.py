"""What a tier is: somebody who has a copy of mailboxes, whole or in part, new or old.

Hot is Redis (the views in memory are above it), warm is a local SQLite file, cold are the replicas,
which have everything. A tier may lose what it has, or be old: it says at which version its answers
were so, and never more than that. Errors are of im_actors.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

from im_actors.core.facts import Fact
from im_actors.mailbox.rows import Change, Copy, Listing, Place

PAGE_ROWS_MAX = 1_000
"""Most rows of one answer of a tier, whole listings excepted."""


class Outcome(IntEnum):
    """What became of an update: compare-and-swap by version."""

    TAKEN = 0
    LATE = 1
    """The tier has that version or a newer one; nothing was changed."""
    GAP = 2
    """The tier lacks changes before these, or has nothing of this user: only a whole copy helps."""


class Put(NamedTuple):
    outcome: Outcome
    version: int
    """The version that the tier has now; -1: none."""


class Tier(Protocol):
    """None as an answer: it does not have that. ``at_least`` is the version that the asker needs;
    an older answer may be given, and will not be used."""

    name: str

    async def first_page(self, user: str, limit: int, at_least: int) -> Copy | None:
        """The first rows that are not live, and the whole listings that cost little."""

    async def page(self, user: str, after: Place, limit: int, at_least: int) -> Copy | None:
        """Rows that are not live, behind a place."""

    async def whole(self, user: str, listing: Listing, at_least: int) -> Copy | None:
        """UNREAD or LIVE, all of it."""

    async def rows(self, user: str, sessions: Sequence[str], at_least: int) -> Copy | None:
        """These rows, listed or not. What is not in the answer does not exist."""

    async def put(self, user: str, update: Change | Copy) -> Put:
        """Take a change, or replace everything by a copy; all of it or nothing. A copy is taken
        unless the tier has a newer version."""

    async def drop(self, user: str) -> None:
        """Forget a user."""

    async def close(self) -> None:
        """Let go of everything, when what is under way has ended."""


class Changed(NamedTuple):
    upto: int
    facts: Sequence[Fact]
    """Of each key that changed up to ``upto`` its state at ``upto`` or later."""


class Changes(Protocol):
    """The mailboxes' own events, where a view that has missed something goes on reading."""

    async def since(self, user: str, after: int, upto: int) -> Changed:
        """What changed after ``after``, perhaps not all up to ``upto``."""
