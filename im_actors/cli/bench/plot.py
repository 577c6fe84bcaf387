"""Latencies as a picture: for each share of the messages, how long they took at most. SVG, because
it is text and needs no library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape

from im_actors.cli.bench.latencies import Latencies

WIDTH, HEIGHT = 860, 480
LEFT, RIGHT, TOP, BOTTOM = 80, 30, 60, 60
SHARES = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
COLORS = ("#0b6e99", "#d9730d", "#0f7b6c", "#ad1a72", "#6940a5")
POINTS_MAX = 400


def svg(title: str, curves: Mapping[str, Latencies]) -> str:
    """A document with one curve for each name; empty ones are left out."""
    counts = {name: latencies.counts() for name, latencies in curves.items() if len(latencies)}
    scale = Scale([pair for pairs in counts.values() for pair in pairs] or [(1, 1)])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"'
        f' viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        text(WIDTH / 2, 24, title, "middle"),
        *grid(scale),
    ]
    for number, (name, pairs) in enumerate(counts.items()):
        color = COLORS[number % len(COLORS)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in curve(pairs, scale))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(text(LEFT + 12, TOP + 18 + 18 * number, name, "start", color))
    return "\n".join([*parts, "</svg>", ""])


class Scale:
    """Where on the picture a share and a latency are. Both axes are logarithmic: the share's by
    how much is left of it, so that the few slow messages have as much room as the many fast."""

    def __init__(self, counts: list[tuple[int, int]]) -> None:
        values = [max(1, value) for value, _ in counts]
        self.lowest = math.floor(math.log10(min(values)))
        self.highest = max(self.lowest + 1, math.ceil(math.log10(max(values))))

    def x(self, share: float) -> float:
        nines = min(-math.log10(max(1 - share, 1e-9)), len(SHARES) - 2)
        return LEFT + nines / (len(SHARES) - 2) * (WIDTH - LEFT - RIGHT)

    def y(self, micros: int) -> float:
        part = (math.log10(max(1, micros)) - self.lowest) / (self.highest - self.lowest)
        return HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)


def grid(scale: Scale) -> Iterator[str]:
    """Lines, numbers and what they mean."""
    for share in SHARES:
        x = scale.x(share)
        yield line(x, TOP, x, HEIGHT - BOTTOM)
        yield text(x, HEIGHT - BOTTOM + 18, f"{share * 100:g} %", "middle")
    for power in range(scale.lowest, scale.highest + 1):
        y = scale.y(int(10**power))
        yield line(LEFT, y, WIDTH - RIGHT, y)
        yield text(LEFT - 8, y + 4, f"{10**power / 1000:g} ms", "end")
    yield text(WIDTH / 2, HEIGHT - 16, "so many of the messages took no longer", "middle")


def curve(counts: list[tuple[int, int]], scale: Scale) -> Iterator[tuple[float, float]]:
    """The points of one curve, not closer to each other than can be seen."""
    total, passed, last_x = sum(count for _, count in counts), 0, -1.0
    for value, count in counts:
        passed += count
        x = scale.x(passed / total)
        if x - last_x >= (WIDTH - LEFT - RIGHT) / POINTS_MAX or value == counts[-1][0]:
            yield x, scale.y(value)
            last_x = x


def line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#ddd"/>'


def text(x: float, y: float, content: str, anchor: str, color: str = "#222") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">'
        f"{escape(content)}</text>"
    )
