"""Load from the generators of ``im-actors bench``, in a process of their own."""

from __future__ import annotations

import secrets
from dataclasses import replace

from bench.running import say
from im_actors.cli.bench.plan import Load
from im_actors.cli.bench.processes import Generators

PHASE_S = 5.0
PHASE_S_FIRST = 1.0
PHASE_S_MIN = 0.2
EMPTY_MAX = 10
"""Phases in a row without an ACK after which it is given up; a short one may well have none."""
WINDOW = 64


def load_to(address: tuple[str, int], **settings: object) -> Load:
    """New sessions and devices at this gateway; nobody follows unless it is asked for."""
    load = Load(run=secrets.token_hex(4), addresses=[address], followers=0)
    return replace(load, **settings).validate()  # type: ignore[arg-type]


async def fill(address: tuple[str, int], messages: int, **settings: object) -> int:
    """Send about so many messages as fast as it goes; how many were acknowledged."""
    async with Generators([load_to(address, **settings)], None) as generators:
        return await fill_by(generators, messages)


async def fill_by(generators: Generators, messages: int) -> int:
    acked = empty = 0
    seconds = PHASE_S_FIRST
    while acked < messages:
        figures = await generators.phase(seconds, 0.0, window=WINDOW)
        empty = 0 if figures.acked else empty + 1
        if empty == EMPTY_MAX:
            raise RuntimeError("nothing is acknowledged any more")
        acked += figures.acked
        left_s = (messages - acked) / max(1.0, figures.msgs_per_s)
        seconds = min(PHASE_S, max(PHASE_S_MIN, left_s))
        say(f"{acked:,} messages, {figures.msgs_per_s:,.0f} a second")
    return acked
