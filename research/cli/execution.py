"""How a process is set up before it computes: the cache of compiled programs, and a log of its failure."""

import contextlib
import logging
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

import jax

from research.data.prepare import cache_directory
from research.parallel import flags
from research.train import allocation


def set_up_training() -> None:
    """What must stand when the processes have joined and no device has been touched."""
    compilation_cache()
    flags.set_environment()
    allocation.one_step_at_a_time()


def compilation_cache() -> None:
    """Keeps compiled programs beside the prepared data, so that a second start compiles nothing.

    A cache that was configured by environment (JAX_COMPILATION_CACHE_DIR) is left as it is.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@contextlib.contextmanager
def log_process_failures(workdir: Path) -> Iterator[None]:
    """In a run of several processes, each writes what it dies of to `logs/process-N.log`."""
    if jax.process_count() == 1:
        yield
        return
    path = workdir / "logs" / f"process-{jax.process_index():04d}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    except BaseException:
        logging.getLogger("isoflop").error("process %d failed\n%s", jax.process_index(), traceback.format_exc())
        raise
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
