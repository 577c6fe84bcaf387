"""What lists should have said: computed from the events of the mailboxes, when all is over.

An answer names its version, which is the seq of the mailbox's last event that it knows of. So the
list of that moment can be told from the events up to it, by nothing but sorting their rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from operator import itemgetter
from typing import NamedTuple

from bench.mailbox.asking import PAGE_ROWS, Page
from im_actors.core.conversation import Conversation, conversation_of
from im_actors.core.facts import event_facts
from im_actors.core.model import Event

_COMPARED = itemgetter(0, 1, 2, 3, 7, 8, 10)
"""Of a row as clients get it: session, seq, rank, last seq, text, unread, read seq."""


class Asked(NamedTuple):
    """One question of a user and what came."""

    user: str
    heard: int
    """The newest event of his mailbox that he had heard of when he asked."""
    took_s: float
    """From when he meant to ask."""
    page: Page | None
    error: str = ""


@dataclass(slots=True)
class Verdict:
    answers: int = 0
    right: int = 0
    wrong: int = 0
    """Rows or sums that were not so at the version that the answer names."""
    empty: int = 0
    stale: int = 0
    """Of a version before one that the user had heard of."""
    refused: int = 0
    first: str = ""
    """What was wrong with the first of those that were."""

    @property
    def share(self) -> float:
        """Percent of right ones."""
        return round(100 * self.right / self.answers, 3) if self.answers else 0.0

    def add(self, kind: str, why: str = "") -> None:
        self.answers += 1
        setattr(self, kind, getattr(self, kind) + 1)
        self.first = self.first or why


def judge(asked: Iterable[Asked], timelines: Mapping[str, Sequence[Event]]) -> Verdict:
    """Compare all answers with the timelines of the users' mailboxes."""
    verdict = Verdict()
    by_user: dict[str, list[Asked]] = {user: [] for user in timelines}
    for one in asked:
        by_user[one.user].append(one)
    for user, ones in by_user.items():
        _judge(verdict, ones, timelines[user])
    return verdict


def _judge(verdict: Verdict, asked: list[Asked], timeline: Sequence[Event]) -> None:
    history = _History(timeline)
    before = 0
    for one in asked:
        page = one.page
        if page is None:
            verdict.add("refused", f"{one.user}: {one.error}")
        elif not page.rows:
            verdict.add("empty", f"{one.user}: an empty list at {page.version}")
        elif page.version < max(before, one.heard):
            text = f"{one.user}: {page.version}, and had heard of {max(before, one.heard)}"
            verdict.add("stale", text)
        else:
            problem = history.problem(page, before)
            verdict.add("wrong" if problem else "right", f"{one.user}: {problem}" * bool(problem))
            before = page.version


class _History:
    """What one list was at each version, asked for in ascending order."""

    def __init__(self, timeline: Sequence[Event]) -> None:
        self._timeline = timeline
        self._at = 0
        self._rows: dict[str, tuple[object, ...]] = {}
        self._unread: dict[int, int] = {}
        """By version; of those below the last one that was asked for it is forgotten."""

    def problem(self, page: Page, before: int) -> str:
        """What is wrong with an answer; ``before`` is the version of the answer before it."""
        if page.version > len(self._timeline):
            return f"version {page.version} of {len(self._timeline)}"
        self._go_to(page.version)
        listed = [row for row in self._rows.values() if row[2]]
        expected = nlargest(PAGE_ROWS, listed, key=itemgetter(2))
        shown = [_COMPARED(row) for row in page.rows]
        if shown != expected:
            at = next(
                (n for n, (a, b) in enumerate(zip(shown, expected, strict=False)) if a != b), -1
            )
            return f"version {page.version}, row {at}: {shown[at]} and not {expected[at]}"
        # The sum is taken a moment before the rows, and may be that of a version in between.
        sums = {self._unread[version] for version in self._unread if version >= before}
        return "" if page.unread in sums else f"{page.unread} unread, expected {sorted(sums)}"

    def _go_to(self, version: int) -> None:
        for event in self._timeline[self._at : version]:
            for fact in event_facts(event):
                session = conversation_of(fact.key)
                if session is not None and fact.value is not None:
                    row = Conversation.from_bytes(fact.value)
                    text = row.preview.text if row.preview is not None else ""
                    numbers = (fact.seq, fact.rank, row.last_seq, text, row.unread().number)
                    self._rows[session] = (session, *numbers, row.read_seq)
            self._unread[event.seq] = sum(int(str(row[5])) for row in self._rows.values() if row[2])
        self._at = max(self._at, version)
