"""What a batch asks of the model."""

import contextlib
import dataclasses
import math

from research.errors import UserError
from research.settings.fields import setting
from research.settings.model import ModelSettings

# Ids above the tokenizer's. As many sentinels as T5 has (Raffel et al. 2020): a document has no more spans than that.
NUM_SENTINELS = 100
FILL_MARKS = ("prefix", "suffix", "middle")

# What the decoder of an encoder-decoder can be asked, and what one stack can be.
WITH_ENCODER = ("span_corruption", "seq2seq")
ONE_STACK = ("causal", "masked", "prefix", "span_corruption", "fill_in_middle")
MASKED = ("masked", "sentence_pairs")


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """The pretraining objective."""

    name: str = setting(
        "causal",
        "pretraining objective",
        choices=(
            "causal",
            "masked",
            "prefix",
            "span_corruption",
            "fill_in_middle",
            "sentence_pairs",
            "seq2seq",
            "mixture",
        ),
    )
    mask_rate: float = setting(0.15, "share of the tokens that a masked model must restore", minimum=0.001, maximum=0.9)
    mask_rate_start: float | None = setting(
        None,
        "the same in the first update, from where it changes linearly to mask_rate; none: mask_rate throughout",
        minimum=0.001,
        maximum=0.9,
        since=2,
    )
    mask_token_rate: float = setting(0.8, "share of the chosen tokens shown as [MASK]", minimum=0.0, maximum=1.0)
    random_token_rate: float = setting(
        0.1, "share of the chosen tokens shown as a random token", minimum=0.0, maximum=1.0
    )
    masking: str = setting(
        "token",
        "what is chosen as a whole: tokens, words, or spans of words of geometric length",
        choices=("token", "whole_word", "span"),
        since=2,
    )
    prefix_fraction: float | None = setting(
        None,
        "share of a document that is given (prefix, seq2seq); none: drawn uniformly for each",
        minimum=0.0,
        maximum=0.99,
        since=2,
    )
    corruption_rate: float = setting(
        0.15, "share of the tokens that span corruption takes out", minimum=0.01, maximum=0.9, since=2
    )
    mean_span_length: float = setting(
        3.0, "mean length of the spans that are taken out", unit="tokens", minimum=1.0, since=2
    )
    denoisers: str = setting(
        "r",
        "span corruption as it is (r), or each window by one of three denoisers that a mark names (UL2)",
        choices=("r", "r,x,s"),
        since=2,
    )
    fim_rate: float = setting(
        0.5, "share of the documents whose middle is moved to the end", minimum=0.0, maximum=1.0, since=2
    )
    fim_spm_rate: float = setting(
        0.5, "share of these that begin with the suffix instead of the prefix", minimum=0.0, maximum=1.0, since=2
    )
    pairs: str = setting(
        "order",
        "what is asked of two sentences: whether they were swapped, or whether the second follows the first",
        choices=("order", "next"),
        since=2,
    )
    mixture: str = setting(
        "", "objectives and their shares of the windows, for mixture: causal:0.5,masked:0.25,prefix:0.25", since=2
    )
    z_loss: float = setting(
        0.0, "coefficient of the squared log-normaliser of the vocabulary's softmax", minimum=0.0, since=2
    )
    label_smoothing: float = setting(
        0.0, "probability that a target gives to all ids alike", minimum=0.0, maximum=0.99, since=2
    )

    @property
    def shares(self) -> dict[str, float]:
        """The objectives that windows are given to, and their shares, which add up to one."""
        if self.name != "mixture":
            return {self.name: 1.0}
        weights: dict[str, float] = {}
        for part in self.mixture.split(","):
            name, _, text = part.strip().partition(":")
            with contextlib.suppress(ValueError):
                weights[name] = weights.get(name, 0.0) + float(text)
            if not weights.get(name, 0.0) > 0.0:
                weights[name] = math.nan
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}

    @property
    def marks(self) -> tuple[str, ...]:
        """Names of the ids above the tokenizer's that are no sentinels, in the order of their ids."""
        fill = FILL_MARKS if "fill_in_middle" in self.shares else ()
        modes = tuple(self.denoisers.split(",")) if "span_corruption" in self.shares and self.denoisers != "r" else ()
        return fill + modes

    @property
    def num_sentinels(self) -> int:
        """Ids that stand for spans that were taken out."""
        return NUM_SENTINELS if "span_corruption" in self.shares else 0

    @property
    def extra_ids(self) -> int:
        """Ids that the objective needs above the tokenizer's; neither shards nor tokenizer know them."""
        return self.num_sentinels + len(self.marks)

    def check(self) -> None:
        """Raises `UserError` where keys contradict each other."""
        if self.mask_token_rate + self.random_token_rate > 1.0 + 1e-9:
            raise UserError(
                f"objective.mask_token_rate={self.mask_token_rate} and objective.random_token_rate="
                f"{self.random_token_rate} add up to more than 1: lower one of them"
            )
        if self.name != "mixture":
            return
        shares = self.shares
        if not all(weight > 0.0 for weight in shares.values()):
            raise UserError(
                f"objective.mixture={self.mixture!r}: write objectives with positive weights, as in "
                "causal:0.5,masked:0.25,prefix:0.25"
            )
        if not set(shares) <= set(ONE_STACK) and not set(shares) <= set(WITH_ENCODER):
            raise UserError(
                f"objective.mixture={self.mixture}: mix some of {', '.join(ONE_STACK)}, or, with an encoder, some of "
                f"{', '.join(WITH_ENCODER)}"
            )

    def check_model(self, model: ModelSettings) -> None:
        """Raises `UserError` where the model cannot do what the objective asks."""
        name, shares, architecture = self.name, set(self.shares), model.architecture
        if architecture == "encoder_decoder" and not shares <= set(WITH_ENCODER):
            raise UserError(
                f"objective.name={name} has no input for the encoder of model.architecture=encoder_decoder: choose "
                f"{' or '.join(WITH_ENCODER)}, or model.architecture=transformer"
            )
        if architecture != "encoder_decoder" and "seq2seq" in shares:
            raise UserError(
                f"objective.name={name} with seq2seq needs an encoder, which model.architecture={architecture} has "
                "not: set model.architecture=encoder_decoder, or choose prefix"
            )
        if architecture == "lstm" and not shares <= {"causal", "fill_in_middle"}:
            raise UserError(
                f"objective.name={name} looks ahead, which model.architecture=lstm cannot: choose causal, or "
                "model.architecture=transformer"
            )
        if "sentence_pairs" in shares and not (model.pair_head and model.token_types >= 2):
            raise UserError(
                f"objective.name=sentence_pairs needs model.pair_head=true and model.token_types=2, not "
                f"model.pair_head={model.pair_head} and model.token_types={model.token_types}: set both, and "
                "model.pooler=true"
            )
