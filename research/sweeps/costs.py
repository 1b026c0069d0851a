"""What a cell has cost: hours of its attempts, times the cores or the chips that each of them held.

Cells that one process trained together share what it held.
"""

import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from research.sweeps.folder import JOBS

Attempt = Mapping[str, Any]


class Costs:
    """Cores and chips of the jobs of a sweep's folder, as `jobs/` says."""

    def __init__(self, directory: Path) -> None:
        self._jobs: dict[str, dict[str, Any]] = {}
        for path in sorted((directory / JOBS).glob("*.job.json")):
            job = _read(path).get("job", {})
            self._jobs[str(job.get("name"))] = job.get("resources") or {}
        self._guards = directory / JOBS / "guards"

    def hours(self, attempts: Sequence[Attempt]) -> dict[str, float | None]:
        """`core_hours` and `chip_hours` of all attempts, the failed ones too; none where their number is unknown."""
        found: dict[str, float | None] = {}
        for name, count in (("core_hours", self.cores), ("chip_hours", self.chips)):
            # Cells that were trained together share the time of their process.
            parts = [(seconds_of(attempt) / (attempt.get("pack") or 1), count(attempt)) for attempt in attempts]
            known = bool(parts) and all(number is not None for _, number in parts)
            found[name] = round(sum(s * (n or 0) for s, n in parts) / 3600, 6) if known else None
        return found

    def cores(self, attempt: Attempt) -> int | None:
        """Cores that the process of an attempt held; none on accelerators, and where nobody wrote them down."""
        asked = self._jobs.get(str(attempt.get("job")), {})
        if chips_of(asked):
            return None
        own = attempt.get("cores") or asked.get("cores")
        if own is None:  # a place of this machine: its guard says which cores it gave
            guard = _read(self._guards / f"{attempt.get('job')}.json")
            places, place = guard.get("places") or [], guard.get("place")
            own = len(places[place]["cores"]) if isinstance(place, int) and place < len(places) else None
        processes = int(asked.get("processes_per_node") or 1) * int(asked.get("nodes") or 1)
        return None if own is None else int(own) * processes

    def chips(self, attempt: Attempt) -> int | None:
        """Accelerators that the job of an attempt held; none without any."""
        return chips_of(self._jobs.get(str(attempt.get("job")), {})) or None


def chips_of(resources: Mapping[str, Any]) -> int:
    """Chips that were asked for: `gpu:8` and `gpu:h100:8` are of a node, `v5p:4x4x4` is a slice."""
    kind, _, rest = str(resources.get("devices") or "cpu").partition(":")
    if kind == "cpu":
        return 0
    last = rest.rpartition(":")[2]
    if kind == "gpu":
        return (int(last) if last.isdigit() else 1) * int(resources.get("nodes") or 1)
    if not re.fullmatch(r"\d+(x\d+)*", last):
        return 0
    return math.prod(map(int, last.split("x"))) * int(resources.get("slices") or 1)


def seconds_of(attempt: Attempt) -> float:
    """Wall-clock time of an attempt that has ended."""
    if attempt["ended"] is None or attempt["status"] == "blocked":
        return 0.0
    begin, end = (datetime.datetime.fromisoformat(attempt[name]) for name in ("started", "ended"))
    return round((end - begin).total_seconds(), 3)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
