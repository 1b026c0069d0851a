"""Make a run directory of someone else's model, so that it can be evaluated, used and exported like one of ours.

PATH is a directory of Hugging Face (config.json, safetensors, tokenizer; nothing is fetched) or a GGUF file. Weights go
straight into their places on the devices, one at a time. Evaluation takes the corpus that --config.data.* names, by
default the embedded one; the tokenizer and the model's shape are the file's own.

examples:
  isoflop import models/SmolLM2-135M --workdir=runs/smollm2
  isoflop import models/smollm2.gguf --workdir=runs/smollm2 --config.model.parameter_dtype=bfloat16
  isoflop import models/bert-base-uncased --workdir=runs/bert --config.data.source=text --config.data.path=books/
"""

import argparse
import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from research import config, trees
from research.checkpoint import Checkpoints, RunLock
from research.cli import rundir
from research.cli.arguments import Overrides, Result, add_workdir, console
from research.cli.progress import Progress
from research.data.tokenizer import Tokenizer, load
from research.errors import UserError
from research.interop import tokenizer_files
from research.interop.directory import CONFIG, Opened, open_directory
from research.interop.family import HEAD
from research.interop.gguf import open_gguf
from research.interop.placing import place
from research.interop.source import Source
from research.parallel import mesh
from research.settings import DataSettings, ObjectiveSettings, Settings, TokenizerSettings
from research.train import provenance
from research.train.assembly import Assembly, assemble
from research.train.metrics import write_json

ORIGINAL = "huggingface"  # the folder of a run with the config and tokenizer that came with the weights
_LONGEST = 1024
_TAKEN = ("tokenizer.", "model.", "objective.name")  # keys that the imported files decide
_FREE = ("model.compute_dtype", "model.parameter_dtype", "model.dropout")


def epilog() -> str | None:
    """What `--help` ends with."""
    return f"keys that may be given: those of data, evaluate, train, optimizer and parallel, {', '.join(_FREE)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("path", metavar="PATH", type=Path, help="directory of Hugging Face, or GGUF file")
    add_workdir(parser, "run directory to make; it must not hold a run")


def run(options: argparse.Namespace) -> Result:
    """Imports a model."""
    workdir, path = options.workdir, options.path.expanduser().absolute()
    if (workdir / rundir.CONFIG).exists() or (workdir / "checkpoints").exists():
        raise UserError(f"--workdir={workdir} holds a run already: use a new one")
    opened = open_gguf(path) if path.is_file() else open_directory(path)
    source = opened.source if isinstance(opened, Opened) else opened
    tokenizer = open_tokenizer(source, path)
    settings = chosen_settings(source, tokenizer, workdir, options.overrides)
    shown = console(options)
    mesh.start_processes(settings.parallel)
    assembly = assemble(settings, tokenizer.vocabulary)
    with Progress(0, 0, 1, shown) as progress, RunLock(workdir):
        progress.stage("hashing the files")
        facts = facts_of(opened, path)
        progress.stage("reading the weights")
        with jax.set_mesh(assembly.mesh):
            save_parameters(workdir, assembly, source)
        if jax.process_index() == 0:
            write_files(workdir, opened, tokenizer, path)
            write_json(workdir / rundir.CONFIG, config.to_record(settings) | {"provenance": facts})
    count = assembly.count.parameters
    shown.print(f"{count:,} parameters of {facts['architecture']} in {workdir}", soft_wrap=True)
    if isinstance(opened, Opened) and HEAD not in opened.parts:
        shown.print("it has no head of its own: its hidden states are what was trained, not its predictions")
    return 0, {"workdir": str(workdir), "parameters": count, "objective": source.objective, **facts}


def open_tokenizer(source: Source, path: Path) -> Tokenizer:
    """The tokenizer of the files.

    Raises:
      UserError: there is none, or it has ids that the embedding has no rows for.
    """
    if source.tokenizer is None:
        raise UserError(
            f"{path} has no tokenizer, which a run directory needs: put its tokenizer.json or sentencepiece model "
            "there, or load the weights from Python (research.interop.huggingface)"
        )
    tokenizer = load(source.tokenizer) if isinstance(source.tokenizer, Path) else source.tokenizer
    if tokenizer.vocabulary.num_rows > source.vocab_size:
        raise UserError(
            f"{path}: the tokenizer has {tokenizer.vocabulary.num_rows} ids, but the model's embedding has "
            f"{source.vocab_size} rows: put the tokenizer of this model there"
        )
    return tokenizer


def chosen_settings(source: Source, tokenizer: Tokenizer, workdir: Path, overrides: Overrides) -> Settings:
    """The settings of the run: the model's from the files, the others by default or by override.

    Raises:
      UserError: an override of what the files decide.
    """
    model = dataclasses.replace(source.model, vocab_size=source.vocab_size)
    longest = model.max_positions or _LONGEST
    base = Settings(
        model=model,
        objective=ObjectiveSettings(name=source.objective),
        tokenizer=TokenizerSettings(path=str(workdir / tokenizer.file_name), vocab_size=tokenizer.vocabulary.size),
        data=DataSettings(sequence_length=min(longest, _LONGEST)),
    )
    loaded = config.default_config()
    loaded.update(config.to_record(base)["settings"])
    for name, text in overrides:
        if name.startswith(_TAKEN) and name not in _FREE and name in config.KEYS:
            raise UserError(f"--config.{name}: the imported files decide this key; leave it out")
        config.override(loaded, name, text)
    settings = config.to_settings(loaded)
    rule = settings.optimizer
    if rule.ema_decay is not None or rule.name == "schedule_free":
        raise UserError(
            f"optimizer.name={rule.name}, optimizer.ema_decay={rule.ema_decay}: an imported model has no average of "
            "weights to evaluate; leave these keys out"
        )
    if settings.data.sequence_length > longest:
        raise UserError(
            f"data.sequence_length={settings.data.sequence_length} is longer than the {longest} positions of the "
            "model: lower it"
        )
    return settings


def facts_of(opened: Opened | Source, path: Path) -> dict[str, Any]:
    """Where the weights are from."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    known = isinstance(opened, Opened)
    return {
        "imported_from": str(path),
        "imported_format": "huggingface" if known else "gguf",
        "imported_sha256": digest.hexdigest(),
        "architecture": opened.family.architecture(opened.parts) if isinstance(opened, Opened) else "GGUF",
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }


def save_parameters(workdir: Path, assembly: Assembly, source: Source) -> None:
    """Reads the weights and saves them as the checkpoint of step 0, without an optimizer's state.

    Raises:
      UserError: they hold NaN or infinity, or cannot be written.
    """
    problems: list[str] = []

    def note(event: str, fields: dict[str, Any]) -> None:
        if event == "checkpoint_failed":
            problems.append(fields["reason"])

    params = place(source.leaves, assembly.parameter_shapes())
    zero = jnp.zeros((), jnp.int32, device=jax.NamedSharding(assembly.mesh, jax.P()))
    with Checkpoints(workdir / "checkpoints", on_event=note) as checkpoints:
        checkpoints.save(0, {"step": zero, "params": trees.unflatten(trees.flatten(params))})
    if problems:
        raise UserError(f"the weights were not saved to {workdir}: {problems[0].removeprefix('params/')}")


def write_files(workdir: Path, opened: Opened | Source, tokenizer: Tokenizer, path: Path) -> None:
    """The tokenizer, and what an export gives back as it came."""
    for name, content in tokenizer.files.items():
        (workdir / name).write_bytes(content)
    if isinstance(opened, Opened):
        (workdir / ORIGINAL).mkdir(exist_ok=True)
        (workdir / ORIGINAL / CONFIG).write_bytes((path / CONFIG).read_bytes())
        tokenizer_files.write(workdir / ORIGINAL, path)
