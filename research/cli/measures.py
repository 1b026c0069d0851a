"""Held-out figures, baselines and samples, as the verbs compute and show them."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from research.cli.generate import encode_masked, with_best
from research.data.loader import Heldout, Loader
from research.data.prepare import Prepared
from research.data.tokenizer import Tokenizer
from research.evaluate import baselines
from research.generate import GAP, Sampling, fill_masks, fills_gaps, generate, prompt_of, readable, writer
from research.objectives.masked import Masked
from research.parallel import arrays
from research.train.assembly import Assembly

PROMPT_TOKENS = 8
GAP_TOKENS = 4
WIDTH = 24


def heldout_batches(assembly: Assembly, prepared: Prepared) -> Heldout:
    """The held-out batches of a run, this host's rows."""
    settings, size = assembly.settings, assembly.evaluation_batch
    return Heldout(
        prepared.heldout,
        prepared.tokenizer,
        seed=settings.evaluate.seed,
        batch_size=size,
        raw_length=assembly.raw_length,
        packing=settings.data.packing,
        corrupt=assembly.objective.corrupt,
        partners=assembly.objective.partners,
        max_windows=settings.evaluate.max_windows,
        rows=arrays.local_rows(size, assembly.mesh),
    )


def run_baselines(assembly: Assembly, prepared: Prepared, steps: int) -> dict[str, float]:
    """What counting reaches from the training tokens that a run of `steps` updates has seen."""
    settings = assembly.settings
    loader = Loader(
        prepared.train,
        prepared.tokenizer.vocabulary,
        seed=settings.seed,
        batch_size=settings.train.batch_size,
        accumulation=1,
        raw_length=assembly.raw_length,
        packing=settings.data.packing,
        num_tokens=settings.data.num_tokens,
        corrupt=assembly.objective.corrupt,
        num_steps=steps,
        partners=assembly.objective.partners,
    )
    heldout, objective = heldout_batches(assembly, prepared), assembly.objective
    counted = map(loader.rows_of, baselines.counted_updates(steps, settings.train.batch_size))
    asked = map(heldout.batch, range(heldout.num_batches))
    found = baselines.unigram(counted, asked, assembly.model.vocab_size)
    if not objective.has_accuracy:
        del found["unigram_accuracy"]
    if isinstance(objective, Masked):
        found["unigram_accuracy"] = baselines.unigram_accuracy(prepared, loader, heldout, steps)
    if objective.predicts_text:
        found |= baselines.ngram_bits_per_byte(prepared, loader, heldout, steps)
    return found


def show_heldout(console: Console, found: Mapping[str, Any], step: int) -> None:
    """A line a figure."""
    console.print(f"held-out after {step:,} updates", style="bold")
    names = {
        "heldout_loss": ("loss", "{:.4f} nats a target"),
        "heldout_perplexity": ("perplexity", "{:.2f}"),
        "heldout_bits_per_byte": ("bits per byte", "{:.4f}"),
        "heldout_accuracy": ("accuracy", "{:.2%}"),
    }
    for key in found:
        for kind, form in (("loss", "{:.4f} nats"), ("accuracy", "{:.2%}")):
            if key.startswith(f"heldout_{kind}_"):
                names[key] = (f"{kind} {key.removeprefix(f'heldout_{kind}_')}", form)
    for key, (name, form) in names.items():
        if found.get(key) is not None:
            console.print(f"  {name:<{WIDTH}}{form.format(found[key])}", markup=False)


def show_baselines(console: Console, counted: Mapping[str, float]) -> None:
    """A line a baseline."""
    names = {
        "unigram_loss": ("unigram", "{:.4f} nats a target, by frequency alone"),
        "unigram_accuracy": ("baseline", "{:.2%} (the most frequent token everywhere)"),
        "bigram_bits_per_byte": ("bigram", "{:.4f} bits per byte, counted on the same training tokens"),
        "trigram_bits_per_byte": ("3-gram", "{:.4f}"),
    }
    for key, (name, form) in names.items():
        if key in counted:
            console.print(f"  {name:<{WIDTH}}{form.format(counted[key])}", markup=False, soft_wrap=True)


def samples(assembly: Assembly, prepared: Prepared, params: Any) -> list[dict[str, str]]:
    """`{"prompt", "text"}` of a few samples: continued beginnings of held-out documents, or filled gaps in them."""
    settings, tokenizer = assembly.settings, prepared.tokenizer
    texts = beginnings(prepared, settings.evaluate.num_samples, settings.data.sequence_length)
    objective = writer(assembly.objective)
    if not texts:
        return []
    if objective is None:
        return [filled(assembly, tokenizer, params, tokens) for tokens in texts]
    if fills_gaps(objective):
        parts = [[tokens[: len(tokens) // 2], tokens[len(tokens) // 2 + GAP_TOKENS :]] for tokens in texts]
    else:
        parts = [[tokens[:PROMPT_TOKENS]] for tokens in texts]
    prompts = [prompt_of(objective, part) for part in parts]
    longest = max(len(prompt.tokens) for prompt in prompts)
    made: list[list[int]] = [[] for _ in prompts]
    for new in generate(
        assembly.model,
        params,
        objective.vocabulary,
        [prompt.tokens for prompt in prompts],
        max_tokens=max(1, min(settings.evaluate.sample_tokens, assembly.model.max_positions - longest)),
        sampling=Sampling(temperature=0.8, top_p=0.95),
        seed=settings.evaluate.seed,
        prefix=prompts[0].prefix,
        wanted=prompts[0].wanted,
    ):
        for row, token in zip(made, new.tolist(), strict=True):
            row.append(token)
    return [
        {
            "prompt": GAP.join(tokenizer.decode(part) for part in written),
            "text": ("\n" if len(written) > 1 else "") + readable(tokenizer, objective.vocabulary, row),
        }
        for written, row in zip(parts, made, strict=True)
    ]


def beginnings(prepared: Prepared, count: int, longest: int) -> list[list[int]]:
    """The first tokens of the first held-out documents that are long enough to be continued."""
    offsets = prepared.heldout.document_offsets
    found: list[list[int]] = []
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        if len(found) == count:
            break
        if stop - start > 3 * PROMPT_TOKENS:
            found.append(prepared.heldout.read(start, min(stop - 1, start + min(longest, 3 * PROMPT_TOKENS))).tolist())
    return found


def filled(assembly: Assembly, tokenizer: Tokenizer, params: Any, tokens: list[int]) -> dict[str, str]:
    """A held-out beginning with one word masked, and what the model puts there."""
    words = tokenizer.decode(tokens).split(" ")
    places = [place for place, word in enumerate(words) if word.isalpha() and place > 1] or [len(words) // 2]
    place = places[len(places) // 2]
    prompt = " ".join([*words[:place], GAP, *words[place + 1 :]])
    masked = encode_masked(tokenizer, prompt)[: assembly.model.max_positions]
    ranked = fill_masks(assembly.model, params, tokenizer.vocabulary, masked, num_candidates=3)
    best = tokenizer.decode(with_best(masked, tokenizer.vocabulary.mask, ranked))
    candidates = ", ".join(f"{tokenizer.decode([c.token])!r} {c.probability:.0%}" for c in ranked[0])
    return {"prompt": prompt, "text": f"{best}  [{candidates}; in the text: {words[place]!r}]"}
