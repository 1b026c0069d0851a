"""The critical batch: known ones are found, intervals cover them, and what cannot say is refused."""

from typing import Any

import numpy as np
import pytest

from research.errors import UserError
from research.scaling.batch import NOISE, SIGNAL, Reached, critical_batch, reached, sentence, summary, trade_off
from research.scaling.bootstrap import Sampling, UnidentifiedError
from tests.small import assert_one_sentence

TOKENS, SCALE = 1024, 5000.0


def rows(updates: int, seed: int = 0, *, scale: float = SCALE, noise: float = 1.0) -> list[dict[str, Any]]:
    """Of a run whose noise scale is `scale` tokens throughout, while the gradient shrinks."""
    rng = np.random.default_rng(seed)
    found = []
    for step in range(1, updates + 1):
        square = 4.0 / (1 + step / updates)
        own = square * scale / TOKENS
        estimates = {SIGNAL: square + noise * own * rng.normal(), NOISE: own * (1 + 0.1 * noise * rng.normal())}
        found.append({"step": step, "tokens_seen": step * TOKENS, **estimates})
    return found


def test_the_noise_scale_is_that_of_the_gradients_and_its_interval_covers_it() -> None:
    exact = critical_batch(rows(100, noise=0.0))
    assert exact.value == pytest.approx(SCALE) and exact.low <= SCALE * 1.001 and exact.high >= SCALE * 0.999
    found = [critical_batch(rows(1600, seed)) for seed in range(200)]
    assert 0.9 <= np.mean([one.covers(SCALE) for one in found]) <= 0.99
    assert np.median([one.high / one.low for one in found]) < 4.0


def test_it_is_of_the_end_of_a_run_and_of_rows_that_measured_it() -> None:
    early = [row | {NOISE: row[NOISE] / 10} for row in rows(200, noise=0.0)]
    second = rows(200, noise=0.3)
    late = [row | {"step": row["step"] + 200, "tokens_seen": row["tokens_seen"] + 200 * TOKENS} for row in second]
    assert critical_batch(early + late).value == critical_batch(late, last=1.0).value
    assert critical_batch(early + late, last=1.0).value < 0.8 * critical_batch(early + late).value
    gaps = [row if row["step"] % 2 else {"step": row["step"]} for row in early]
    torn = [*gaps, {"step": 201, "tokens_seen": 201 * TOKENS, SIGNAL: float("nan"), NOISE: 1.0}]
    assert critical_batch(torn).value == pytest.approx(SCALE / 10)


@pytest.mark.parametrize(
    ("given", "mentioned"),
    [
        ([{"step": 1, "tokens_seen": 10}], ["train.noise_scale", "train.accumulation"]),
        (rows(40), ["20 updates", "60"]),
        (rows(100, noise=30.0), ["1,024 tokens", "no upper end"]),
    ],
)
def test_what_tells_no_noise_scale_is_refused(given: list[dict[str, Any]], mentioned: list[str]) -> None:
    with pytest.raises(UnidentifiedError) as caught:
        critical_batch(given)
    assert_one_sentence(str(caught.value), *mentioned)
    told = summary(given)
    assert told["noise_scale_tokens"] is None and told["noise_scale_refused"] == str(caught.value)
    assert str(caught.value) in sentence(told)


def test_a_summary_says_it_in_tokens() -> None:
    told = summary(rows(1000))
    assert told["noise_scale_low"] < told["noise_scale_tokens"] < told["noise_scale_high"]
    assert "a batch has 1,024" in sentence(told | {"tokens_seen": 1024 * 1000, "step": 1000})
    assert sentence({"step": 3}) == ""


# --- several batches --------------------------------------------------------------------------------------------------

BATCHES = 256.0 * 2.0 ** np.arange(8)
LEAST = 300.0  # updates


def runs(seed: int = 0, noise: float = 0.05, batches: Any = BATCHES) -> list[Reached]:
    scatter = noise * np.random.default_rng(seed).normal(size=len(batches))
    return [Reached(*pair) for pair in zip(batches, LEAST * (1 + SCALE / batches) * np.exp(scatter), strict=True)]


def test_the_trade_off_is_the_one_that_the_runs_follow() -> None:
    exact = trade_off(runs(noise=0.0), target=3.0)
    assert exact.critical.value == pytest.approx(SCALE, rel=1e-3)
    assert exact.min_steps.value == pytest.approx(LEAST, rel=1e-3)
    assert exact.min_tokens.value == pytest.approx(LEAST * SCALE, rel=1e-3)
    assert exact.scatter < 1e-4 and "critical batch to a loss of 3: 5,00" in exact.sentence()
    for batch, steps in exact.runs:
        tokens = batch * exact.steps(batch)
        hyperbola = (exact.steps(batch) / exact.min_steps.value - 1) * (tokens / exact.min_tokens.value - 1)
        assert exact.steps(batch) == pytest.approx(steps, rel=1e-3) and hyperbola == pytest.approx(1.0, rel=1e-3)


def test_its_interval_covers_the_critical_batch() -> None:
    found = [trade_off(runs(seed), sampling=Sampling(draws=200)) for seed in range(100)]
    assert 0.85 <= np.mean([one.critical.covers(SCALE) for one in found]) <= 1.0
    assert np.median([one.critical.high / one.critical.low for one in found]) < 2.0


@pytest.mark.parametrize(
    ("given", "mentioned"),
    [
        ([], ["0 batches"]),
        (runs()[:3], ["3 batches", "4 or more"]),
        (runs(batches=np.array([1.0, 2.0, 3.0, 4.0]) * SCALE), ["4 times", "factor of 8"]),
        ([Reached(batch, 1e6 / batch) for batch in BATCHES], ["far below", "larger"]),
        ([Reached(batch, LEAST) for batch in BATCHES], ["far above", "smaller"]),
        (runs(batches=BATCHES / 200), ["critical"]),
    ],
)
def test_batches_that_do_not_tell_are_refused(given: list[Reached], mentioned: list[str]) -> None:
    with pytest.raises(UnidentifiedError) as caught:
        trade_off(given)
    assert_one_sentence(str(caught.value), *mentioned)


def cells(rates: tuple[float, ...] = (1e-3, 2e-3), seeds: int = 2) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A sweep over batches and rates whose losses fall as the logarithm of the share of the way that is gone."""
    told, curves = [], {}
    for batch in BATCHES:
        for rate in rates:
            for seed in range(seeds):
                name = f"{batch:.0f} {rate} {seed}"
                needed = LEAST * (1 + SCALE / batch) * (1.0 if rate == rates[0] else 1.3) * (1 + 0.01 * seed)
                steps = np.geomspace(needed / 50, 2 * needed, 40)
                curves[name] = {"heldout_step": steps, "heldout_loss": 3.0 - 0.1 * np.log(steps / needed)}
                length = {"step": 100, "tokens_seen": 100 * int(batch)}
                told.append({"id": name, "point": {"optimizer.learning_rate": rate, "seed": seed}, **length})
    return told, curves


def test_of_each_batch_the_fastest_rate_counts_with_all_its_seeds() -> None:
    told, curves = cells()
    found, target = reached(told, curves, target=3.0)
    assert target == 3.0 and len(found) == 2 * len(BATCHES)
    expected = [LEAST * (1 + SCALE / batch) * (1 + 0.01 * seed) for batch in BATCHES for seed in range(2)]
    np.testing.assert_allclose([run.steps for run in found], expected, rtol=1e-6)
    assert trade_off(found, target).critical.value == pytest.approx(SCALE, rel=1e-2)
    # Without a target: what all batches reach.
    found, target = reached(told, curves)
    assert target == pytest.approx(3.0 - 0.1 * np.log(2.0)) and len(found) == 2 * len(BATCHES)


@pytest.mark.parametrize(("target", "mentioned"), [(1.0, "raise target"), (9.0, "lower target")])
def test_a_loss_that_no_run_crosses_is_refused(target: float, mentioned: str) -> None:
    with pytest.raises(UserError) as caught:
        reached(*cells(), target=target)
    assert_one_sentence(str(caught.value), mentioned, "256 tokens")
    with pytest.raises(UserError, match="measure='loss'"):
        reached([], {})
