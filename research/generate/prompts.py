"""How a model is asked to write, by what it was trained on."""

from collections.abc import Sequence
from typing import NamedTuple

from research.data.tokenizer import Tokenizer
from research.errors import UserError
from research.objectives import Objective
from research.objectives.fill_in_middle import FillInMiddle
from research.objectives.masked import Masked
from research.objectives.mixture import Mixture
from research.objectives.span_corruption import SpanCorruption
from research.vocabulary import Vocabulary

GAP = "[MASK]"


class Prompt(NamedTuple):
    """A prompt as the model reads it.

    Attributes:
      tokens: ids, without `bos`.
      prefix: it is seen from both sides.
      wanted: special ids that belong to the answer.
    """

    tokens: list[int]
    prefix: bool = False
    wanted: tuple[int, ...] = ()


def writer(objective: Objective) -> Objective | None:
    """The objective by which a model writes text: its own, or the first of a mixture that can; none can only fill."""
    members = objective.members if isinstance(objective, Mixture) else [objective]
    return next((member for member in members if not isinstance(member, Masked)), None)


def fills_gaps(objective: Objective) -> bool:
    """Whether it writes what belongs into gaps of a text."""
    return isinstance(objective, SpanCorruption | FillInMiddle)


def prompt_of(objective: Objective, parts: Sequence[Sequence[int]]) -> Prompt:
    """The prompt for the parts of a text between gaps; one part is to be continued.

    Raises:
      UserError: gaps that the objective knows nothing of, or more than it knows.
    """
    vocabulary, first = objective.vocabulary, list(parts[0])
    if isinstance(objective, SpanCorruption):
        if len(parts) > len(vocabulary.sentinels):
            raise UserError(f"the prompt has {len(parts) - 1} {GAP}: at most {len(vocabulary.sentinels) - 1} are known")
        # A text that breaks off is continued as the denoiser that takes ends out would have it.
        ways = [way for kind in objective.denoisers for way in kind]
        mark = next((way for way in ways if (way.mean is None) == (len(parts) == 1)), ways[0]).mark
        gaps = [*parts, []] if len(parts) == 1 else parts
        for sentinel, part in zip(vocabulary.sentinels, gaps[1:], strict=False):
            first += [sentinel, *part]
        tokens = [*([] if mark is None else [mark]), *first, vocabulary.eos]
        return Prompt(tokens, not objective.encoder, vocabulary.sentinels)
    if isinstance(objective, FillInMiddle) and len(parts) == 2:
        before, after, middle = (vocabulary.mark(name) for name in ("prefix", "suffix", "middle"))
        return Prompt([before, *first, after, *parts[1], middle])
    if len(parts) > 1:
        known = f"one {GAP}" if isinstance(objective, FillInMiddle) else f"no {GAP}"
        raise UserError(f"the prompt has {len(parts) - 1} {GAP}: objective.name={objective.name} knows {known}")
    return Prompt(first, objective.pattern.prefix)


def readable(tokenizer: Tokenizer, vocabulary: Vocabulary, ids: Sequence[int], errors: str = "replace") -> str:
    """The text of ids; `<0>`, `<1>`, ... for sentinels, `<name>` for marks.

    `errors` says what becomes of bytes that are no character: `replace` or `ignore`.
    """
    names = {token: f"<{number}>" for number, token in enumerate(vocabulary.sentinels)}
    names |= {token: f"<{name}>" for name, token in vocabulary.marks}
    parts = [names[token].encode() if token in names else tokenizer.decode_bytes([token]) for token in ids]
    return b"".join(parts).decode("utf-8", errors=errors)
