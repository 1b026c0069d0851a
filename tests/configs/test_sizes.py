"""The ladder: exact counts of every size, by a formula of its own; recipes differ in nothing but their objective."""

import importlib
from pathlib import Path
from typing import Any

import jax
import pytest

from configs import base, sizes
from research import config, trees
from research.errors import UserError
from research.kernels import Pattern
from research.kernels.choice import REFERENCE
from research.models import build, flops
from research.settings import Settings
from research.settings.families import FAMILIES
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
# What the released checkpoints hold, as their publishers and `transformers` count them.
PUBLISHED = {
    "gpt2-124m": 124_439_808,
    "gpt2-355m": 354_823_168,
    "gpt2-774m": 774_030_080,
    "gpt2-1.5b": 1_557_611_200,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-70b": 68_976_648_192,
    "mistral-7b": 7_241_732_096,
    "qwen2-0.5b": 494_032_768,
    "qwen2-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "gemma-2b": 2_506_172_416,
    "gemma2-2b": 2_614_341_888,
    "gemma2-9b": 9_241_705_984,
    "mixtral-8x7b": 46_702_792_704,
    "bert-base": 109_514_298,  # with the head of masked language modelling, without pooler and pair head
    "bert-large": 335_174_458,
    "roberta-base": 124_697_433,
    "roberta-large": 355_412_057,
    "modernbert-base": 149_655_232,
    "modernbert-large": 395_881_664,
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5_v1_1-base": 247_577_856,
    # Not released: Vaswani et al. 2017 give 65 and 213 million in round numbers, over a vocabulary of about 37,000.
    "transformer-base": 63_082_496,
    "transformer-big": 214_245_376,
}
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
# What an objective needs beside its name.
NEEDED = {
    "mixture": {"objective.mixture"},
    "sentence_pairs": {"model.token_types", "model.pooler", "model.pair_head"},
    "seq2seq": {"model.architecture"},
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
    length = settings.data.sequence_length
    count = flops.count(model, flops.Work(length, Pattern(causal=True))).per(length)
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
    assert set(changed) <= LADDER_KEYS | {"objective.name"} | NEEDED.get(recipe, set())


@pytest.mark.parametrize("size", sizes.SIZES)
def test_recipes_of_a_size_differ_in_their_objective_alone(size: str) -> None:
    assert {"causal", "masked"} <= set(RECIPES)
    found: dict[str, Any] = {recipe: of(recipe, size) for recipe in RECIPES}
    for recipe, settings in found.items():
        different = config.differences(found["causal"], settings)
        assert set(different) == (set() if recipe == "causal" else {"objective.name"} | NEEDED.get(recipe, set()))
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


@pytest.mark.parametrize("size", sizes.PUBLISHED)
def test_a_published_model_has_the_parameters_that_were_published(size: str) -> None:
    recipe = base.get_config()
    sizes.set_size(recipe, size)
    settings = config.to_settings(recipe) if "t5" not in size and "transformer" not in size else with_encoder(recipe)
    model = build(settings, REFERENCE)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert trees.count(shapes) == PUBLISHED[size]
    assert sum(parameter.size for parameter in model.parameters().values()) == PUBLISHED[size]


def with_encoder(recipe: Any) -> Settings:
    recipe.objective.name = "seq2seq"
    return config.to_settings(recipe)


def test_bert_with_both_heads_is_the_whole_checkpoint() -> None:
    """109,482,240 without the head of masked language modelling, as Devlin et al. 2019 give it in round numbers."""
    recipe = base.get_config()
    sizes.set_size(recipe, "bert-base")
    recipe.model.update(pooler=True, pair_head=True)
    parameters = build(config.to_settings(recipe), REFERENCE).parameters()
    assert sum(parameter.size for parameter in parameters.values()) == 110_106_428
    body = {path: p.size for path, p in parameters.items() if not path.startswith(("head/", "pair_head/"))}
    assert sum(body.values()) == 109_482_240


def test_the_experts_of_a_token_are_the_active_parameters() -> None:
    recipe = base.get_config()
    sizes.set_size(recipe, "mixtral-8x7b")
    model = build(config.to_settings(recipe), REFERENCE)
    assert flops.count(model, flops.Work(8192, Pattern(causal=True))).active_parameters == 12_879_925_248


@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_takes_any_rung(family: str) -> None:
    recipe = base.get_config()
    sizes.set_size(recipe, f"{family}-15m")
    settings = with_encoder(recipe) if FAMILIES[family].get("architecture") == "encoder_decoder" else None
    settings = settings or config.to_settings(recipe)
    assert (settings.model.num_layers, settings.model.embed_dim, settings.train.num_steps) == (8, 320, 9000)
    assert {key: getattr(settings.model, key) for key in FAMILIES[family]} == FAMILIES[family]
