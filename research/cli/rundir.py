"""What a run directory holds, for the verbs that open one."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from research import config
from research.checkpoint import restore_parts
from research.data import prepare
from research.data.prepare import Prepared
from research.data.tokenizer import JSON, MODELS, Tokenizer, load
from research.errors import UserError
from research.optim import evaluated, evaluated_from
from research.settings import Settings
from research.train.assembly import Assembly
from research.train.metrics import METRICS, read_metrics, write_json

CONFIG, DATA_CARD = "config.json", "data_card.md"


def saved_record(workdir: Path) -> dict[str, Any] | None:
    """The config record of a run directory, with the provenance that was saved beside it; none in a new directory."""
    return config.read_json(workdir / CONFIG) if (workdir / CONFIG).exists() else None


def reached(workdir: Path) -> int:
    """Updates that the run has written down."""
    path = workdir / METRICS
    return max((int(row["step"]) for row in read_metrics(path)), default=0) if path.exists() else 0


def write_record(workdir: Path, settings: Settings, prepared: Prepared, provenance: dict[str, Any]) -> None:
    """Saves what a later process needs of settings and data."""
    hashes = {"config_hash": config.scientific_hash(settings), "data_hash": prepared.data_hash}
    facts = hashes | {"prepared": prepared.directory.name} | provenance
    try:
        for name, content in prepared.tokenizer.files.items():
            (workdir / name).write_bytes(content)
        (workdir / DATA_CARD).write_bytes((prepared.directory / "card.md").read_bytes())
    except OSError as error:
        raise UserError(
            f"{workdir} cannot be written to ({error.strerror}): make room or choose another --workdir"
        ) from error
    write_json(workdir / CONFIG, config.to_record(settings) | {"provenance": facts})


def origin(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Where a run's first weights came from, as its record says: it stays there whenever the record is written."""
    found = (record or {}).get("provenance", {})
    return {name: found[name] for name in ("branched_from",) if name in found}


def open_settings(workdir: Path) -> tuple[Settings, dict[str, Any]]:
    """Settings and provenance of a run.

    Raises:
      UserError: the directory is not a run.
    """
    record = saved_record(workdir)
    if record is None:
        raise UserError(f"--workdir={workdir} is not a run directory: it has no {CONFIG}")
    settings = config.from_record(record)
    given = settings.tokenizer.path
    if given and not Path(given).exists():  # the run was moved, or the tokenizer was: the run has a copy
        own = replace(settings.tokenizer, path=str(workdir / open_tokenizer(workdir).file_name))
        settings = replace(settings, tokenizer=own)
    return settings, record.get("provenance", {})


def open_tokenizer(workdir: Path) -> Tokenizer:
    """The run's own copy of its tokenizer."""
    for name in (MODELS[0], JSON):
        if (workdir / name).exists():
            return load(workdir / name)
    raise UserError(f"--workdir={workdir} has no {MODELS[0]} and no {JSON}: start the training, or restore the file")


def open_data(settings: Settings, expected_hash: str | None, progress: Any = None) -> Prepared:
    """The prepared data of a run, prepared again where the cache no longer has it.

    Raises:
      UserError: what is prepared now is not what the run was trained on.
    """
    prepared = prepare.prepare(settings, progress)
    if expected_hash is not None and prepared.data_hash != expected_hash:
        raise UserError(
            f"the data changed: the run used {expected_hash}, the sources now give {prepared.data_hash}: restore the "
            "sources (or, for docstrings, the versions in the data card), or start a new --workdir"
        )
    return prepared


def open_recorded_data(settings: Settings, provenance: Mapping[str, Any], progress: Any = None) -> Prepared:
    """The prepared data of a run from the cache, though its sources may be gone; else prepared again."""
    # The name comes from a file: it is looked for among the entries, never followed as a path.
    for directory in (prepare.cache_directory() / "prepared").glob("*"):
        if directory.name == provenance.get("prepared"):
            prepared = prepare.open_prepared(directory)
            if prepared.data_hash == provenance.get("data_hash"):
                return prepared
    return open_data(settings, provenance.get("data_hash"), progress)


def open_parameters(workdir: Path, assembly: Assembly, step: int | None) -> tuple[Any, int]:
    """The weights of a checkpoint (none: the newest good one) that a run evaluates, verified."""
    rule, shapes = assembly.settings.optimizer, assembly.parameter_shapes()
    with jax.set_mesh(assembly.mesh):
        parts, step = restore_parts(workdir / "checkpoints", evaluated_from(rule, shapes), step)
        return evaluated(parts, shapes, rule.beta1), step
