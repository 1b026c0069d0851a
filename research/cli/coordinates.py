"""Measure how activations grow with the width of a model, before a learning rate is carried from one width to another.

Trains the model of a recipe for a few updates at several widths, and fits what each activation changed by with a power
of the width: near 0 the rate transfers, above 0 it is too large for wider models. Logits may lie at -1/2: what an untrained head
makes of a change shrinks so. Beside model.parametrisation of the recipe, the standard one is measured. The text is made
up: nothing is prepared. Exit status 0 if all exponents lie within --tolerance, 1 if one does not.

examples:
  isoflop coordinates --config=configs/causal.py:tiny --config.model.parametrisation=mup --config.model.base_width=128 --config.model.base_head_dim=32
  isoflop coordinates --config=configs/masked.py:bert-tiny --widths=64,128,256,512 --steps=6 --output=coordinates.html
"""  # noqa: E501 - a command is read in one line

import argparse
import functools

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from research.cli.arguments import Result, absolute, add_config, console, keys_table, settings
from research.cli.execution import compilation_cache
from research.cli.progress import Progress
from research.doctor import coordinates, coordinates_page
from research.doctor.coordinates import Coordinates
from research.doctor.reduction import changed
from research.errors import UserError

PLAIN = {"model.parametrisation": "standard", "model.base_width": None, "model.base_head_dim": None}


def epilog() -> str | None:
    """What `--help` ends with."""
    return keys_table()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_config(parser)
    parser.add_argument("--widths", help="values of model.embed_dim (default: a half, once, twice, four times its own)")
    parser.add_argument("--steps", type=int, default=4, help="updates (default 4)")
    parser.add_argument("--seeds", type=int, default=1, help="initial weights to average over (default 1)")
    parser.add_argument(
        "--growth",
        choices=coordinates.GROWTHS,
        default="heads",
        help="what grows with the width: the number of heads, or head_dim (default heads)",
    )
    parser.add_argument("--tolerance", type=float, default=0.25, help="largest exponent (default 0.25)")
    parser.add_argument("--output", type=absolute, metavar="FILE", help="write a page (coordinates.html)")


def run(options: argparse.Namespace) -> Result:
    """Measures, shows the exponents and writes the page."""
    chosen = settings(options.config, options.overrides)
    widths, shown = _widths(options.widths, chosen.model.embed_dim), console(options)
    if options.steps < 1 or options.seeds < 1:
        raise UserError(f"--steps={options.steps} --seeds={options.seeds}: take at least one of each")
    compilation_cache()
    name = chosen.model.parametrisation
    kinds = {"standard": changed(chosen, PLAIN)} | ({} if name == "standard" else {name: chosen})
    found: dict[str, Coordinates] = {}
    with Progress(0, 0, 1, shown) as progress:
        for kind, of in kinds.items():
            found[kind] = coordinates.measure(
                of,
                widths,
                options.steps,
                options.growth,
                options.seeds,
                functools.partial(_told, progress, kind),
            )
    slopes = found[name].slopes()
    off = coordinates.off(slopes, options.tolerance)
    holds = not off
    worst = max(off or slopes, key=lambda activation: abs(slopes[activation]))
    verdict = sentence(name, worst, slopes[worst], holds)
    show(shown, found, verdict, holds)
    if options.output is not None:
        facts = f"widths {', '.join(map(str, widths))}, {options.steps} updates of {chosen.optimizer.name} at "
        facts += f"{chosen.optimizer.learning_rate:g}, {options.growth} grow with the width"
        coordinates_page.write_page(options.output, f"{chosen.objective.name}, {name}", facts, found, verdict)
        shown.print(f"\npage {escape(str(options.output))}")
    record = {kind: one.record() for kind, one in found.items()}
    return 0 if holds else 1, {"parametrisation": name, "holds": holds, "worst": worst, "measured": record}


def _told(progress: Progress, kind: str, width: int) -> None:
    progress.stage(f"{kind}: width {width}")


def sentence(name: str, worst: str, exponent: float, holds: bool) -> str:
    """What the exponents say of the learning rate."""
    if holds:
        return (
            f"Under {name} activations change alike at every width ({worst} the least so, as width^{exponent:+.2f}): "
            "nothing here speaks against carrying a learning rate from one of these widths to another."
        )
    return (
        f"Under {name} the change of {worst} goes as width^{exponent:+.2f}: a learning rate that is tuned at one of "
        "these widths is another one's too large or too small."
    )


def show(shown: Console, found: dict[str, Coordinates], verdict: str, holds: bool) -> None:
    """The exponents of each activation, a column a parametrisation."""
    shown.print()
    grid = Table(box=None, header_style="dim", pad_edge=False)
    grid.add_column("change of", no_wrap=True)
    for kind in found:
        grid.add_column(f"width^, {kind}", justify="right")
    slopes = [one.slopes() for one in found.values()]
    for activation in slopes[0]:
        grid.add_row(escape(activation), *(f"{of[activation]:+.2f}" for of in slopes))
    shown.print(grid)
    shown.print(f"\n{escape(verdict)}", style="green" if holds else "bold red")


def _widths(text: str | None, own: int) -> list[int]:
    if text is None:
        return [own // 2, own, 2 * own, 4 * own]
    try:
        widths = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--widths={text}: write whole numbers with commas between them, as 64,128,256") from error
    if min(widths) < 1:
        raise UserError(f"--widths={text}: a width is at least 1")
    return widths
