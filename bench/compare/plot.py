"""The comparison as a picture: a group of bars per load, on a logarithmic scale."""

from __future__ import annotations

import math
from typing import Any
from xml.sax.saxutils import escape

from bench.compare.figures import TITLES

COLOURS = {
    "im_actors": "#1f6feb",
    "redis": "#d1495b",
    "nats_default": "#7aa95c",
    "nats_sync": "#3f6b3a",
}
GROUP, BAR, LEFT, TOP, HEIGHT, BOTTOM = 190, 38, 70, 60, 300, 40
LEGEND = 165


def svg(report: dict[str, Any]) -> str:
    """Messages per second, median with a line from the least to the most."""
    loads = report["loads"]
    values = [s["spread"]["msgs_per_s"] for load in loads for s in load["systems"].values()]
    low = 10 ** math.floor(math.log10(max(1.0, min(least for least, _ in values))))
    high = 10 ** math.ceil(math.log10(max(10.0 * low, *(most for _, most in values))))

    def y(value: float) -> float:
        share = math.log10(max(value, low) / low) / math.log10(high / low)
        return TOP + HEIGHT * (1 - share)

    width = LEFT + max(GROUP * len(loads) + 20, LEGEND * len(TITLES))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{TOP + HEIGHT + BOTTOM}"'
        ' font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        *_scale(low, high, width, y),
        *_legend(report),
    ]
    for number, load in enumerate(loads):
        parts += _group(load, LEFT + GROUP * number + 15, y)
    return "\n".join([*parts, "</svg>", ""])


def _scale(low: float, high: float, width: int, y: Any) -> list[str]:
    parts = []
    value = low
    while value <= high:
        at = y(value)
        parts.append(f'<line x1="{LEFT}" x2="{width - 10}" y1="{at}" y2="{at}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4}" text-anchor="end">{value:,.0f}</text>')
        value *= 10
    return parts


def _legend(report: dict[str, Any]) -> list[str]:
    parts = ['<text x="10" y="20" font-size="14">Acknowledged messages per second</text>']
    names = [n for n in TITLES if any(n in load["systems"] for load in report["loads"])]
    for number, name in enumerate(names):
        x = LEFT + LEGEND * number
        parts.append(f'<rect x="{x}" y="32" width="12" height="12" fill="{COLOURS[name]}"/>')
        parts.append(f'<text x="{x + 18}" y="42">{escape(TITLES[name])}</text>')
    return parts


def _group(load: dict[str, Any], left: int, y: Any) -> list[str]:
    parts = []
    bottom = TOP + HEIGHT
    names = [name for name in TITLES if name in load["systems"]]
    for number, name in enumerate(names):
        of = load["systems"][name]
        x, at = left + BAR * number, y(of["msgs_per_s"])
        middle = x + (BAR - 4) / 2
        least, most = map(y, of["spread"]["msgs_per_s"])
        parts += [
            f'<rect x="{x}" y="{at:.1f}" width="{BAR - 4}" height="{bottom - at:.1f}"'
            f' fill="{COLOURS[name]}"/>',
            f'<line x1="{middle}" x2="{middle}" y1="{least:.1f}" y2="{most:.1f}" stroke="black"/>',
            f'<text x="{middle}" y="{min(at, most) - 4:.1f}" text-anchor="middle" font-size="10">'
            f"{of['msgs_per_s']:,}</text>",
        ]
    middle = left + BAR * len(names) / 2
    label = f"{load['connections']} × {load['window']}"
    parts.append(f'<text x="{middle}" y="{bottom + 20}" text-anchor="middle">{label}</text>')
    return parts
