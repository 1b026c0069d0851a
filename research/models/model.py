"""What every model offers: pure functions of its weights, a nested dictionary of arrays."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from research import trees
from research.kernels import Kernels, Losses, Pattern, vocabulary
from research.models import experts, heads, layers
from research.models.parametrisation import parametrised
from research.parameters import Parameter
from research.settings import ModelSettings

Params = Mapping[str, Any]


class Outputs(NamedTuple):
    """What a model gives.

    Attributes:
      hidden: hidden states before the head.
      aux: statistics by name, one value a layer or one in all.
      losses: losses of the model itself by name, means over the layers, summed over the sequences of the batch.
    """

    hidden: Float[Array, "batch seq embed"]
    aux: dict[str, Array]
    losses: dict[str, Array] = {}  # noqa: RUF012 - a NamedTuple's default is never written to


@dataclasses.dataclass(frozen=True)
class Model(abc.ABC):
    """One architecture; `apply` and `decode` are its own, the head is common to all.

    Attributes:
      settings: shape and numerics.
      vocab_size: rows of the embedding.
      max_positions: longest sequence.
      kernels: implementations that depend on the platform.
      constrain: pins the layout of an activation by the names of its dimensions.
      scan: execute the stacked layers as a loop of so many periods a turn; 0: one layer after the other, without a
        loop. The numbers are the same.
      remat: what the backward pass computes again: see `parallel.remat`.
    """

    settings: ModelSettings
    vocab_size: int
    max_positions: int
    kernels: Kernels
    constrain: layers.Constrain = layers.unconstrained
    scan: int = 1
    remat: str = "none"

    @abc.abstractmethod
    def body_parameters(self) -> list[Parameter]:
        """The weights between the embedding and the head."""

    @abc.abstractmethod
    def apply(
        self,
        params: Params,
        inputs: Mapping[str, Array],
        *,
        pattern: Pattern,
        key: Array | None = None,
        dropout: Float[Array, ""] | None = None,
    ) -> Outputs:
        """Hidden states of `inputs`, each int32 `[batch, seq]`.

        Always `tokens`, `segment_ids` (0: padding) and `positions`; where there are any, `types` and `prefix`; for an
        encoder `encoder_tokens`, `encoder_segment_ids` and `encoder_positions`. Without a key there is no dropout;
        `dropout` is the (traced) rate.
        """

    @abc.abstractmethod
    def init_cache(self, batch: int, length: int) -> Any:
        """An empty cache for `length` places."""

    @abc.abstractmethod
    def decode(
        self, params: Params, cache: Any, inputs: Mapping[str, Array], *, pattern: Pattern
    ) -> tuple[Float[Array, "batch seq embed"], Any]:
        """Hidden states of the next `seq` tokens, which see the cache and one another, and the cache with them."""

    def parameters(self) -> dict[str, Parameter]:
        """Every weight by its path, scaled as `model.parametrisation` and `model.depth_scaling` say."""
        settings = self.settings
        embed, std = settings.embed_dim, settings.embedding_std
        shape = (self.vocab_size, embed)
        found = [Parameter("embedding/tokens", shape, ("vocab", "embed"), "embedding", 1, embed, std=std)]
        found += [*self.body_parameters(), *heads.head_parameters(settings, self.vocab_size)]
        return {parameter.path: parametrised(settings, parameter) for parameter in found}

    def init(self, key: Array) -> dict[str, Any]:
        """Initial weights: each a function of the key and its own path, each layer of its own key."""
        dtype = self.settings.parameter_dtype
        return trees.unflatten(
            {path: layers.initial_weight(parameter, key, dtype) for path, parameter in self.parameters().items()}
        )

    @property
    def loss_coefficients(self) -> dict[str, float]:
        """The coefficient of each of the model's own losses; their weight is the number of sequences with a token."""
        settings = self.settings
        own = dict(zip(experts.LOSSES, (settings.balance_loss, settings.router_z_loss), strict=True))
        return own if settings.num_experts else {}

    @jax.named_scope("embedding")
    def embed(self, params: Params, tokens: Int[Array, "batch seq"]) -> Float[Array, "batch seq embed"]:
        """The embeddings of token ids, in the type that is computed in."""
        x = self.kernels.embedding(params["embedding"]["tokens"], tokens, jnp.dtype(self.settings.compute_dtype))
        if self.settings.embedding_scale:
            x *= jnp.asarray(self.settings.embed_dim**0.5, x.dtype)
        return x

    # --- head -------------------------------------------------------------------------------------------------------

    def unembed(self, params: Params, hidden: Float[Array, "batch seq embed"]) -> Float[Array, "batch seq vocab"]:
        """Logits in float32: a wish of its own, since a loss never needs them all at once."""
        settings = self.settings
        hidden = heads.transformed(settings, self.kernels, params, hidden)
        table, bias = heads.table(settings, params), heads.bias(settings, params)
        logits = vocabulary.logits(hidden, table, bias, settings.logit_softcap)
        return self.constrain(logits, ("batch", "sequence", "vocab"))

    @jax.named_scope("head")
    def vocabulary_loss(
        self,
        params: Params,
        hidden: Float[Array, "tokens embed"],
        targets: Int[Array, " tokens"],
        weights: Float[Array, " tokens"],
        smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Losses:
        """Weighted sums of cross entropies in nats; see `kernels.vocabulary`."""
        settings = self.settings
        hidden = heads.transformed(settings, self.kernels, params, hidden)
        form = vocabulary.Form(settings.logit_softcap, smoothing, z_loss)
        table, bias = heads.table(settings, params), heads.bias(settings, params)
        return self.kernels.vocabulary_loss(hidden, table, bias, targets, weights, form)

    def predictions(self, params: Params, hidden: Float[Array, "tokens embed"]) -> Int[Array, " tokens"]:
        """The most probable id at each position."""
        hidden = heads.transformed(self.settings, self.kernels, params, hidden)
        return vocabulary.predictions(hidden, heads.table(self.settings, params), heads.bias(self.settings, params))

    def pooled(self, params: Params, hidden: Float[Array, "batch seq embed"]) -> Float[Array, "batch embed"]:
        """The first hidden state of each row, projected, through tanh."""
        return heads.pooled(self.kernels, params, hidden)

    def classify_pairs(self, params: Params, hidden: Float[Array, "batch seq embed"]) -> Float[Array, "batch 2"]:
        """Logits of the two classes of a sentence pair, float32."""
        return heads.pair_logits(self.kernels, params, self.pooled(params, hidden))
