"""Processes that crash and pause, and what lies between them.

Between owners and replicas go single messages that may be lost, repeated and overtaken: more than
a connection does to them, and the machines promise to bear it. Everything else goes over
connections as TCP makes them: in order and whole until they break, and each end hears of the break
at a time of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from im_actors.wire.codec import FrameDecoder
from tests.sim.clock import Clock
from tests.sim.faults import Faults

if TYPE_CHECKING:
    from tests.sim.world import World


LATE_MS = (500.0, 15_000.0)


class Process:
    """Something that runs, may pause, may crash and be started again: each time a new life."""

    has_heartbeats = False
    """It finds out by itself when a connection is dead; others are told within two seconds, as the
    heartbeats of links would do it."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.clock = world.clock
        self.name = name
        self.life = 0
        self.running = False
        self.paused = False
        self.ends: dict[End, None] = {}
        self._mail: list[Callable[[], None]] = []

    def started(self) -> None:
        """A new life begins."""

    def crashed(self) -> None:
        """Everything in memory is gone."""

    def accept(self, end: End) -> None:
        """Somebody connected: set what ``end`` is to call."""
        raise NotImplementedError

    def start(self) -> None:
        if not self.running:
            self.life += 1
            self.running, self.paused, self._mail = True, False, []
            self.started()

    def crash(self) -> None:
        if self.running:
            self.running, self.paused, self._mail = False, False, []
            for end in list(self.ends):
                end.close()
            self.ends.clear()
            self.crashed()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        mail, self._mail = self._mail, []
        life = self.life
        for call in mail:
            if self.life == life and self.running:
                call()

    def take(self, call: Callable[[], None]) -> None:
        """Have the process do something, now or when it goes on; never when it is down."""
        if self.paused:
            self._mail.append(call)
        elif self.running:
            call()

    def alive(self, call: Callable[[], None]) -> Callable[[], None]:
        """``call``, unless this life is over by then."""
        life = self.life

        def run() -> None:
            if self.life == life:
                self.take(call)

        return run

    def later(self, delay_ms: float, call: Callable[[], None]) -> None:
        """A timer of this life."""
        self.clock.later(delay_ms, self.alive(call))

    def soon(self, call: Callable[[], None]) -> None:
        self.clock.later(0.0, self.alive(call))


class End:
    """One end of a connection. ``on_data`` and ``on_lost`` are set by the process that has it."""

    __slots__ = (
        "_arrival_ms",
        "doomed",
        "network",
        "on_data",
        "on_lost",
        "open",
        "peer",
        "process",
    )

    def __init__(self, network: Network, process: Process) -> None:
        self.network = network
        self.process = process
        self.peer: End
        self.open = True
        self.doomed = False
        self.on_data: Callable[[Any], None] = lambda data: None
        self.on_lost: Callable[[], None] = lambda: None
        self._arrival_ms = 0.0
        process.ends[self] = None

    def send(self, data: Any) -> bool:
        """False: the connection is known to be closed."""
        if not self.open:
            return False
        network = self.network
        lost = self.doomed or not network.reachable(self.process.name, self.peer.process.name)
        if lost or network.faults.strikes("cut", network.rng):
            self.doom()
            return True
        at_ms = max(network.clock.now_ms + network.delay_ms(), self._arrival_ms)
        self._arrival_ms = at_ms
        peer = self.peer
        network.clock.at(at_ms, lambda: peer.arrive(data))
        return True

    def arrive(self, data: Any) -> None:
        if self.doomed or not self.open:
            return
        if not self.network.reachable(self.peer.process.name, self.process.name):
            self.doom()
            return
        if self.network.trace is not None:
            self.network.note(self.peer.process, self.process, data)
        self.process.take(lambda: self.on_data(data) if self.open else None)

    def doom(self) -> None:
        """Nothing gets through any more; each end notices after a while."""
        if not self.doomed:
            self.doomed = self.peer.doomed = True
            rng = self.network.rng
            for end in (self, self.peer):
                late = end.process.has_heartbeats and rng.random() < 0.3
                self.network.clock.later(rng.uniform(1, 30_000 if late else 2_000), end.lose)

    def lose(self) -> None:
        if self.open:
            self.open = False
            self.process.ends.pop(self, None)
            self.process.take(self.on_lost)

    def close(self) -> None:
        """This end is closed in order, or its process is gone: the other one hears of it after what
        is on its way, or much later when it is out of reach."""
        if not self.open:
            return
        self.open = False
        self.process.ends.pop(self, None)
        network, peer = self.network, self.peer
        if self.doomed:
            return
        if network.reachable(self.process.name, peer.process.name):
            network.clock.at(max(network.clock.now_ms + 1.0, self._arrival_ms), peer.lose)
        else:
            network.clock.later(network.rng.uniform(500, 3_000), peer.lose)


class Network:
    """Who reaches whom, and how late."""

    def __init__(self, clock: Clock, rng: random.Random, faults: Faults) -> None:
        self.clock = clock
        self.rng = rng
        self.faults = faults
        self.blocked: dict[tuple[str, str], int] = {}
        """(source, target) -> how many partitions are between them."""
        self.trace: list[str] | None = None

    def reachable(self, source: str, target: str) -> bool:
        return (source, target) not in self.blocked

    def both_ways(self, one: str, other: str) -> bool:
        return not self.blocked or (self.reachable(one, other) and self.reachable(other, one))

    def delay_ms(self) -> float:
        if self.faults.strikes("delay", self.rng):
            return self.rng.uniform(5.0, 1_500.0)
        return self.rng.uniform(0.1, 2.0)

    def send(self, source: Process, target: Process, call: Callable[[], None], what: Any) -> None:
        """A message by itself."""
        faults, rng = self.faults, self.rng
        if not self.reachable(source.name, target.name) or faults.strikes("drop", rng):
            return
        deliver = partial(self._deliver, source, target, call, what)
        if not faults.rates:  # Healed, as for the larger part of a run.
            self.clock.later(self.delay_ms(), deliver)
            return
        copies = 2 if faults.strikes("duplicate", rng) else 1
        for _ in range(copies):
            delay = self.delay_ms()
            if faults.strikes("reorder", rng):
                delay += rng.uniform(0.0, 20.0)
            self.clock.later(delay, deliver)
        if faults.strikes("late", rng):
            # A copy from another epoch, or from a slot's former life.
            self.clock.later(rng.uniform(*LATE_MS), deliver)

    def _deliver(
        self, source: Process, target: Process, call: Callable[[], None], what: Any
    ) -> None:
        if self.reachable(source.name, target.name):
            if self.trace is not None:
                self.note(source, target, what)
            target.take(call)

    def connect(self, one: Process, other: Process) -> End | None:
        """A connection from ``one`` to ``other``, None when that is not possible now."""
        if not other.running or other.paused or not self.both_ways(one.name, other.name):
            return None
        near, far = End(self, one), End(self, other)
        near.peer, far.peer = far, near
        other.accept(far)
        return near

    # -- partitions ----------------------------------------------------------------------------

    def block(self, cut: list[tuple[str, str]]) -> None:
        for pair in cut:
            self.blocked[pair] = self.blocked.get(pair, 0) + 1

    def unblock(self, cut: list[tuple[str, str]]) -> None:
        for pair in cut:
            left = self.blocked.get(pair, 0) - 1
            if left > 0:
                self.blocked[pair] = left
            else:
                self.blocked.pop(pair, None)

    def note(self, source: Process, target: Process, what: Any) -> None:
        assert self.trace is not None
        if isinstance(what, bytes):
            frames = FrameDecoder().feed(what)
            what = frames[0] if len(frames) == 1 else frames
        text = repr(what)
        shown = text if len(text) <= 160 else f"{text[:150]}…{len(text)}"
        self.trace.append(f"{self.clock.now_ms:.3f} {source.name} > {target.name} {shown}")
