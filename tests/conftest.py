"""Tests see eight CPU devices, strict numerics, and shape checks of every annotated function at run time."""

import ctypes
import gc
import os
from pathlib import Path

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

QUICK_TO_COMPILE = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # XLA ends the process at a flag that it does not know
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK_TO_COMPILE}"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # launch scripts that tests start write nothing to the user's home
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
os.environ.setdefault("NPROC", "64")  # threads for eight devices, see `spa_jax.parallel.use_host_cores`
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

install_import_hook("spa_jax", "beartype.beartype")

hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("tests")


_is_quick = False


def _compile(quick: bool) -> None:
    """Forgets programs that were compiled the other way: JAX would call them, and their last bits differ."""
    global _is_quick
    jax.config.update("jax_disable_most_optimizations", quick)
    if quick != _is_quick:
        jax.clear_caches()
    _is_quick = quick


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules of many tiny programs, whose compilation takes longer than their run."""
    _compile(quick=True)


@pytest.fixture(scope="module", autouse=True)
def full_compilation(request):
    """For all other modules."""
    if "quick_compilation" not in request.fixturenames:
        _compile(quick=False)


ROOMY = 2 * 2**30
"""Bytes of resident memory up to which a worker keeps the programs that it has compiled."""


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """JAX keeps every compiled program as long as the process lives: over 5 GB in each worker by the end of the suite.

    Modules share few programs, so a worker that has grown forgets them between two modules. Compiled functions that a
    module holds are compiled again where it calls them.
    """
    yield
    if _resident_bytes() > ROOMY:
        jax.clear_caches()
        gc.collect()
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc keeps what is freed
            libc.malloc_trim(0)


def _resident_bytes() -> int:
    """Of this process; 0 where the system does not tell."""
    told = Path("/proc/self/statm")
    return int(told.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if told.exists() else 0
