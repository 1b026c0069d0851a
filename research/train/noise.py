"""The gradient noise scale, from the micro-batches of an update (McCandlish et al. 2018, appendix A.1).

An update's gradient is `g = sum_m h_m`, where `h_m` is what micro-batch `m` adds: sums over its targets, divided by the
weight of the whole batch. With `p_m` its share of that weight and `G` the gradient over all data, `h_m` is `p_m G` plus
noise of mean zero, and the noises of two micro-batches are independent. So, with `q = sum_m p_m^2`,

    E |g|^2           =    |G|^2 + V        where V = tr Cov(g) is the noise of the whole batch,
    E sum_m |h_m|^2   =  q |G|^2 + V        since variances of independent parts add up to that of their sum,

which two equations give both, each without bias:

    |G|^2 = (|g|^2 - sum |h_m|^2) / (1 - q)          V = (sum |h_m|^2 - q |g|^2) / (1 - q)

Nothing is assumed of how the noise divides over micro-batches, be they of equal weight or not; with `M` equal ones `q`
is `1 / M`, and the two are the paper's estimators from batches of `B / M` and `B`. The noise scale is `B V / |G|^2`, in
whatever unit the batch `B` is counted in.

Where a loss has several terms with weights of their own, `p_m` is the share of the targets' weight: the shares of the
others differ by a little from it, and `|G|^2` is off by about the square of that. Dropout differs between micro-batches
and counts as noise, as does which documents a window holds. Norms are Euclidean and before clipping: an optimizer that
divides by a running size of each gradient weighs directions otherwise than they do.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from research import trees
from research.parameters import Parameter

SIGNAL, NOISE = "gradient_signal", "gradient_noise"


def apart(gradients: Any, parameters: Mapping[str, Parameter]) -> Any:
    """The gradients of a micro-batch, those of embeddings kept apart from the sum that they are added to.

    Where nothing else reads them, XLA scatters their rows into the sum itself, which adds in another order: an update
    that is measured would not be the one that is not, to the last bit.
    """
    return trees.map_with_path(
        lambda path, leaf: jax.lax.optimization_barrier(leaf) if parameters[path].kind == "embedding" else leaf,
        gradients,
    )


@jax.named_scope("statistics")
def square(gradients: Any) -> Float[Array, ""]:
    """The squared Euclidean norm over all leaves."""
    return sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients)), start=jnp.zeros((), jnp.float32))


@jax.named_scope("statistics")
def estimates(
    parts: Float[Array, ""], whole: Float[Array, ""], weights: Float[Array, " parts"]
) -> dict[str, Float[Array, ""]]:
    """What one update says of the gradient and of its noise; one alone says little, and either may be below zero.

    Args:
      parts: sum of the squared norms of what the micro-batches add to the gradient.
      whole: squared norm of the gradient.
      weights: of the micro-batches, two or more; not finite numbers come out where one has all the weight.

    Returns:
      `gradient_signal`, the estimate of `|G|^2`, and `gradient_noise`, that of `V`.
    """
    shares = weights / jnp.sum(weights)
    even = jnp.sum(jnp.square(shares))
    return {SIGNAL: (whole - parts) / (1.0 - even), NOISE: (parts - even * whole) / (1.0 - even)}
