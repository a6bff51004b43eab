"""Checkpoints of training states (Orbax): saved whole or not at all, verified on loading, the last and best kept."""

import contextlib
import functools
import gc
import hashlib
import json
import logging
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np

from spa_jax.configuration import diff, freeze
from spa_jax.errors import CheckpointError, ConfigError

State = TypeVar("State")
_SHOWN = 10
_STRAGGLERS_SECONDS = 0.2


class Loaded(NamedTuple):
    """What `load_variables` found.

    Attributes:
        variables: the saved tree as nested dicts and lists of arrays, only the requested parts.
        config: the config it was trained with.
        step: the step it was saved at.
    """

    variables: dict[str, Any]
    config: dict[str, Any]
    step: int


class Checkpoints:
    """The checkpoints of one run, in `<workdir>/checkpoints`; use it as a context manager.

    A step is written to a temporary folder and renamed when complete, in the background: a process killed in mid-save
    leaves the steps before as they were. Kept are the `num_last` newest steps and the one with the largest metric (of
    equals the newest). Every leaf carries a SHA-256 digest that `restore` verifies.

    With several processes, `workdir` is on a file system they share and every process makes every call; a leaf that is
    sharded over processes is gathered, one leaf at a time, to compute its digest.
    """

    def __init__(self, workdir: str | os.PathLike, *, num_last: int = 2):
        """Open the directory, creating it if need be, and remove what a killed save left behind.

        Args:
            workdir: the run's directory.
            num_last: >= 1, newest steps to keep; our choice: 2, so that there is one to go back to if the newest is
                damaged.

        Raises:
            CheckpointError: the directory cannot be written.
            ValueError: num_last < 1.
        """
        if num_last < 1:
            raise ValueError(f"num_last={num_last} must be at least 1")
        self.directory = prepare_workdir(workdir) / "checkpoints"
        self._orbax = _open(self.directory, num_last)
        self._pending: Any = None
        self._abandoned: set[int] = set()

    def __enter__(self) -> "Checkpoints":
        """Nothing to do: the directory is open already."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Close; a failed save does not hide an exception that is already on its way."""
        try:
            self.close()
        except CheckpointError as failed_save:
            if error is None:
                raise
            error.add_note(f"besides: {failed_save}")

    @property
    def latest_step(self) -> int | None:
        """The newest step, or None; after `restore`, steps newer than the restored one are ignored."""
        return max(self._metrics(), default=None)

    @property
    def best_step(self) -> int | None:
        """The step with the largest metric, of equals the newest; None if no metric was saved."""
        return _best(self._metrics())

    def save(self, step: int, state: Any, *, config: Mapping[str, Any], metric: float | None = None) -> None:
        """Start saving a state in the background, once the save before is complete.

        The values are taken before this returns: the state's buffers may be donated or overwritten afterwards.
        Steps behind a restored one are deleted first: they are damaged, or from an abandoned continuation.

        Args:
            step: >= 0, after `latest_step`.
            state: pytree whose leaves are arrays, typed PRNG keys included; NumPy's come back as JAX's.
            config: data only; stored beside the state.
            metric: larger is better; None or NaN: this step is never the best.

        Raises:
            CheckpointError: this save or the one before failed, the step does not increase, or a leaf is not an array.
            ConfigError: the config holds something that is not plain data.
        """
        self.wait()
        latest = self.latest_step
        if latest is not None and step <= latest:
            raise CheckpointError(f"step={step} must come after the newest checkpoint of {self.directory}, {latest}")
        metadata = _sealed({"config": freeze(config), "leaves": _describe_leaves(state)})
        metrics = None if metric is None or math.isnan(metric) else {"metric": float(metric)}
        with _readable_errors(f"saving step {step} in {self.directory}"):
            for stale in sorted(self._abandoned):
                self._orbax.delete(stale, missing_ok=True)
            self._abandoned.clear()
            self._pending = self._orbax.save_async(step, state, force=True, metrics=metrics, custom_metadata=metadata)

    def wait(self) -> None:
        """Return when the save that is under way is complete.

        Raises:
            CheckpointError: it failed.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            with _readable_errors(f"the last save in {self.directory}"):
                pending.result()

    def close(self) -> None:
        """Complete the save that is under way and let go of the directory; may be called again.

        Raises:
            CheckpointError: that save failed.
        """
        try:
            self.wait()
        finally:
            self._orbax.close()

    def restore(self, abstract_state: State, step: int | None = None) -> tuple[State, int]:
        """Load a state, verified; damaged steps are passed over with a warning that names them.

        Args:
            abstract_state: tree of the structure of the saved one, of arrays or `jax.ShapeDtypeStruct`. Its shardings
                say where the values go, and need not be those they were saved with. Leaves without one go to the first
                device, or, with several processes, to every device.
            step: None for the newest step that is good, or one step and no other.

        Returns:
            The state and its step.

        Raises:
            CheckpointError: there is no step, or every step is damaged (the message says what is wrong with each), or
                the checkpoint belongs to another model (the message lists the leaves that differ).
        """
        self.wait()
        steps = sorted(self._all_metrics())
        candidates = steps[::-1] if step is None else [known for known in steps if known == step]
        if step is not None and not candidates:
            raise CheckpointError(f"there is no checkpoint step={step} in {self.directory}; steps there: {steps}")
        template = jax.tree.map(_abstract, abstract_state)
        state, good = _first_good(candidates, functools.partial(self._load, template), self.directory)
        self._abandoned = {known for known in steps if known > good}
        return state, good

    def config(self, step: int | None = None) -> dict[str, Any]:
        """The config stored with a step.

        Args:
            step: None for the newest whose description can be read.

        Raises:
            CheckpointError: there is no such step, or it is damaged.
        """
        self.wait()
        candidates = sorted(self._metrics(), reverse=True) if step is None else [step]
        config, _ = _first_good(candidates, lambda step: self._metadata(step)["config"], self.directory)
        return config

    def _load(self, template: Any, step: int) -> Any:
        metadata = self._metadata(step)
        _check_same_model(metadata["leaves"], template, f"checkpoint {step} of {self.directory}")
        state = self._orbax.load(step, template)
        _verify(metadata["leaves"], state)
        return state

    def _metadata(self, step: int) -> dict[str, Any]:
        return _unsealed(self._orbax.metadata(step).custom_metadata)

    def _all_metrics(self) -> dict[int, float | None]:
        return {found.step: (found.metrics or {}).get("metric") for found in self._orbax.checkpoints}

    def _metrics(self) -> dict[int, float | None]:
        return {step: metric for step, metric in self._all_metrics().items() if step not in self._abandoned}


def load_variables(
    workdir: str | os.PathLike,
    *,
    step: int | Literal["best", "latest"] = "best",
    names: Sequence[str] | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> Loaded:
    """Load a saved state for evaluation, without knowing its structure and without touching the directory.

    The structure comes from the checkpoint: dataclasses and named tuples come back as dicts by field, tuples as lists.

    Args:
        workdir: the run's directory.
        step: a step, "latest", or "best": the largest metric, or the newest step if there is no metric.
        names: top-level fields to load ("params", "batch_stats"); the others are not read. None: all.
        sharding: where the arrays go; None: as in `Checkpoints.restore`.

    Raises:
        CheckpointError: there is no such step or field (those there are listed), or the step is damaged.
    """
    directory = Path(workdir).absolute() / "checkpoints"
    if not directory.is_dir():
        raise CheckpointError(f"there is no checkpoint in {directory}: no such directory")
    with contextlib.closing(_open(directory, None)) as orbax:
        metrics = {found.step: (found.metrics or {}).get("metric") for found in orbax.checkpoints}
        wanted = _choose(metrics, step, directory)
        load = functools.partial(_load_parts, orbax, names, sharding)
        (variables, config), _ = _first_good([wanted], load, directory)
    return Loaded(variables, config, wanted)


def check_config(stored: Mapping[str, Any], current: Mapping[str, Any], *, may_change: Iterable[str] = ()) -> None:
    """Check that a run goes on with the config its checkpoint was made with.

    Args:
        stored: the checkpoint's config.
        current: the config now.
        may_change: dotted keys that may differ; a key covers everything below it ("evaluation").

    Raises:
        ConfigError: they differ; one line `key: stored -> current` for each difference.
    """
    free = tuple(may_change)
    changed = [line for line in diff(stored, current) if not _is_below(line.partition(": ")[0], free)]
    if changed:
        listed = "\n  ".join(changed)
        raise ConfigError(f"the config is not the one the checkpoint was made with (stored -> current):\n  {listed}")


def prepare_workdir(workdir: str | os.PathLike) -> Path:
    """Create a directory and prove that it can be written, before anything costs time.

    Returns:
        Its absolute path.

    Raises:
        CheckpointError: it cannot be created or written; names the path and the reason.
    """
    path = Path(workdir).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".writable-") as probe:
            probe.write(b"\0")
            probe.flush()
    except OSError as error:
        raise CheckpointError(f"workdir={os.fspath(workdir)!r} cannot be written: {error}") from error
    return path


class _Damaged(Exception):
    """A step whose content is not what was saved."""


def _open(directory: Path, num_last: int | None) -> Any:
    """Orbax's view of the directory; with `num_last=None` for reading, which leaves another run's save in peace."""
    from orbax.checkpoint import v1

    policies = v1.training.preservation_policies
    keep = None
    if num_last is not None:
        best = policies.BestN(n=1, get_metric_fn=lambda m: m["metric"], keep_checkpoints_without_metrics=False)
        keep = policies.AnyPreservationPolicy([policies.LatestN(num_last), best])
    with _readable_errors(f"opening {directory}"):
        return v1.training.Checkpointer(
            directory, preservation_policy=keep, cleanup_tmp_directories=num_last is not None
        )


def _first_good(steps: Sequence[int], load: Callable[[int], Any], directory: Path) -> tuple[Any, int]:
    if not steps:
        raise CheckpointError(f"there is no checkpoint in {directory}")
    reasons: dict[int, str] = {}
    for step in steps:
        try:
            with _orbax_silenced():
                value = load(step)
        except CheckpointError:
            raise
        except Exception as error:
            reasons[step] = _root_message(error)
        if _all_processes_agree(step not in reasons):
            if reasons:
                warnings.warn(f"damaged checkpoints in {directory} passed over: {_listed(reasons)}", stacklevel=3)
            return value, step
        reasons.setdefault(step, "another process cannot read it")
    raise CheckpointError(f"no good checkpoint in {directory}: {_listed(reasons)}")


def _load_parts(orbax: Any, names: Sequence[str] | None, sharding: Any, step: int) -> tuple[dict[str, Any], Any]:
    from orbax.checkpoint import v1

    found = orbax.metadata(step)
    metadata = _unsealed(found.custom_metadata)
    saved = found.metadata
    if unknown := [name for name in names or () if name not in saved]:
        raise CheckpointError(f"names={unknown} are not in checkpoint {step} of {found.path}; there: {sorted(saved)}")
    parts = {name: saved[name] for name in (saved if names is None else names)}
    context = v1.Context()
    context.pytree.loading.partial_load = True
    place = sharding or _default_sharding()
    with context:
        template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), parts)
        variables = v1.load(found.path, template)
    _verify(metadata["leaves"], variables)
    return variables, metadata["config"]


def _choose(metrics: Mapping[int, float | None], step: int | str, directory: Path) -> int:
    best = _best(metrics) if step == "best" else None
    newest = max(metrics, default=None)
    chosen = best if best is not None else newest if step in ("best", "latest") else step
    if not isinstance(chosen, int) or chosen not in metrics:
        raise CheckpointError(f"there is no checkpoint step={step!r} in {directory}; steps there: {sorted(metrics)}")
    return chosen


def _best(metrics: Mapping[int, float | None]) -> int | None:
    measured = [(metric, step) for step, metric in metrics.items() if metric is not None]
    return max(measured)[1] if measured else None


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _describe_leaves(state: Any) -> dict[str, dict[str, Any]]:
    leaves = _named_leaves(state)
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise CheckpointError(f"{name}={leaf!r} of the state is a {type(leaf).__name__}; only arrays can be saved")
        if isinstance(leaf, np.ndarray) and leaf.dtype != jax.dtypes.canonicalize_dtype(leaf.dtype):
            raise CheckpointError(
                f"{name} of the state has dtype={leaf.dtype}, which JAX would not read back (x64 is off)"
            )
    return {name: _describe(leaf) for name, leaf in leaves.items()}


def _describe(leaf: Any) -> dict[str, str]:
    return {"type": _type(leaf), "sha256": _digest(leaf)}


def _type(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _digest(leaf: Any) -> str:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        from jax.experimental import multihost_utils

        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()


def _check_same_model(stored: Mapping[str, Any], template: Any, what: str) -> None:
    expected = {name: _type(leaf) for name, leaf in _named_leaves(template).items()}
    saved = {name: description["type"] for name, description in stored.items()}
    differing = sorted(name for name in saved.keys() | expected.keys() if saved.get(name) != expected.get(name))
    if differing:
        lines = [f"{name}: stored {saved.get(name, 'no')}, expected {expected.get(name, 'no')}" for name in differing]
        more = f"\n  and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        raise CheckpointError(
            f"{what} belongs to another model; leaves differ:\n  " + "\n  ".join(lines[:_SHOWN]) + more
        )


def _verify(stored: Mapping[str, Any], state: Any) -> None:
    wrong = [name for name, leaf in _named_leaves(state).items() if _describe(leaf) != stored.get(name)]
    if wrong:
        raise _Damaged(f"{len(wrong)} leaves are not what was saved: {', '.join(wrong[:_SHOWN])}")


def _sealed(metadata: dict[str, Any]) -> dict[str, Any]:
    return metadata | {"sha256": hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()}


def _unsealed(sealed: Mapping[str, Any] | None) -> dict[str, Any]:
    metadata = {key: value for key, value in (sealed or {}).items() if key != "sha256"}
    if not metadata or _sealed(metadata) != sealed:
        raise _Damaged("its description is missing or not what was saved")
    return metadata


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    place = getattr(leaf, "sharding", None) or _default_sharding()
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _default_sharding() -> jax.sharding.Sharding:
    if jax.process_count() == 1:
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def _all_processes_agree(good: bool) -> bool:
    if jax.process_count() == 1:
        return good
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.array(good))))


def _is_below(key: str, parents: Iterable[str]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def _listed(reasons: Mapping[int, str]) -> str:
    return "; ".join(f"step {step}: {reason}" for step, reason in reasons.items())


@contextlib.contextmanager
def _readable_errors(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{what} failed: {_root_message(error)}") from error


@contextlib.contextmanager
def _orbax_silenced() -> Iterator[None]:
    """On a damaged checkpoint Orbax logs pages of what its exception says anyway.

    Reads that are still under way when one fails find their event loop closed and complain from TensorStore's threads.
    """
    disabled, hook = logging.root.manager.disable, sys.unraisablehook
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    with warnings.catch_warnings(action="ignore"):
        try:
            yield
        except BaseException:
            time.sleep(_STRAGGLERS_SECONDS)
            gc.collect()
            raise
        finally:
            logging.disable(disabled)
            sys.unraisablehook = hook


def _root_message(error: BaseException) -> str:
    while cause := error.__cause__ or error.__context__:
        error = cause
    first_line = next(iter(str(error).splitlines()), "")[:300]
    if isinstance(error, _Damaged):
        return first_line
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
