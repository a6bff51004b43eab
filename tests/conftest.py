"""Tests see eight CPU devices, strict numerics, and shape checks of every annotated function at run time."""

import os

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


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules of many tiny programs, whose compilation takes longer than their run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
