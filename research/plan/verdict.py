"""One sentence on a plan that does not fit: what is largest, and what would fit."""

from research.plan.page import amount
from research.plan.planning import Plan
from research.plan.search import Candidate, describe


def sentence(plan: Plan, instead: Candidate | None) -> str:
    """Why the settings do not fit the topology, and the nearest change that does."""
    refused = plan.compiled.refused if plan.compiled else None
    by = "by analysis" if plan.compiled is None else "by the compiler"
    parts = ", ".join(f"{kind} {amount(size)}" for kind, size in plan.largest[:3])
    if refused and refused.largest:
        first = refused.largest[0]
        parts += f"; its largest buffer is {first.shape} of {amount(first.bytes)} ({first.source})"
    if instead is None:
        advice = "no fewer micro-batch rows, remat or sharding makes it fit: take more devices or a smaller model"
    else:
        how = "compiled" if instead.plan.counted else "by analysis"
        advice = f"{describe(instead.changes)} fits with {amount(instead.plan.needed)} ({how})"
    return (
        f"this run does not fit {plan.topology.label}: {by} a device needs {amount(plan.needed, 4)} of "
        f"{amount(plan.capacity, 4)}, most of it (estimated) {parts}; {advice}"
    )
