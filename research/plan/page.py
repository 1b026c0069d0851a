"""A plan as one HTML page without scripts: read on a phone, printed on paper."""

import html
from collections.abc import Sequence
from pathlib import Path

from research.plan import roofline
from research.plan.planning import Plan, layout
from research.plan.search import Candidate, describe
from research.plan.topologies import wire
from research.train.metrics import write_text
from research.train.page import duration, fill, quantity


def write_page(path: Path, name: str, plan: Plan, ranked: Sequence[Candidate] = (), refusal: str = "") -> None:
    """Writes the page of a plan, named after its recipe, with the layouts of a search and why it does not fit.

    Raises:
      UserError: the page cannot be written.
    """
    count = plan.assembly.count
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.assembly.mesh.shape.items() if size > 1) or "one device"
    slots = {
        "title": f"{html.escape(name)} on {html.escape(plan.topology.label)}",
        "verdict": "fits" if plan.fits else "refused",
        "verdict_text": "fits" if plan.fits else "does not fit",
        "subtitle": html.escape(
            f"{quantity(count.parameters)} parameters · {plan.topology.num_devices:,} devices · {mesh} · "
            + ", ".join(f"{key.split('.')[1]} {value}" for key, value in layout(plan.settings).items())
        ),
        "refusal": f'<p class="refusal">{html.escape(refusal)}</p>' if refusal else "",
        "tiles": tiles(plan),
        "memory_lead": memory_lead(plan),
        "waterfall": waterfall(plan),
        "time_lead": time_lead(plan),
        "times": times(plan),
        "flows_lead": flows_lead(plan),
        "flows": flow_table(plan),
        "ranking": ranking(ranked),
        "assumptions": "".join(f"<li>{html.escape(line)}</li>" for line in roofline.assumptions(plan.topology)),
        "provenance": provenance(plan),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, fill("research.plan", "page_template.html", slots))


def tiles(plan: Plan) -> str:
    """The headline figures."""
    roof, steps = plan.roofline, plan.settings.train.num_steps
    shown = [("Memory of a device", amount(plan.needed), f"of {amount(plan.capacity)}")]
    if roof.step_seconds:
        cost = "" if plan.price is None else f"{plan.price * roof.chip_hours(steps):,.0f} at {plan.price:g} an hour"
        shown += [
            ("Step", duration(roof.step_seconds), f"estimate, bound by {roof.bound}"),
            ("Utilisation", f"{roof.utilisation:.0%}", "required FLOPs over peak"),
            ("Throughput", quantity(86_400 * roof.tokens_per_second), "tokens a day"),
            ("Run", duration(86_400 * roof.days(steps)), f"{steps:,} steps"),
            ("Chip-hours", quantity(roof.chip_hours(steps)), cost),
        ]
    shown.append(("Tokens a step", quantity(roof.tokens), f"{quantity(roof.model_flops)} model FLOPs"))
    return "".join(
        f'<div class="tile"><div class="label">{label}</div><div class="value">{value}</div>'
        f'<div class="note">{html.escape(note)}</div></div>'
        for label, value, note in shown
    )


def waterfall(plan: Plan) -> str:
    """Kinds of memory, each beginning where the last ends, with the line of what there is."""
    whole = max(plan.needed, plan.capacity if plan.topology.chip.peak_flops else 0, 1)
    begin, rows = 0, []
    for kind, size, how in plan.kinds:
        rows.append(_bar(kind, how, how, begin / whole, size / whole, amount(size), plan.capacity / whole))
        begin += size
    total = _bar("in all", "", "total", 0.0, plan.needed / whole, amount(plan.needed), plan.capacity / whole)
    return "".join(rows) + total


def _bar(name: str, note: str, style: str, begin: float, width: float, amount: str, mark: float) -> str:
    line = f'<b style="left:{100 * mark:.2f}%"></b>' if mark <= 1 else ""
    width = min(width, 1 - begin) if begin < 1 else 0
    return (
        f'<div class="row"><span class="name">{html.escape(name)}<small>{html.escape(note)}</small></span>'
        f'<span class="track"><i class="{style}" style="left:{100 * begin:.2f}%;width:{100 * width:.2f}%"></i>{line}'
        f'</span><span class="amount">{amount}</span></div>'
    )


def memory_lead(plan: Plan) -> str:
    """How the figures were obtained."""
    if plan.compiled is None:
        return "By analysis alone: state and batch are exact, what lives within the program is estimated."
    if plan.compiled.refused is not None:
        return "The compiler refused the program; what lives within it is estimated."
    return (
        "State and batch are exact, from shapes and shardings; temporaries are those of the compiled program. "
        f"Analysis had estimated {amount(sum(plan.memory.estimates.values()))} of them."
    )


def time_lead(plan: Plan) -> str:
    """What the estimate says."""
    roof = plan.roofline
    if not roof.step_seconds:
        return "No data sheet says how fast these devices are."
    return (
        f"The slowest of these, and the exposed share of communication: {duration(roof.step_seconds)}. "
        f"{quantity(roof.intensity)} FLOPs a byte of HBM traffic; {roof.executed_flops / roof.model_flops:.2f} times "
        "the model's FLOPs are executed."
    )


def times(plan: Plan) -> str:
    """What a step must do, in seconds."""
    roof = plan.roofline
    parts = {"compute": roof.compute_seconds, "memory": roof.memory_seconds, **roof.communication}
    most = max(parts.values(), default=0.0) or 1.0
    return "".join(
        _bar(name, "", "bound" if name == roof.bound else "time", 0.0, seconds / most, duration(seconds), 2.0)
        for name, seconds in parts.items()
        if seconds
    )


def flows_lead(plan: Plan) -> str:
    """Where the table comes from."""
    if plan.counted:
        return "Read from the compiled program, loops times their trip counts; bytes that a device sends in a step."
    return "By analysis: nothing was compiled. Bytes that a device sends in a step."


def flow_table(plan: Plan) -> str:
    """Collectives by kind and mesh axes."""
    rows = []
    for flow in plan.flows:
        over = wire(plan.topology, plan.assembly.mesh, flow.axes) if plan.topology.chip.peak_flops else None
        cells = [
            ("", flow.kind),
            ("", " x ".join(flow.axes)),
            (" class=number", f"{flow.times:,.0f}"),
            (" class=number", amount(flow.bytes)),
            ("", over.note if over else ""),
            (" class=number", duration(flow.bytes / over.bandwidth) if over else ""),
        ]
        rows.append("<tr>" + "".join(f"<td{style}>{html.escape(text)}</td>" for style, text in cells) + "</tr>")
    head = (
        "<thead><tr><th>collective</th><th>mesh axes</th><th class=number>a step</th><th class=number>sent</th>"
        "<th>over</th><th class=number>at least</th></tr></thead>"
    )
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>" if rows else "<p>None.</p>"


def ranking(ranked: Sequence[Candidate]) -> str:
    """The layouts that a search found, the fastest first."""
    rows = "".join(
        f"<tr><td class=number>{place}</td><td class=number>{duration(found.plan.roofline.step_seconds)}</td>"
        f"<td class=number>{amount(found.plan.needed)}</td>"
        f"<td>{'compiled' if found.plan.counted else 'analysis'}</td>"
        f"<td><code>{html.escape(describe(found.changes) or 'as asked')}</code></td></tr>"
        for place, found in enumerate(ranked[:20], start=1)
    )
    head = (
        "<thead><tr><th class=number></th><th class=number>step</th><th class=number>memory</th><th>by</th>"
        "<th>layout</th></tr></thead>"
    )
    body = f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>'
    return f'<section id="search"><h2>Layouts that fit</h2>{body}</section>' if rows else ""


def provenance(plan: Plan) -> str:
    """What the figures rest on."""
    record = plan.record()
    rows = {
        "settings": record["config_hash"],
        "kernels": ", ".join(f"{part} {name}" for part, name in record["kernels"].items()),
    }
    if plan.compiled is not None:
        rows["compiler"] = ", ".join(f"{name} {version}" for name, version in plan.compiled.versions.items())
        rows["compiled in"] = duration(plan.compiled.seconds)
        rows["Pallas kernels"] = str(plan.compiled.custom_kernels)
    if plan.compiled is not None and plan.compiled.unknown_loops:
        rows["loops of unknown length"] = f"{', '.join(plan.compiled.unknown_loops)} (counted once)"
    return "".join(f"<dt>{name}</dt><dd>{html.escape(text)}</dd>" for name, text in rows.items())


def amount(size: float | int, digits: int = 3) -> str:
    """`1,410 GiB`, `12.3 GiB`, `640 KiB`: with so many digits at least."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        number = size / 2**power
        if number >= 0.1:
            return f"{number:,.0f} {unit}" if number >= 10 ** (digits - 1) else f"{number:.{digits}g} {unit}"
    return f"{size:.0f} B"
