"""Writing a directory of `transformers`, beside its place first, so that nothing half-written is ever found there."""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research import trees
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.interop import storage, tokenizer_files, weights
from research.interop.directory import CONFIG, pieces
from research.interop.family import HEAD_BIAS, different
from research.interop.pretrained import Pretrained
from research.interop.storage import Stored
from research.interop.traits import Config

STORED_TYPES = ("float32", "bfloat16", "float16")


def save(
    path: Path,
    model: Pretrained,
    params: Mapping[str, Any],
    tokenizer: Path | Tokenizer | None,
    dtype: np.dtype | None,
) -> list[str]:
    """Writes config, weights and tokenizer; see `huggingface.save`."""
    if path.exists():
        raise UserError(f"{path} exists already: nothing is overwritten, choose another folder")
    tensors = list_tensors(model, params, dtype)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            notes = tokenizer_files.write(temporary, tokenizer)
            config = config_of(model, tensors, tokenizer)
            (temporary / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            storage.write_directory(temporary, tensors)
            temporary.chmod(0o755)
            temporary.rename(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}): make room or choose another folder"
        ) from error
    return notes


def list_tensors(model: Pretrained, params: Mapping[str, Any], dtype: np.dtype | None) -> list[Stored]:
    """What is written of the weights."""
    flat = trees.flatten(params)
    expected = model.core.parameters()
    for verb, paths in (("lack", expected.keys() - flat.keys()), ("have", flat.keys() - expected.keys())):
        if paths:
            raise UserError(f"params are not the weights of this model: they {verb} {storage.listed(sorted(paths))}")
    found = weights.stored(flat, pieces(model.family, model.core, model.parts), dtype)
    if HEAD_BIAS in model.family.parts and HEAD_BIAS not in model.parts:
        shape, kept = (1, model.core.vocab_size), found[0].dtype
        found.append(Stored(model.family.parts[HEAD_BIAS], shape, kept, lambda: np.zeros(shape, kept)))
    return found


def config_of(model: Pretrained, tensors: list[Stored], tokenizer: Path | Tokenizer | None) -> dict[str, Any]:
    """The config.json: the one that the model came with where it still describes it, else one of its settings."""
    core, family = model.core, model.family
    settings = dataclasses.replace(core.settings, vocab_size=core.vocab_size, max_positions=core.max_positions)
    written = dict(model.config)
    if not written or different(settings, family.read(Config(CONFIG, written, family.defaults), model.parts)):
        ids = tokenizer_files.ids(tokenizer, encoder_decoder=settings.architecture == "encoder_decoder")
        if family.model_type == "modernbert":  # its config has these keys too, with numbers of its own vocabulary
            ids |= {"cls_token_id": ids["bos_token_id"], "sep_token_id": ids["eos_token_id"]}
        written = {**ids, **family.write(settings, model.parts)}
    types = {tensor.dtype.name for tensor in tensors}
    name = types.pop() if len(types) == 1 else "float32"
    key = "torch_dtype" if "torch_dtype" in written else "dtype"
    if written.get(key, "float32") != name or not model.config:
        written[key] = name
    return written
