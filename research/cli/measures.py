"""Held-out figures, baselines and samples, as the verbs compute and show them."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from research.cli.generate import encode_masked, with_best
from research.data.loader import Heldout, Loader
from research.data.prepare import Prepared
from research.data.tokenizer import Tokenizer
from research.evaluate import baselines
from research.generate import Sampling, fill_masks, generate
from research.parallel import arrays
from research.train.assembly import Assembly

PROMPT_TOKENS = 8


def heldout_batches(assembly: Assembly, prepared: Prepared) -> Heldout:
    """The held-out batches of a run, this host's rows."""
    settings, size = assembly.settings, assembly.evaluation_batch
    return Heldout(
        prepared.heldout,
        prepared.tokenizer,
        seed=settings.evaluate.seed,
        batch_size=size,
        raw_length=assembly.objective.raw_length(settings.data.sequence_length),
        packing=settings.data.packing,
        corrupt=assembly.objective.corrupt,
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
        raw_length=assembly.objective.raw_length(settings.data.sequence_length),
        packing=settings.data.packing,
        num_tokens=settings.data.num_tokens,
        corrupt=assembly.objective.corrupt,
    )
    heldout = heldout_batches(assembly, prepared)
    if assembly.objective.name == "masked":
        return {"unigram_accuracy": baselines.unigram_accuracy(prepared, loader, heldout, steps)}
    return baselines.ngram_bits_per_byte(prepared, loader, heldout, steps)


def show_heldout(console: Console, found: Mapping[str, Any], step: int) -> None:
    """A line a figure."""
    console.print(f"held-out after {step:,} updates", style="bold")
    names = {
        "heldout_loss": ("loss", "{:.4f} nats a target"),
        "heldout_perplexity": ("perplexity", "{:.2f}"),
        "heldout_bits_per_byte": ("bits per byte", "{:.4f}"),
        "heldout_accuracy": ("accuracy", "{:.2%}"),
    }
    for key, (name, form) in names.items():
        if found.get(key) is not None:
            console.print(f"  {name:<15}{form.format(found[key])}")


def samples(assembly: Assembly, prepared: Prepared, params: Any) -> list[dict[str, str]]:
    """`{"prompt", "text"}` of a few samples: continued beginnings of held-out documents, or filled masks."""
    settings, tokenizer = assembly.settings, prepared.tokenizer
    texts = beginnings(prepared, settings.evaluate.num_samples, settings.data.sequence_length)
    if not texts:
        return []
    if assembly.objective.name == "masked":
        return [filled(assembly, tokenizer, params, tokens) for tokens in texts]
    length = min(settings.evaluate.sample_tokens, settings.data.sequence_length - PROMPT_TOKENS)
    prompts = [tokens[:PROMPT_TOKENS] for tokens in texts]
    sampling = Sampling(temperature=0.8, top_p=0.95)
    made: list[list[int]] = [[] for _ in prompts]
    for new in generate(
        assembly.model,
        params,
        tokenizer.vocabulary,
        prompts,
        max_tokens=max(1, length),
        sampling=sampling,
        seed=settings.evaluate.seed,
    ):
        for row, token in zip(made, new.tolist(), strict=True):
            row.append(token)
    return [
        {"prompt": tokenizer.decode(prompt), "text": tokenizer.decode(row)}
        for prompt, row in zip(prompts, made, strict=True)
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
    prompt = " ".join([*words[:place], "[MASK]", *words[place + 1 :]])
    masked = encode_masked(tokenizer, prompt)[: assembly.model.max_positions]
    ranked = fill_masks(assembly.model, params, tokenizer.vocabulary, masked, num_candidates=3)
    best = tokenizer.decode(with_best(masked, tokenizer.vocabulary.mask, ranked))
    candidates = ", ".join(f"{tokenizer.decode([c.token])!r} {c.probability:.0%}" for c in ranked[0])
    return {"prompt": prompt, "text": f"{best}  [{candidates}; in the text: {words[place]!r}]"}
