"""A sweep whose law is known: rows, curves, answers and settings as a finished sweep has them."""

from typing import Any

import numpy as np

LAW = {"E": 1.2, "A": 60.0, "alpha": 0.36, "B": 120.0, "beta": 0.34}
WIDTHS = (24, 48, 64, 96, 128, 192)
BUDGETS = (1e12, 3e12, 1e13, 3e13)


def loss(parameters: float, tokens: float) -> float:
    return LAW["E"] + LAW["A"] / parameters ** LAW["alpha"] + LAW["B"] / tokens ** LAW["beta"]


def row(cell: str, name: str, point: dict[str, Any], parameters: float, tokens: float, value: float) -> dict[str, Any]:
    return {
        "id": cell,
        "name": name,
        "point": point,
        "state": "done",
        "seed": point.get("seed", 0),
        "objective": "causal",
        "parameters": int(parameters),
        "non_embedding_parameters": int(parameters * 0.7),
        "tokens_seen": int(tokens),
        "model_flops": 6.0 * parameters * tokens,
        "required_flops": 5.8 * parameters * tokens,
        "bits_per_byte": value,
        "heldout_loss": value * 2.02,
        "train_loss": value * 2.0,
        "wall_seconds": 6 * parameters * tokens / 4e10,
        "core_hours": 2 * 6 * parameters * tokens / 4e10 / 3600,
        "attempts": 1,
        "reason": None,
        "held_out": False,
        "data_hash": "f7f8dfa789906501",
        "config_hash": f"{cell}abcdef",
        "commit": "c0ffee",
        "versions": {"jax": "0.10.2", "python": "3.11.7"},
    }


def curve(found: dict[str, Any], steps: int = 80, seed: int = 0) -> dict[str, Any]:
    """As `research.sweeps.rows.curves_of` gives them."""
    draws = np.random.default_rng(seed)
    step = np.arange(1, steps + 1) * 10.0
    tokens = found["tokens_seen"] * step / step[-1]
    bits = np.array([loss(found["parameters"], max(some, 2e4)) for some in tokens])
    bits[-1] = found["bits_per_byte"]
    nats = 2.0 * bits + draws.normal(0, 0.02, steps)
    places = np.arange(steps // 10 - 1, steps, steps // 10)
    return {
        "step": step,
        "tokens_seen": tokens,
        "model_flops": found["model_flops"] * step / step[-1],
        "seconds": found["wall_seconds"] * step / step[-1],
        "loss": nats,
        "heldout_step": step[places],
        "heldout_loss": nats[places],
        "heldout_bits_per_byte": bits[places],
    }


def ladder(
    seeds: int = 2,
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Sizes x budgets x seeds: sweep, rows, curves, answers, settings."""
    draws, rows, curves, settings = np.random.default_rng(0), [], {}, {}
    for budget in BUDGETS:
        for width in WIDTHS:
            parameters = 12 * 4 * width**2 + 2048 * width
            for seed in range(seeds):
                cell = f"{len(rows):010x}"
                tokens = budget / 6 / parameters
                value = loss(parameters, tokens) + float(draws.normal(0, 0.004))
                point = {
                    "model.embed_dim": width,
                    "model.num_heads": width // 16,
                    "train.num_steps": int(tokens // 1024),
                    "seed": seed,
                }
                rows.append(
                    row(cell, f"{width} wide, {budget:.0e} FLOPs, seed {seed}", point, parameters, tokens, value)
                )
                curves[cell] = curve(rows[-1], seed=len(rows))
                settings[cell] = {
                    "model.num_layers": 4,
                    "optimizer.learning_rate": 4e-3,
                    "data.source": "docs",
                    **point,
                }
    sweep = {
        "question": "How large should a model be for its compute?",
        "recipe": "configs/causal.py:tiny",
        "yardstick": "bits_per_byte",
        "created": "2026-01-01T09:58:00Z",
        "sweep_hash": "ab12cd34",
    }
    return sweep, rows, curves, answers(rows), settings


def answers(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What fits of these rows give, by the law itself."""
    alpha, beta = LAW["alpha"], LAW["beta"]
    ratio = (alpha * LAW["A"] / beta / LAW["B"]) ** (1 / (alpha + beta))

    def around(value: float, share: float) -> dict[str, float]:
        return {"value": value, "low": value * (1 - share), "high": value * (1 + share)}

    frontier, parabolas = [], []
    for flops in np.geomspace(BUDGETS[0], 10 * BUDGETS[-1], 25):
        best = ratio * (flops / 6) ** (beta / (alpha + beta))
        share = 0.05 + 0.05 * abs(np.log10(flops / 1e13))
        frontier.append(
            {
                "flops": float(flops),
                "parameters": around(best, share),
                "tokens": around(flops / 6 / best, share),
                "loss": around(loss(best, flops / 6 / best), 0.01 * share / 0.05),
            }
        )
    for budget in BUDGETS:
        own = [found for found in rows if abs(found["model_flops"] / budget - 1) < 0.1]
        x, y = np.log([f["parameters"] for f in own]), np.array([f["bits_per_byte"] for f in own])
        c2, c1, c0 = np.polyfit(x, y, 2)
        grid = np.linspace(x.min() - 0.2, x.max() + 0.2, 41)
        least = float(np.exp(-c1 / 2 / c2))
        parabolas.append(
            {
                "flops": budget,
                "curve": [[float(np.exp(a)), float(c0 + c1 * a + c2 * a * a)] for a in grid],
                "minimum": {
                    "parameters": least,
                    "low": least * 0.85,
                    "high": least * 1.2,
                    "loss": float(c0 - c1**2 / 4 / c2),
                },
                "cells": [f["name"] for f in own],
            }
        )
    surface = {name: around(value, 0.06) for name, value in LAW.items()} | {"a": around(beta / (alpha + beta), 0.05)}
    isoflop = {"form": "log N* = k + a log C", "estimates": {"a": around(0.49, 0.05)}, "parabolas": parabolas}
    parametric = {"form": "E + A/N^alpha + B/D^beta", "estimates": surface, "frontier": frontier}
    count, last = {"count": "parameters"}, rows[-1]["bits_per_byte"]
    hit = {
        "cell": rows[-1]["name"],
        "predicted": last + 0.01,
        "low": last - 0.03,
        "high": last + 0.05,
        "measured": last,
    }
    miss = {"cell": rows[-3]["name"], "predicted": 2.2, "low": 2.18, "high": 2.22, "measured": 2.25}
    return {
        "answer": "Parameters should grow as compute to the 0.49 (0.46 to 0.51, 95 %): about as fast as tokens.",
        "confidence": 0.95,
        "fits": [
            {"name": "isoflop", **count, **isoflop},
            {"name": "parametric", **count, **parametric},
            {"name": "kaplan", **count, "refused": "the runs have a floor that this form lacks"},
        ],
        "predictions": [hit, miss],
        "verdicts": [
            verdict("queries and keys normalised", -0.012, 0.006, 0.008, "better", "lower in every pair"),
            verdict("weight decay 0", 0.003, 0.008, 0.41, "inconclusive", "9 more seeds would settle it"),
            verdict("rate x 4", 0.03, 0.009, 0.0004, "worse", ""),
        ],
    }


def verdict(name: str, effect: float, reach: float, p: float, word: str, sentence: str) -> dict[str, Any]:
    ends = {"low": effect - reach, "high": effect + reach}
    told = {"p_adjusted": p, "seeds": 5, "verdict": word, "sentence": sentence}
    return {"name": name, "against": "baseline", "effect": effect, **ends, **told}
