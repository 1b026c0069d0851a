"""The ladder: exact counts of every size, by a formula of its own; recipes differ in nothing but their objective."""

import importlib
from pathlib import Path
from typing import Any

import jax
import pytest

from configs import sizes
from research import config, trees
from research.errors import UserError
from research.kernels.choice import REFERENCE
from research.models import build, flops
from research.settings import Settings
from tests.small import assert_one_sentence

RECIPES = sorted(
    path.stem
    for path in Path(sizes.__file__).parent.glob("*.py")
    if path.stem not in {"__init__", "base"} and hasattr(importlib.import_module(f"configs.{path.stem}"), "get_config")
)

# size: parameters, and training operations a token at the size's own sequence length.
COUNTS = {
    "tiny": (688_768, 4_521_984),
    "5m": (4_893_120, 32_882_688),
    "15m": (14_751_040, 104_202_240),
    "30m": (29_770_944, 206_094_336),
    "60m": (60_471_360, 447_676_416),
    "125m": (123_685_632, 855_244_800),
    "350m": (341_099_520, 2_650_275_840),
    "760m": (757_016_064, 5_447_614_464),
    "1b": (1_100_048_384, 7_313_817_600),
    "3b": (3_426_473_600, 21_988_147_200),
    "7b": (6_738_415_616, 46_084_915_200),
    "13b": (13_015_864_320, 87_175_987_200),
    "70b": (68_976_648_192, 444_491_366_400),
}
# Touvron et al. 2023, and the checkpoints that Meta published.
LLAMA_2 = {"7b": 6_738_415_616, "13b": 13_015_864_320, "70b": 68_976_648_192}
LADDER_KEYS = {
    "model.num_layers",
    "model.embed_dim",
    "model.num_heads",
    "model.num_kv_heads",
    "model.mlp_dim",
    "model.tied_embeddings",
    "tokenizer.vocab_size",
    "data.sequence_length",
    "train.batch_size",
    "train.num_steps",
    "optimizer.learning_rate",
    "optimizer.beta2",
}


def of(recipe: str, size: str) -> Settings:
    return config.to_settings(importlib.import_module(f"configs.{recipe}").get_config(size))


def by_hand(size: str) -> tuple[int, int]:
    """Parameters and operations of a decoder with gated MLP, RMSNorm and rotary positions."""
    layers, embed, heads, groups, mlp, vocab, sequence, tied, *_ = sizes.SIZES[size]
    groups, mlp = groups or heads, mlp or 384
    head = embed // heads
    products = layers * (2 * embed * heads * head + 2 * embed * groups * head + 3 * embed * mlp)
    norms = (2 * layers + 1) * embed
    parameters = vocab * embed * (1 if tied else 2) + products + norms
    forward = 2 * (products + vocab * embed) + layers * 2 * (2 * sequence * heads * head)  # scores, weighted values
    return parameters, 3 * forward


@pytest.mark.parametrize("size", sizes.SIZES)
def test_parameters_and_operations_of_a_size(size: str) -> None:
    settings = of("causal", size)
    model = build(settings, REFERENCE)
    count = flops.count(model, settings.data.sequence_length, causal=True)
    assert (count.parameters, count.model_flops) == COUNTS[size] == by_hand(size)
    assert trees.count(jax.eval_shape(model.init, jax.random.key(0))) == count.parameters


def test_every_size_is_pinned_and_larger_than_the_one_before() -> None:
    ladder = ["tiny", "5m", "15m", "30m", "60m", "125m", "350m", "760m", "1b", "3b", "7b", "13b", "70b"]
    assert list(sizes.SIZES) == list(COUNTS) == ladder
    assert {size: COUNTS[size][0] for size in LLAMA_2} == LLAMA_2
    parameters = [COUNTS[size][0] for size in ladder]
    assert parameters == sorted(parameters)
    units = {"m": 1e6, "b": 1e9}
    for size in ladder[1:]:
        nominal = float(size[:-1]) * units[size[-1]]
        assert 0.85 * nominal < COUNTS[size][0] < 1.2 * nominal, size
        train, data = of("causal", size).train, of("causal", size).data
        seen = train.num_steps * train.batch_size * data.sequence_length
        assert 18 < seen / COUNTS[size][0] < 22, f"{size}: about twenty tokens a parameter"


@pytest.mark.parametrize("size", sizes.SIZES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_has_every_size_and_sets_nothing_else(recipe: str, size: str) -> None:
    changed = config.differences(Settings(), of(recipe, size))
    assert set(changed) <= LADDER_KEYS | {"objective.name"}


@pytest.mark.parametrize("size", sizes.SIZES)
def test_recipes_of_a_size_differ_in_their_objective_alone(size: str) -> None:
    assert {"causal", "masked"} <= set(RECIPES)
    found: dict[str, Any] = {recipe: of(recipe, size) for recipe in RECIPES}
    for recipe, settings in found.items():
        different = config.differences(found["causal"], settings)
        assert {name.split(".")[0] for name in different} == (set() if recipe == "causal" else {"objective"})
        assert settings.objective.name == recipe


@pytest.mark.parametrize("recipe", [*RECIPES, "base"])
def test_a_recipe_is_found_by_its_file_and_is_locked(recipe: str) -> None:
    path = Path(sizes.__file__).parent / f"{recipe}.py"
    loaded = config.load_recipe(str(path))
    assert config.to_settings(loaded) == (Settings() if recipe == "base" else of(recipe, "tiny"))
    with pytest.raises(AttributeError):
        loaded.model.width = 3
    if recipe != "base":
        assert config.to_settings(config.load_recipe(f"{path}:70b")) == of(recipe, "70b")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_size_that_is_not_on_the_ladder_is_one_sentence(recipe: str) -> None:
    path = Path(sizes.__file__).parent / f"{recipe}.py"
    with pytest.raises(UserError) as caught:
        config.load_recipe(f"{path}:125M")
    assert_one_sentence(str(caught.value), "'125M'", *sizes.SIZES)


def test_any_key_of_a_recipe_can_be_overridden() -> None:
    recipe = config.load_recipe(str(Path(sizes.__file__).parent / "causal.py:125m"))
    for name, text in (("model.embed_dim", "960"), ("model.num_kv_heads", "none"), ("model.mlp_dim", "none")):
        config.override(recipe, name, text)
    settings = config.to_settings(recipe)
    assert (settings.model.embed_dim, settings.model.kv_heads, settings.model.mlp_width) == (960, 12, 2560)
