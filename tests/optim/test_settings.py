"""Keys of the optimizer that contradict one another, or say nothing, are refused in one sentence."""

from typing import Any

import pytest

from research import config
from research.errors import UserError
from research.settings import OptimizerSettings, Settings
from research.settings.optimizer import NAMES, READ_BY
from tests.small import assert_one_sentence

FREE = {"name": "schedule_free", "schedule": "constant"}


def of(**values: Any) -> Settings:
    return config.from_nested({f"optimizer.{name}": value for name, value in values.items()})


@pytest.mark.parametrize(
    ("values", "mentioned"),
    [
        ({"momentum": 0.9}, ["optimizer.momentum=0.9", "optimizer.name=adamw", "sgd"]),
        ({"name": "lion", "nesterov": True}, ["optimizer.nesterov=True", "optimizer.name=lion"]),
        ({"name": "sgd", "muon_scale": 0.5}, ["optimizer.muon_scale=0.5", "optimizer.name=sgd"]),
        ({"muon_steps": 6}, ["optimizer.muon_steps=6", "optimizer.name=adamw"]),
        ({"name": "rmsprop", "state_dtype": "bfloat16"}, ["optimizer.state_dtype=bfloat16", "optimizer.momentum"]),
        ({"name": "adafactor", "state_dtype": "bfloat16"}, ["optimizer.state_dtype=bfloat16", "optimizer.momentum"]),
        ({"name": "adamw", "state_dtype": "bfloat16", "beta1": 0.995}, ["optimizer.beta1=0.995", "at most 0.99"]),
        ({"name": "lion", "state_dtype": "bfloat16", "beta2": 0.999}, ["optimizer.beta2=0.999", "at most 0.99"]),
        ({"name": "sgd", "state_dtype": "bfloat16", "momentum": 0.999}, ["optimizer.momentum=0.999", "at most 0.99"]),
        (FREE | {"state_dtype": "bfloat16"}, ["optimizer.state_dtype=bfloat16", "schedule_free", "float32"]),
        ({"name": "schedule_free"}, ["optimizer.schedule=cosine", "optimizer.schedule=constant"]),
        (FREE | {"beta1": 0.0}, ["optimizer.beta1=0.0", "schedule_free"]),
        (FREE | {"ema_decay": 0.9}, ["optimizer.ema_decay=0.9", "schedule_free"]),
        ({"groups": "head"}, ["optimizer.groups", "'head'", "PATTERN=FACTOR"]),
        ({"groups": "head=fast"}, ["optimizer.groups", "'head=fast'", "PATTERN=FACTOR"]),
        ({"groups": "=0.5"}, ["optimizer.groups", "'=0.5'", "PATTERN=FACTOR"]),
        ({"groups": "head=0.5,norm=-1"}, ["optimizer.groups", "'norm=-1'", "at least 0"]),
        ({"groups": "head=inf"}, ["optimizer.groups", "'head=inf'"]),
        ({"groups": "head=nan"}, ["optimizer.groups", "'head=nan'"]),
        ({"groups": "(head=0.5"}, ["optimizer.groups", "'(head'", "regular expression"]),
    ],
)
def test_what_cannot_be_is_one_sentence(values: dict[str, Any], mentioned: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        of(**values)
    assert_one_sentence(str(caught.value), *mentioned)


def test_keys_are_taken_by_the_rules_that_read_them() -> None:
    given = {"momentum": 0.5, "nesterov": True, "muon_scale": 0.5, "muon_steps": 3}
    assert set(given) == set(READ_BY)
    for key, rules in READ_BY.items():
        for name in NAMES:
            values = {"name": name, "schedule": "constant", key: given[key]}
            if name in rules:
                assert of(**values)[f"optimizer.{key}"] == given[key]
            else:
                with pytest.raises(UserError, match=f"optimizer.{key}"):
                    of(**values)


def test_momentum_has_a_default_of_its_rule() -> None:
    found = {name: OptimizerSettings(name=name).momentum_or_default for name in NAMES}
    assert found == dict.fromkeys(NAMES, None) | {"sgd": 0.9, "muon": 0.95}
    assert OptimizerSettings(name="sgd", momentum=0.0).momentum_or_default == 0.0


def test_groups_are_pairs_in_their_order() -> None:
    found = OptimizerSettings(
        groups=" embedding=0.1 , layers/(attention|mlp)/.*=2,a=b=1e-3,norm=0,"
    ).learning_rate_groups
    assert found == (("embedding", 0.1), ("layers/(attention|mlp)/.*", 2.0), ("a=b", 1e-3), ("norm", 0.0))
    assert OptimizerSettings().learning_rate_groups == ()
