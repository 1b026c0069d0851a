"""What holds for every test: one platform, strict arrays, checked types, and caches that no other run shares."""

import os
import shutil
import tempfile

from jaxtyping import install_import_hook

# JAX reads its environment when it is first imported, and tests start processes of their own: both get it from here.
os.environ |= {
    # The suite tests the program, not the machine: an accelerator would change the numbers and the time.
    "JAX_PLATFORMS": "cpu",
    # An implicit promotion is how float32 sums turn into bfloat16, or integers into floats, without anyone's wish.
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    # An implicit new dimension is how a [batch] added to a [batch, seq] gives a loss that looks right.
    "JAX_NUMPY_RANK_PROMOTION": "raise",
}

# Meshes of several axes need several devices. A test that starts a process may set another number.
if "xla_force_host_platform_device_count" not in (flags := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()

# The process that was started first makes one directory; workers, and processes that tests start, inherit its caches.
CACHES = None if "PYTEST_XDIST_WORKER" in os.environ else tempfile.mkdtemp(prefix="isoflop-tests-")
if CACHES is not None:
    os.environ |= {
        # Prepared data and tokenizers: made once a run, never taken from, or left in, the user's own cache.
        "ISOFLOP_CACHE": f"{CACHES}/isoflop",
        # Most of the suite's time is compilation of the same small programs, so that even quick ones are kept.
        "JAX_COMPILATION_CACHE_DIR": f"{CACHES}/jax",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

# Shapes and types in annotations are checked at every call. Only modules that are imported after this line are.
install_import_hook("research", "beartype.beartype")


def pytest_unconfigure() -> None:
    """Only the process that made the directory removes it: workers end earlier than the tests of the others."""
    if CACHES is not None:
        shutil.rmtree(CACHES, ignore_errors=True)
