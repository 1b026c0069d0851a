"""Isoflop: scaled pretraining in JAX, for questions about objective, size, data and recipe."""

__version__ = "0.1.0"
