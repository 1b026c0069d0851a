"""Write a trained or imported model for other programs: a directory for transformers, or a GGUF file for llama.cpp.

The directory loads with `AutoModel.from_pretrained`, without custom code, where a model type of transformers computes
what this model does: the presets of research/settings/families.py. Otherwise one sentence names a key that it lacks.

examples:
  isoflop export --workdir=runs/quickstart --to=models/quickstart
  isoflop export --workdir=runs/quickstart --to=models/quickstart --dtype=bfloat16 --step=2000
  isoflop export --workdir=runs/quickstart --to=quickstart.gguf --format=gguf --dtype=float16
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import jax

from research import trees
from research.cli import rundir
from research.cli.arguments import Result, add_workdir, console
from research.cli.import_ import ORIGINAL
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.interop import huggingface, storage
from research.interop.directory import CONFIG
from research.interop.gguf import write_gguf
from research.interop.saving import STORED_TYPES
from research.settings import ParallelSettings
from research.train.assembly import Assembly, assemble


def epilog() -> str | None:
    """What `--help` ends with."""
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_workdir(parser, "run directory")
    parser.add_argument("--to", required=True, type=Path, metavar="OUT", help="new directory, or new file for gguf")
    parser.add_argument("--format", choices=("huggingface", "gguf"), default="huggingface")
    parser.add_argument("--dtype", choices=STORED_TYPES, default=None, help="of the weights (default: the run's own)")
    parser.add_argument("--step", type=int, default=None, help="checkpoint (default: the newest)")


def run(options: argparse.Namespace) -> Result:
    """Exports a checkpoint."""
    if options.overrides:
        raise UserError(f"--config.{options.overrides[0][0]}: export takes its settings from the run directory")
    workdir, to = options.workdir, options.to.expanduser().absolute()
    settings, provenance = rundir.open_settings(workdir)
    tokenizer = rundir.open_tokenizer(workdir)
    alone = dataclasses.replace(settings, parallel=ParallelSettings())
    assembly = assemble(alone, tokenizer.vocabulary, devices=jax.devices()[:1])
    # What cannot be written is refused before the weights are read.
    model = of_run(assembly, tokenizer, workdir) if options.format == "huggingface" else None
    if to.exists():
        raise UserError(f"--to={to} exists already: nothing is overwritten, choose another name")
    params, step = rundir.open_parameters(workdir, assembly, options.step)
    shown = console(options)
    if model is None:
        write_gguf(to, *of_core(assembly), trees.flatten(params), tokenizer, options.dtype or default_type(assembly))
        kind, notes = "GGUF", list[str]()
    else:
        notes = huggingface.save(to, model, params, dtype=options.dtype)
        kind = model.architecture
    if settings.objective.name == "prefix":
        notes.append("it was trained with prefixes that are seen from both sides; other programs read them causally")
    shown.print(f"step {step} as {kind}: {to}", soft_wrap=True)
    for note in notes:
        shown.print(note, style="dim", soft_wrap=True)
    return 0, {"to": str(to), "step": step, "architecture": kind, "notes": notes, **provenance}


def of_run(assembly: Assembly, tokenizer: Tokenizer, workdir: Path) -> huggingface.Pretrained:
    """The run's model as one of transformers: the one that was imported, or the one that its settings describe."""
    original = workdir / ORIGINAL
    objective = assembly.settings.objective.name
    if (original / CONFIG).is_file():
        values = storage.read_json(original / CONFIG)
        return huggingface.of_core(assembly.model, objective, original, values)
    return huggingface.of_core(assembly.model, objective, tokenizer)


def of_core(assembly: Assembly) -> tuple[Any, int]:
    """Settings that state their context, and the rows of the embedding."""
    core = assembly.model
    return dataclasses.replace(core.settings, max_positions=core.max_positions), core.vocab_size


def default_type(assembly: Assembly) -> str:
    """The type of the run's weights."""
    return assembly.settings.model.parameter_dtype
