"""A cable that is long and drops frames: ``python -m tests.cluster.slow_link ONE OTHER ...``.

Kernels without netem cannot delay what they forward. So a process stands in the cable: it makes two
network devices, and each Ethernet frame that comes in at one goes out at the other later, in order,
or never. Both devices are gone with the process. It says "ready" when they are there.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import heapq
import itertools
import os
import random
import select
import struct
import time

TUNSETIFF = 0x400454CA
TAP_WITHOUT_HEADER = 0x0002 | 0x1000
FRAME_BYTES_MAX = 65_536
FRAMES_MAX = 10_000
"""Under way; what comes on top is dropped, as any cable's queue does."""


def device(name: str) -> int:
    """A new network device; what is written here comes in at it, what it sends is read here."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP_WITHOUT_HEADER))
    return descriptor


class Cable:
    """``delay_ms`` each way, and up to ``jitter_ms`` more; of all frames ``loss`` (0 to 1) are
    dropped."""

    def __init__(
        self, ends: tuple[int, int], delay_ms: float, jitter_ms: float, loss: float, seed: int
    ) -> None:
        self._other = dict(zip(ends, reversed(ends), strict=True))
        self._delay_s, self._jitter_s, self._loss = delay_ms / 1000, jitter_ms / 1000, loss
        self._rng = random.Random(seed)
        self._order = itertools.count()
        self._due: list[tuple[float, int, int, bytes]] = []
        self._last = dict.fromkeys(ends, 0.0)

    def run(self) -> None:
        """For ever."""
        while True:
            wait_s = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
            for end in select.select(list(self._other), [], [], wait_s)[0]:
                self._take(end)
            while self._due and self._due[0][0] <= time.monotonic():
                _, _, end, frame = heapq.heappop(self._due)
                _put(end, frame)

    def _take(self, end: int) -> None:
        frame = os.read(end, FRAME_BYTES_MAX)
        if self._rng.random() < self._loss or len(self._due) >= FRAMES_MAX:
            return
        late_s = self._delay_s + self._rng.random() * self._jitter_s
        # None overtakes another: a cable keeps the order.
        self._last[end] = max(self._last[end], time.monotonic() + late_s)
        heapq.heappush(self._due, (self._last[end], next(self._order), self._other[end], frame))


def _put(end: int, frame: bytes) -> None:
    # Dropped where nobody takes it: the device has no room, or is not up.
    with contextlib.suppress(OSError):
        os.write(end, frame)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("ends", nargs=2)
    for name in ("--delay-ms", "--jitter-ms", "--loss"):
        parser.add_argument(name, type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    args = parser.parse_args()
    one, other = map(device, args.ends)
    print("ready", flush=True)
    Cable((one, other), args.delay_ms, args.jitter_ms, args.loss, args.seed).run()


if __name__ == "__main__":
    main()
