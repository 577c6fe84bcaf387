"""The scale benchmark as a picture: what a message costs in each part, by the number of shards, and
how fast it went."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from im_actors.cli.bench.plot import COLORS, line, text

WIDTH, LEFT, TOP, HEIGHT, BOTTOM, BAR, GAP = 640, 70, 70, 320, 50, 70, 60
STEPS = 5


def svg(report: dict[str, Any]) -> str:
    """A bar for each number of shards at full speed, of its parts' CPU for a message."""
    points = [point for point in report["points"] if point["rate"] is None]
    kinds = sorted({kind for p in points for kind in p["cpu_us_per_msg"]} - {"total"})
    most = max((p["cpu_us_per_msg"]["total"] for p in points), default=1.0) or 1.0
    height = TOP + HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        text(LEFT, 24, "CPU of each part for a message, in microseconds, at full speed", "start"),
    ]
    for number, kind in enumerate(kinds):
        parts.append(text(LEFT + 95 * number, 46, kind, "start", COLORS[number % len(COLORS)]))
    for step in range(STEPS + 1):
        y = TOP + HEIGHT * (1 - step / STEPS)
        parts += [
            line(LEFT, y, WIDTH - 20, y),
            text(LEFT - 8, y + 4, f"{most * step / STEPS:.0f}", "end"),
        ]
    for number, point in enumerate(points):
        parts += _bar(point, kinds, LEFT + GAP / 2 + number * (BAR + GAP), most)
    return "\n".join([*parts, "</svg>", ""])


def _bar(point: dict[str, Any], kinds: list[str], x: float, most: float) -> Iterator[str]:
    y = float(TOP + HEIGHT)
    for number, kind in enumerate(kinds):
        size = HEIGHT * point["cpu_us_per_msg"].get(kind, 0.0) / most
        y -= size
        yield (
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{BAR}" height="{size:.1f}"'
            f' fill="{COLORS[number % len(COLORS)]}"/>'
        )
    middle = x + BAR / 2
    yield text(middle, y - 6, f"{point['msgs_per_s']:,} msg/s", "middle")
    shards = f"{point['shards']} shard{'s' * (point['shards'] > 1)}"
    yield text(middle, TOP + HEIGHT + 20, shards, "middle")
