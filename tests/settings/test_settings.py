"""Every key refuses, in one sentence that names it, what it cannot be; keys that contradict each other name both."""

import dataclasses
import math

import pytest

from research import config
from research.errors import UserError
from research.settings import AXES, Key, MeshSettings, Settings, check_value
from tests.small import assert_one_sentence

KEYS = list(config.KEYS.values())
INTEGERS = [key for key in KEYS if int in key.types]
NUMBERS = [key for key in KEYS if float in key.types]
TEXTS = [key for key in KEYS if str in key.types]
FLAGS = [key for key in KEYS if bool in key.types]


def named(key: Key) -> str:
    return key.name


def refused(key: Key, value: object) -> str:
    with pytest.raises(UserError) as caught:
        config.from_nested({key.name: value})
    assert_one_sentence(str(caught.value), key.name)
    return str(caught.value)


def test_every_key_has_one_kind_a_meaning_and_a_default_that_it_accepts() -> None:
    assert len(INTEGERS) + len(NUMBERS) + len(TEXTS) + len(FLAGS) == len(KEYS)
    for key in KEYS:
        assert key.metadata["meaning"], key.name
        assert check_value(key, key.default) == key.default, key.name
        assert key.metadata["resumable"] or not key.metadata["execution"], key.name
        assert not key.metadata["choices"] or key.default in key.metadata["choices"], key.name


@pytest.mark.parametrize("key", INTEGERS, ids=named)
def test_integer_keys_refuse_what_is_no_integer_and_what_is_out_of_bounds(key: Key) -> None:
    for value in ("many", "12", 1.5, 1e4, math.nan, True, [1]):
        assert "integer" in refused(key, value)
    assert key.metadata["minimum"] is not None, f"{key.name}: how small may it be?"
    assert str(key.metadata["minimum"]) in refused(key, key.metadata["minimum"] - 1)
    if key.metadata["maximum"] is not None:
        assert str(key.metadata["maximum"]) in refused(key, key.metadata["maximum"] + 1)


@pytest.mark.parametrize("key", NUMBERS, ids=named)
def test_number_keys_refuse_what_is_no_finite_number_and_what_is_out_of_bounds(key: Key) -> None:
    for value in ("many", "0.1", False, [0.1]):
        assert "number" in refused(key, value)
    for value in (math.nan, math.inf, -math.inf):
        assert "finite" in refused(key, value)
    assert key.metadata["minimum"] is not None, f"{key.name}: how small may it be?"
    refused(key, key.metadata["minimum"] - 1e-12 - 1e-6 * abs(key.metadata["minimum"]))
    if key.metadata["maximum"] is not None:
        refused(key, key.metadata["maximum"] * 1.001)


@pytest.mark.parametrize("key", NUMBERS, ids=named)
def test_number_keys_take_whole_numbers_as_floats(key: Key) -> None:
    within = [n for n in (0, 1) if key.metadata["minimum"] <= n <= (key.metadata["maximum"] or math.inf)]
    for whole in within:
        assert type(check_value(key, whole)) is float


@pytest.mark.parametrize("key", [*TEXTS, *FLAGS], ids=named)
def test_text_and_flags_refuse_other_types_and_other_choices(key: Key) -> None:
    wrong = [1, 0.5, "yes"] if bool in key.types else [1, 0.5, True]
    for value in wrong:
        assert key.type_name in refused(key, value)
    if key.metadata["choices"]:
        message = refused(key, "something else")
        assert all(choice in message for choice in key.metadata["choices"])


@pytest.mark.parametrize("key", KEYS, ids=named)
def test_none_is_accepted_exactly_where_it_is_a_value(key: Key) -> None:
    if type(None) in key.types:
        assert config.from_nested({key.name: None})[key.name] is None
    else:
        refused(key, None)


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"model.embed_dim": 130}, ["model.embed_dim=130", "model.num_heads=4"]),
        ({"model.num_kv_heads": 3}, ["model.num_kv_heads=3", "model.num_heads=4"]),
        ({"model.num_kv_heads": 8}, ["model.num_kv_heads=8", "model.num_heads=4"]),
        ({"model.embed_dim": 20}, ["model.position=rotary", "model.head_dim"]),
        ({"model.head_dim": 7}, ["model.position=rotary", "model.head_dim"]),
        (
            {"objective.mask_token_rate": 0.8, "objective.random_token_rate": 0.3},
            ["objective.mask_token_rate", "objective.random_token_rate"],
        ),
        ({"train.batch_size": 32, "train.accumulation": 5}, ["train.accumulation=5", "train.batch_size=32"]),
        ({"train.num_steps": 10, "optimizer.warmup_steps": 11}, ["optimizer.warmup_steps=11", "train.num_steps=10"]),
        (
            {"optimizer.schedule": "wsd", "train.num_steps": 10, "optimizer.decay_steps": 11},
            ["optimizer.decay_steps=11", "train.num_steps=10"],
        ),
        (
            {
                "optimizer.schedule": "wsd",
                "train.num_steps": 10,
                "optimizer.warmup_steps": 6,
                "optimizer.decay_steps": 5,
            },
            ["optimizer.warmup_steps=6", "optimizer.decay_steps=5", "train.num_steps=10"],
        ),
        (
            {"model.architecture": "lstm", "model.num_experts": 4},
            ["model.num_experts=4", "model.architecture=lstm"],
        ),
        ({"data.source": "text"}, ["data.path", "data.source=text"]),
        ({"data.source": "jsonl"}, ["data.path", "data.source=jsonl"]),
    ],
)
def test_contradictions_are_one_sentence_that_names_the_keys(changes: dict, keys: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        config.from_nested(changes)
    assert_one_sentence(str(caught.value), *keys)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.embed_dim": 130, "model.head_dim": 32},
        {"model.head_dim": 7, "model.position": "learned"},
        {"model.num_kv_heads": 1},
        {"objective.mask_token_rate": 0.9, "objective.random_token_rate": 0.1},
        {"train.num_steps": 10, "optimizer.warmup_steps": 10},
        {
            "optimizer.schedule": "wsd",
            "train.num_steps": 10,
            "optimizer.warmup_steps": 5,
            "optimizer.decay_steps": 5,
        },
        {"train.num_steps": 1},
        {"train.num_steps": 1, "optimizer.schedule": "wsd"},
    ],
)
def test_what_just_fits_is_accepted(changes: dict) -> None:
    settings = config.from_nested(changes)
    assert {name: settings[name] for name in changes} == changes


def test_settings_are_checked_however_they_are_made() -> None:
    good = Settings()
    with pytest.raises(UserError, match=r"train\.num_steps=0"):
        dataclasses.replace(good, train=dataclasses.replace(good.train, num_steps=0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        good.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(("embed", "hidden"), [(24, 64), (96, 256), (128, 384), (4096, 10944)])
def test_a_gated_mlp_has_the_width_of_a_plain_one_rounded_up(embed: int, hidden: int) -> None:
    model = dataclasses.replace(Settings().model, embed_dim=embed)
    assert model.mlp_width == hidden
    assert 0 <= hidden - 8 * embed / 3 < 64
    assert dataclasses.replace(model, activation="gelu").mlp_width == 4 * embed
    assert dataclasses.replace(model, mlp_dim=7).mlp_width == 7


def test_every_mesh_axis_has_a_key() -> None:
    assert tuple(field.name for field in dataclasses.fields(MeshSettings)) == AXES
