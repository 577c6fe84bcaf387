"""The simulated view store: slow, sometimes with its answer lost, once rolled back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from im_actors.core.model import View
from tests.sim.faults import duration_ms

if TYPE_CHECKING:
    from tests.sim.world import World

Answer = Callable[[View | None], None]


class ViewStore:
    """Compare-and-swap on whole records. It answers None when the outcome is not known."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng_for("store")
        self.views: dict[int, View] = {}
        self.past: dict[int, list[View]] = {}
        """The views that each slot had before."""
        self.life = 0
        """What is on its way to the store when it is rolled back never reaches it: an old copy is
        restored by starting the store again, and every connection ends."""

    def roll_back(self, older: View) -> None:
        """Be again what it was before some changes of a slot."""
        self.life += 1
        self.views[older.slot] = older

    def read(self, slot: int, answer: Answer) -> None:
        self._delayed(lambda: self._reply(answer, self.views.get(slot)))

    def swap(self, old: View, new: View, answer: Answer) -> None:
        life = self.life

        def compare_and_swap() -> None:
            if self.life != life:
                answer(None)
                return
            if self.views[old.slot] == old:
                self.past.setdefault(old.slot, []).append(old)
                self.views[old.slot] = new
                before, after = (old.epoch, old.owner), (new.epoch, new.owner)
                self.world.history.view_changed(old.slot, before, after)
            self._reply(answer, self.views[old.slot])

        self._delayed(compare_and_swap)

    def read_all(self, answer: Callable[[dict[int, View]], None]) -> None:
        self._delayed(lambda: self.world.clock.later(0.5, lambda: answer(dict(self.views))))

    def _delayed(self, call: Callable[[], None]) -> None:
        delay = self.rng.uniform(0.2, 3)
        if self.world.faults.strikes("store_slow", self.rng):
            delay = duration_ms(self.rng, 3_000)
        self.world.clock.later(delay, call)

    def _reply(self, answer: Answer, view: View | None) -> None:
        faults, rng = self.world.faults, self.rng
        if faults.strikes("store_reply_lost", rng):
            self.world.clock.later(rng.uniform(10, 500), lambda: answer(None))
            return
        delay = rng.uniform(0.1, 1)
        if faults.strikes("store_slow", rng):
            delay = duration_ms(rng, 8_000)
        self.world.clock.later(delay, lambda: answer(view))
