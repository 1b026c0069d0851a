"""Text to tokens to `batch(step)`; imports no JAX."""
