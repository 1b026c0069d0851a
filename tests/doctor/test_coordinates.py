"""The coordinate check: exponents, widths, and the verb with its page."""

import json
from pathlib import Path

import numpy as np
import pytest

from research import config
from research.cli.main import main
from research.doctor import coordinates
from research.doctor.coordinates_page import spread
from research.errors import UserError
from tests.small import assert_one_sentence

TINY = [
    "--config=configs/causal.py:tiny",
    "--config.tokenizer.vocab_size=320",
    "--config.data.sequence_length=16",
    "--config.model.num_layers=1",
    "--config.model.embed_dim=16",
    "--config.model.parametrisation=mup",
    "--config.model.base_width=16",
]


def test_exponents_are_those_of_powers() -> None:
    widths = (64, 128, 512)
    assert coordinates.slope(widths, 3.0 * np.asarray(widths, np.float64) ** -0.5) == pytest.approx(-0.5)
    given = {"stream 1": 0.3, "stream 2": -0.3, "mlp 1": 0.1, "logits": -0.6}
    assert set(coordinates.off(given, 0.2)) == {"stream 1", "stream 2"}
    assert set(coordinates.off({"logits": 0.3}, 0.2)) == {"logits"} == set(coordinates.off({"logits": -0.8}, 0.2))


@pytest.mark.parametrize("growth", coordinates.GROWTHS)
def test_a_wider_model_has_more_heads_or_wider_ones(growth: str) -> None:
    base = config.to_settings(config.load_recipe("configs/causal.py:tiny"))
    wide = coordinates.at_width(base, 512, growth).model
    assert wide.embed_dim == 512 and wide.num_layers == base.model.num_layers
    expected = (16, 32) if growth == "heads" else (4, 128)
    assert (wide.num_heads, wide.head_width) == expected


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    base = config.to_settings(config.load_recipe("configs/causal.py:tiny"))
    with pytest.raises(UserError) as caught:
        coordinates.at_width(base, 80, "heads")
    assert_one_sentence(str(caught.value), "--widths=80", "model.num_heads")


def test_labels_keep_their_distance() -> None:
    places = spread([10.0, 12.0, 300.0, 11.0])
    assert np.all(np.diff(sorted(places)) >= 13.0) and places[0] < places[3] < places[1] < places[2]


def test_the_verb_measures_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "there" / "page.html"
    status = main(["coordinates", *TINY, "--widths=16,32", "--steps=1", "--tolerance=9", f"--output={page}", "--json"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert status == 0 and told["holds"] and set(told["measured"]) == {"standard", "mup"}
    of = told["measured"]["mup"]
    assert of["activations"] == ["stream 0", "queries 1", "mlp 1", "mlp 2", "stream 1", "logits"]
    assert np.all(np.asarray(of["changes"])[:, 0] == 0.0) and np.all(np.asarray(of["changes"])[:, 1] > 0.0)
    # At the base the two are one model.
    assert of["changes"][0] == told["measured"]["standard"]["changes"][0]
    text = page.read_text()
    assert text.count("<svg") == 2 and "{{" not in text and "<script" not in text


def test_one_width_makes_no_slope(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coordinates", *TINY, "--widths=16"]) == 2
    assert "--widths=16" in capsys.readouterr().err
    assert main(["coordinates", *TINY, "--widths=a"]) == 2
    assert "--widths=a" in capsys.readouterr().err
