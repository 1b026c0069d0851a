"""What every page that Isoflop writes has in common: one look, its parts, numbers as a person reads them."""

import html
import math
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any, TypeGuard


def fill(package: str, template: str, slots: Mapping[str, str]) -> str:
    """The template of a package with its `{{slots}}` filled in; `{{style}}` is the look that all pages share.

    One pass, so that nothing which is put in is itself taken for a slot.
    """
    style = resources.files("research.train").joinpath("page.css").read_text(encoding="utf-8")
    text = resources.files(package).joinpath(template).read_text(encoding="utf-8")
    slots = {"style": style, **slots}
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: slots[slot[1]], text)


def section(title: str, anchor: str, body: str) -> str:
    """A titled part of the page; nothing where there is no body."""
    return f'<section id="{anchor}"><h2>{title}</h2>{body}</section>' if body else ""


def tile(label: str, value: str, note: str = "") -> str:
    """A headline figure; all three are escaped."""
    return (
        f'<div class="tile"><div class="label">{html.escape(label)}</div>'
        f'<div class="value">{html.escape(value)}</div><div class="note">{html.escape(note)}</div></div>'
    )


def quantity(value: int | float) -> str:
    """`918`, `1.23 M`, `4.5 G`."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            scaled = value / (1e3 if unit == "k" else size)
            return f"{scaled:.3g} {unit}" if scaled < 1000 else f"{scaled:,.0f} {unit}"
    return f"{value:,.4g}" if value % 1 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """`12 ms`, `3.4 s`, `5.2 h`, `21 days`."""
    for size, unit in ((86_400 * 2, "days"), (7200, "h"), (120, "min")):
        if seconds >= size:
            return f"{seconds / {'days': 86_400, 'h': 3600, 'min': 60}[unit]:.3g} {unit}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it is a finite number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
