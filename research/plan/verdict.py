"""One sentence on a plan that does not fit: what is largest, and what would fit."""

from research.parallel.chips import GIB
from research.plan.planning import Plan
from research.plan.search import Candidate, describe


def sentence(plan: Plan, instead: Candidate | None) -> str:
    """Why the settings do not fit the topology, and the nearest change that does."""
    refused = plan.compiled.refused if plan.compiled else None
    by = "by analysis" if plan.compiled is None else "by the compiler"
    parts = ", ".join(f"{kind} {size / GIB:.3g} GiB" for kind, size in plan.largest[:3])
    if refused and refused.largest:
        first = refused.largest[0]
        parts += f"; its largest buffer is {first.shape} of {first.bytes / GIB:.3g} GiB ({first.source})"
    if instead is None:
        advice = "no fewer micro-batch rows, remat or sharding makes it fit: take more devices or a smaller model"
    else:
        how = "compiled" if instead.plan.counted else "by analysis"
        advice = f"{describe(instead.changes)} fits with {instead.plan.needed / GIB:.3g} GiB ({how})"
    return (
        f"this run does not fit {plan.topology.label}: {by} a device needs {plan.needed / GIB:.4g} GiB of "
        f"{plan.capacity / GIB:.4g} GiB, most of it (estimated) {parts}; {advice}"
    )
