"""The views in memory: those asked for last, within a bound on their rows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from im_actors.mailbox.metrics import MailboxMetrics
from im_actors.mailbox.view import MailboxView


class Views:
    """By user. When there are too many rows, those of the users who were not asked for longest go:
    of a large view first all but its top, and then the view. ``kept`` are trimmed at most."""

    def __init__(
        self, rows_max: int, rows_kept: int, kept: frozenset[str], metrics: MailboxMetrics
    ) -> None:
        self.on_drop: Callable[[str], None] = lambda user: None
        self.rows = 0
        self._rows_max = rows_max
        self._rows_kept = rows_kept
        self._kept = kept
        self._metrics = metrics
        self._views: OrderedDict[str, MailboxView] = OrderedDict()
        self._sizes: dict[str, int] = {}
        """Rows of each view when it was last looked at."""

    def __len__(self) -> int:
        return len(self._views)

    def get(self, user: str) -> MailboxView | None:
        return self._views.get(user)

    def touch(self, user: str) -> MailboxView | None:
        """The same, for an asker."""
        view = self._views.get(user)
        if view is not None:
            self._views.move_to_end(user)
        return view

    def put(self, user: str, view: MailboxView) -> None:
        """Keep it, in place of the one before."""
        self._views[user] = view
        self._views.move_to_end(user)
        self.settle(user)

    def settle(self, user: str) -> None:
        """The user's view may have grown: see that all of them together are within the bound."""
        view = self._views.get(user)
        if view is None:
            return
        size = len(view) + 1
        self.rows += size - self._sizes.get(user, 0)
        self._sizes[user] = size
        if self.rows > self._rows_max:
            self._make_room(user)

    def drop(self, user: str) -> None:
        if self._views.pop(user, None) is not None:
            self.rows -= self._sizes.pop(user)
            self.on_drop(user)

    def encode_anew(self) -> None:
        """What the rows look like has changed, though nothing of them has."""
        for view in self._views.values():
            view.encode_anew()

    def _make_room(self, asker: str) -> None:
        for user in list(self._views):
            if self.rows <= self._rows_max:
                return
            view = self._views[user]
            if len(view) > self._rows_kept:
                view.trim(self._rows_kept)
                self._metrics.trimmed += 1
                self.rows += len(view) + 1 - self._sizes[user]
                self._sizes[user] = len(view) + 1
            if self.rows > self._rows_max and user not in self._kept and user != asker:
                self.drop(user)
                self._metrics.evicted += 1
