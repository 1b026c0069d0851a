"""Every key at its default, as recipes find it; the defaults themselves stand in `research/settings`."""

import ml_collections

from research import config


def get_config() -> ml_collections.ConfigDict:
    """A locked ConfigDict with all keys."""
    return config.default_config()
