"""The coordinate check as one HTML page without scripts: read on a phone, printed on paper."""

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from research.doctor.coordinates import Coordinates
from research.train.metrics import write_text
from research.train.page import fill, section

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 520, 340, 58, 96, 14, 40
COLOURS = ("#2b5c92", "#bf5a1d", "#2f7a4f", "#7a5195", "#8a939d", "#9a4614")


def write_page(path: Path, title: str, subtitle: str, found: Mapping[str, Coordinates], verdict: str) -> None:
    """Writes the page: a chart of each parametrisation over one scale, and a table of slopes.

    Raises:
      UserError: the page cannot be written.
    """
    slots = {
        "title": html.escape(title),
        "subtitle": html.escape(subtitle),
        "verdict": html.escape(verdict),
        "charts": charts(found),
        "slopes": section("Exponents of the width", "slopes", table(found)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, fill("research.doctor", "coordinates_template.html", slots))


def charts(found: Mapping[str, Coordinates]) -> str:
    """A chart of each, all with the same axes, so that they compare."""
    values = [value for one in found.values() for value in one.changes[:, -1].ravel().tolist() if value > 0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return "".join(
        f"<figure><figcaption><b>{html.escape(name)}</b><span>change after {one.changes.shape[1] - 1} updates, "
        f"over the width</span></figcaption>{chart(one, low, max(high, low + 1))}</figure>"
        for name, one in found.items()
    )


def chart(one: Coordinates, low: int, high: int) -> str:
    """Mean absolute change of each activation over the width, both logarithmic, from 10^low to 10^high."""
    first, last = math.log(min(one.widths)), math.log(max(one.widths))

    def across(width: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log(width) - first) / (last - first)

    def down(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log10(max(value, 10.0**low))) / (high - low)

    parts = []
    for power in range(low, high + 1):
        y = down(10.0**power)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 8}" y="{y + 4:.1f}">{10.0**power:g}</text>')
    for width in one.widths:
        parts.append(f'<text class="tick middle" x="{across(width):.1f}" y="{HEIGHT - BOTTOM + 20}">{width}</text>')
    ends = spread([down(value) for value in one.changes[-1, -1].tolist()])
    for place, name in enumerate(one.names):
        colour = COLOURS[place % len(COLOURS)]
        points = [
            (across(width), down(value))
            for width, value in zip(one.widths, one.changes[:, -1, place].tolist(), strict=True)
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" stroke="{colour}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in points]
        label = f'x="{WIDTH - RIGHT + 8}" y="{ends[place] + 4:.1f}" fill="{colour}"'
        parts.append(f'<text class="name" {label}>{html.escape(name)}</text>')
    parts.append(f'<text class="tick middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 2}">model.embed_dim</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{describe(one)}">{"".join(parts)}</svg>'


def describe(one: Coordinates) -> str:
    """The chart in words."""
    slopes = ", ".join(f"{name} {value:+.2f}" for name, value in one.slopes().items())
    return html.escape(f"change of activations grows with the width to the power: {slopes}")


def spread(places: Sequence[float], gap: float = 13.0) -> list[float]:
    """The places, in their order, moved down as far as labels need that must not lie on one another."""
    order = sorted(range(len(places)), key=lambda place: places[place])
    found, above = list(places), -math.inf
    for place in order:
        above = found[place] = max(places[place], above + gap)
    excess = above - (HEIGHT - BOTTOM + 10)
    return [y - excess for y in found] if excess > 0 else found


def table(found: Mapping[str, Coordinates]) -> str:
    """The slope of each activation, a column a parametrisation."""
    names = next(iter(found.values())).names
    heads = "".join(f"<th class=number>{html.escape(name)}</th>" for name in found)
    slopes = {name: one.slopes() for name, one in found.items()}
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td class=number>{slopes[one][name]:+.2f}</td>" for one in found)
        + "</tr>"
        for name in names
    )
    head = f"<thead><tr><th>activation</th>{heads}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'
