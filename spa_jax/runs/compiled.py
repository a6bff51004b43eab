"""The persistent cache of compiled programs that the launch scripts share, by default in the user's cache folder."""

import functools
import hashlib
import os
import platform
import tempfile
from pathlib import Path

import jax
from absl import logging

OFF = "none"
_CPU_FEATURES = ("flags", "features")


def use_compilation_cache(directory: str | None = None) -> None:
    """Keep compiled programs between runs, or warn once that they cannot be kept.

    Each kind of machine has a folder of its own, because XLA's CPU programs use the instructions of the CPU that they
    were compiled on. The folder may be shared by running processes and by machines.

    Args:
        directory: where the folders of the machines lie; a remote one, such as "gs://bucket/compiled", is not checked.
            "none": nothing is kept. None: JAX_COMPILATION_CACHE_DIR as it is, where it is set, and else
            `default_directory()`.
    """
    if directory == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
    known = jax.config.values
    if not known["jax_enable_compilation_cache"] or (directory is None and known["jax_compilation_cache_dir"]):
        return
    if directory is not None and "://" in directory:
        jax.config.update("jax_compilation_cache_dir", f"{directory}/{machine()}")
        return
    try:
        folder = (default_directory() if directory is None else Path(directory).expanduser().absolute()) / machine()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        logging.warning("compiled programs are not kept for the next run: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def default_directory() -> Path:
    """`spa_jax/compiled` in the user's cache folder: XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "spa_jax" / "compiled"


@functools.cache
def machine() -> str:
    """The architecture of this machine and a digest of its CPU's features, such as "x86_64-3f0c9a5be171"."""
    digest = hashlib.sha256(_cpu_features().encode()).hexdigest()
    return f"{platform.machine() or 'unknown'}-{digest[:12]}"


def _cpu_features() -> str:
    """The features of the first CPU as Linux names them; on other systems the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":") for line in lines)
    listed = (features for name, _, features in named if name.strip().lower() in _CPU_FEATURES)
    return " ".join(sorted(next(listed, platform.processor()).split()))
