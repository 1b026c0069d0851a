"""The safetensors format against its own library; reading by slices, straight onto a mesh; older files."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file, save_file

from research import trees
from research.interop import directory, huggingface, storage
from research.interop.layout import layout
from research.interop.placing import place
from research.interop.source import Leaf
from research.interop.storage import Stored
from research.parallel import mesh, rules
from research.settings import MeshSettings, ParallelSettings
from tests.interop import originals


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "matrix": rng.normal(size=(3, 5)).astype(np.float32),
        "brain": rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16),
        "half": rng.normal(size=(7,)).astype(np.float16),
        "empty": np.zeros((0, 4), np.float32),
        "scalar": np.array(3, np.int64),
    }


def as_stored(arrays: dict[str, np.ndarray]) -> list[Stored]:
    return [Stored(name, a.shape, a.dtype, lambda a=a: a) for name, a in arrays.items()]


def test_what_is_written_is_read_by_the_library_and_the_other_way_round(tmp_path: Path) -> None:
    storage.write_file(tmp_path / "ours.safetensors", as_stored(tensors()))
    theirs = load_file(tmp_path / "ours.safetensors")
    ours = storage.open_file(tmp_path / "ours.safetensors")
    assert theirs.keys() == ours.keys() == tensors().keys()
    for name, array in tensors().items():
        assert (
            theirs[name].shape == array.shape
            and theirs[name].reshape(-1).view(torch.uint8).numpy().tobytes() == array.tobytes()
        )
        assert (ours[name].dtype, ours[name].shape) == (array.dtype, array.shape)
        assert ours[name].tobytes() == array.tobytes()
    save_file(theirs, tmp_path / "theirs.safetensors")
    again = storage.open_file(tmp_path / "theirs.safetensors")
    assert {name: array.tobytes() for name, array in again.items()} == {n: a.tobytes() for n, a in tensors().items()}


def test_many_files_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "SHARD_BYTES", 1000)
    arrays = {f"layer.{i}": np.full((10, 10), i, np.float32) for i in range(7)}
    storage.write_directory(tmp_path, as_stored(arrays))
    index = json.loads((tmp_path / storage.INDEX).read_text())
    assert index["metadata"]["total_size"] == 7 * 400 and len(set(index["weight_map"].values())) == 4
    found: dict[str, np.ndarray] = {}
    for name in set(index["weight_map"].values()):
        found |= load_numpy(tmp_path / name)
    opened = storage.open_directory(tmp_path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        np.testing.assert_array_equal(opened[name], array)


def test_a_checkpoint_in_several_files_is_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = originals.saved(originals.CASES["llama"], tmp_path / "original", max_shard_size="8KB")
    assert len(list((tmp_path / "original").glob("*.safetensors"))) > 2
    ours, params = huggingface.load(tmp_path / "original")
    monkeypatch.setattr(storage, "SHARD_BYTES", 8000)
    huggingface.save(tmp_path / "again", ours, params)
    assert (tmp_path / "again" / storage.INDEX).is_file()
    again = originals.loaded(tmp_path / "again")
    for (name, before), after in zip(theirs.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(before, after), name


def test_older_names_copies_and_buffers(tmp_path: Path) -> None:
    originals.saved(originals.CASES["bert"], tmp_path / "new")
    ours, params = huggingface.load(tmp_path / "new")
    found = load_file(tmp_path / "new" / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in found.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(24)[None]
    old["cls.predictions.decoder.weight"] = found["bert.embeddings.word_embeddings.weight"].clone()
    old["cls.predictions.decoder.bias"] = found["cls.predictions.bias"].clone()
    (tmp_path / "old").mkdir()
    save_file(old, tmp_path / "old" / "model.safetensors")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    kept = {key: value for key, value in config.items() if key not in {"tie_word_embeddings", "dtype", "hidden_act"}}
    # Such as the checkpoints of 2018: a config that names fewer parts than there are tensors.
    (tmp_path / "old" / "config.json").write_text(json.dumps(kept | {"architectures": ["BertForMaskedLM"]}))
    again, again_params = huggingface.load(tmp_path / "old")
    assert again.architecture == "BertForPreTraining" and again.core.settings == ours.core.settings
    for path, leaf in trees.flatten(params).items():
        np.testing.assert_array_equal(leaf, trees.flatten(again_params)[path], err_msg=path)


def test_older_configs(tmp_path: Path) -> None:
    originals.saved(originals.CASES["llama"], tmp_path / "model")
    ours, _ = huggingface.load(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    scaling = config.pop("rope_parameters")
    config |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    path.write_text(json.dumps(config))
    assert huggingface.load(tmp_path / "model")[0].core.settings == ours.core.settings
    originals.saved(originals.CASES["modernbert"], tmp_path / "modern")
    modern, _ = huggingface.load(tmp_path / "modern")
    path = tmp_path / "modern" / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"], config["layer_types"]
    config |= {"global_attn_every_n_layers": 3, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}
    path.write_text(json.dumps(config))
    assert huggingface.load(tmp_path / "modern")[0].core.settings == modern.core.settings


# --- slices and meshes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shape", "parts"),
    [("(H D) E -> E H D", (4, 2, 3), 1), ("E (3 H D) -> E H D", (4, 2, 3), 3), ("1 V -> V", (5,), 1)],
)
def test_a_layout_is_a_view_both_ways(text: str, shape: tuple[int, ...], parts: int) -> None:
    own = layout(text)
    stored = np.random.default_rng(0).normal(size=own.stored_shape(shape))
    wholes = [own.view(stored, shape, part) for part in range(parts)]
    assert all(whole.shape == shape and np.shares_memory(whole, stored) for whole in wholes)
    back = np.empty_like(stored)
    for part, whole in enumerate(wholes):
        own.view(back, shape, part)[...] = whole
    np.testing.assert_array_equal(back, stored)


def test_each_device_reads_its_own_slice(tmp_path: Path) -> None:
    originals.saved(originals.CASES["llama"], tmp_path / "model")
    opened = directory.open_directory(tmp_path / "model")
    ours, params = huggingface.load(tmp_path / "model")
    devices = mesh.make_mesh(ParallelSettings(preset="fsdp", mesh=MeshSettings(fsdp=4)), jax.devices()[:4])
    shardings = rules.parameter_shardings(ours.core.parameters(), devices, "fsdp")
    read: dict[str, list[tuple[int, ...]]] = {}

    def watched(path: str, leaf: Leaf) -> Leaf:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            found = leaf.read(index)
            read.setdefault(path, []).append(found.shape)
            return found

        return leaf._replace(read=part)

    leaves = {path: watched(path, leaf) for path, leaf in opened.source.leaves.items()}
    shapes = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[path]) for path, leaf in leaves.items()
    }
    placed = trees.flatten(place(leaves, trees.unflatten(shapes)))
    for path, leaf in trees.flatten(params).items():
        np.testing.assert_array_equal(placed[path], leaf)
        assert placed[path].sharding.is_equivalent_to(shardings[path], leaf.ndim)
    assert set(read["layers/mlp/up"]) == {(2, 4, 24)} and set(read["embedding/tokens"]) == {(99, 4)}


def test_one_leaf_at_a_time_is_in_memory(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {**originals._GPT2, "n_embd": 256, "n_layer": 6, "n_head": 4}
    originals.hf.GPT2LMHeadModel(originals.hf.GPT2Config(**arguments)).save_pretrained(tmp_path / "model")
    opened = directory.open_directory(tmp_path / "model")
    sizes = [np.prod(leaf.shape) * leaf.dtype.itemsize for leaf in opened.source.leaves.values()]
    watched: list[int] = []

    def counted(leaf: Leaf) -> Leaf:
        def read(index: tuple[slice, ...]) -> np.ndarray:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            found = leaf.read(index)
            watched.append(tracemalloc.get_traced_memory()[1] - before - found.nbytes)
            return found

        return leaf._replace(read=read)

    tracemalloc.start()
    try:
        place({path: counted(leaf) for path, leaf in opened.source.leaves.items()})
    finally:
        tracemalloc.stop()
    # Beside the leaf itself nothing is made: the file is a memory map.
    assert max(watched) < 0.05 * max(sizes)
