"""Continue a text, or fill its masks, with a trained model.

The continuation streams to the terminal. A masked model ranks candidates for each [MASK] instead; a model that was
trained to restore spans, or to fill in the middle, writes what belongs there.

examples:
  isoflop generate --workdir=runs/quickstart --prompt='Return the'
  isoflop generate --workdir=runs/quickstart --prompt='Return the' --temperature=0 --tokens=40
  isoflop generate --workdir=runs/masked --prompt='Return the [MASK] of the array.'
"""

import argparse
import dataclasses
from typing import Any

import jax

from research.cli import rundir
from research.cli.arguments import Result, add_workdir, console
from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.generate import (
    GAP,
    Candidate,
    Sampling,
    fill_masks,
    fills_gaps,
    generate,
    prompt_of,
    readable,
    writer,
)
from research.models import EncoderDecoder
from research.objectives import Objective
from research.settings import ParallelSettings
from research.train.assembly import Assembly, assemble


def epilog() -> str | None:
    """What `--help` ends with."""
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_workdir(parser, "run directory")
    parser.add_argument("--prompt", default="", help="text to continue, or text with [MASK]")
    parser.add_argument(
        "--tokens", type=int, default=None, help="new tokens at most (default: 64, or what the context holds)"
    )
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default: 0.8)")
    parser.add_argument("--top-k", type=int, default=None, help="sample from the k most probable tokens")
    parser.add_argument(
        "--top-p", type=float, default=0.95, help="sample from the most probable tokens of this total (default: 0.95)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated"
    )
    parser.add_argument("--candidates", type=int, default=5, help="ranked candidates for each mask")
    parser.add_argument("--step", type=int, default=None, help="checkpoint (default: the newest)")


def run(options: argparse.Namespace) -> Result:
    """Generates from a run directory alone."""
    if options.overrides:
        raise UserError(f"--config.{options.overrides[0][0]}: generate takes its settings from the run directory")
    for name, value, least in (("seed", options.seed, 0), ("candidates", options.candidates, 1)):
        if not least <= value < 2**32:
            raise UserError(f"--{name}={value}: must be a number from {least} to 2^32 - 1")
    if "" in options.stop:
        raise UserError("--stop= is empty: give the text to stop before")
    settings, _ = rundir.open_settings(options.workdir)
    tokenizer = rundir.open_tokenizer(options.workdir)
    alone = dataclasses.replace(settings, parallel=ParallelSettings(kernels=settings.parallel.kernels))
    assembly = assemble(alone, tokenizer.vocabulary, devices=jax.devices()[:1])
    params, step = rundir.open_parameters(options.workdir, assembly, options.step)
    objective = writer(assembly.objective)
    if objective is None:
        return fill(options, assembly, tokenizer, params, step)
    return continue_text(options, assembly, objective, tokenizer, params, step)


def continue_text(
    options: argparse.Namespace, assembly: Assembly, objective: Objective, tokenizer: Tokenizer, params: Any, step: int
) -> Result:
    """Streams the continuation of the prompt, or what belongs into its gaps."""
    sampling = Sampling(options.temperature, options.top_k, options.top_p)
    parts = encoded_parts(tokenizer, options.prompt) if fills_gaps(objective) else None
    prompt = prompt_of(objective, parts or [tokenizer.encode(options.prompt).tolist()])
    room = assembly.model.max_positions - (0 if isinstance(assembly.model, EncoderDecoder) else len(prompt.tokens))
    wanted = options.tokens if options.tokens is not None else max(1, min(64, room))
    shown = console(options)
    made: list[int] = []
    text = ""
    new_tokens = generate(
        assembly.model,
        params,
        objective.vocabulary,
        [prompt.tokens],
        max_tokens=wanted,
        sampling=sampling,
        seed=options.seed,
        prefix=prompt.prefix,
        wanted=prompt.wanted,
    )
    for tokens in new_tokens:
        if not made:
            shown.print(options.prompt, end="\n" if len(parts or "") > 1 else "", markup=False, soft_wrap=True)
        made.append(int(tokens[0]))
        whole = readable(tokenizer, objective.vocabulary, made, errors="ignore")
        ends = [whole.find(stop) for stop in options.stop if stop in whole]
        finished = bool(ends)
        whole = whole[: min(ends)] if ends else whole
        shown.print(whole[len(text) :], end="", markup=False, soft_wrap=True)
        text = whole
        if finished:
            break
    shown.print()
    return 0, {"prompt": options.prompt, "text": text, "tokens": made, "step": step}


def fill(options: argparse.Namespace, assembly: Assembly, tokenizer: Tokenizer, params: Any, step: int) -> Result:
    """Shows the candidates for each mask, and the text with the best ones."""
    tokens = encode_masked(tokenizer, options.prompt)
    ranked = fill_masks(assembly.model, params, tokenizer.vocabulary, tokens, num_candidates=options.candidates)
    found = [[{"text": tokenizer.decode([c.token]), "probability": c.probability} for c in row] for row in ranked]
    shown = console(options)
    for number, row in enumerate(found, 1):
        listed = ", ".join(f"{entry['text']!r} {entry['probability']:.1%}" for entry in row)
        shown.print(f"mask {number}: {listed}", markup=False, soft_wrap=True)
    filled = tokenizer.decode(with_best(tokens, tokenizer.vocabulary.mask, ranked))
    shown.print(filled, markup=False, soft_wrap=True)
    return 0, {"prompt": options.prompt, "text": filled, "candidates": found, "step": step}


def encode_masked(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of a text in which `[MASK]` stands for a token; a space before it belongs to that token."""
    first, *others = encoded_parts(tokenizer, text)
    return first + [token for part in others for token in (tokenizer.vocabulary.mask, *part)]


def encoded_parts(tokenizer: Tokenizer, text: str) -> list[list[int]]:
    """Token ids between the gaps of a text."""
    *parts, last = text.split(GAP)
    return [tokenizer.encode(part).tolist() for part in [*(part.removesuffix(" ") for part in parts), last]]


def with_best(tokens: list[int], mask: int, ranked: list[list[Candidate]]) -> list[int]:
    """The tokens with the first candidate in the place of each mask."""
    best = iter([row[0].token for row in ranked])
    return [next(best) if token == mask else token for token in tokens]
