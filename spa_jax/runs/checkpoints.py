"""Checkpoints of training states (Orbax): saved whole or not at all, verified on loading, the last and best kept."""

import contextlib
import functools
import gc
import hashlib
import json
import logging
import math
import os
import re
import shutil
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
from spa_jax.parallel import all_processes_agree, from_process_0

_State = TypeVar("_State")
_Description = Mapping[str, Any]
_SHOWN, _ENDS_SHOWN = 10, 150
_STRAGGLERS_SECONDS = 0.2
_LEFTOVER = re.compile(r"\d+\.(orbax-checkpoint-tmp.*|deleted)")
_ATTEMPTS = 10
_MARKS_OF_ORBAX = (f"{os.sep}orbax{os.sep}", "TensorStore", "zarr3")


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
    equals the newest); the others are deleted when a save is complete. Config, metric and a SHA-256 digest of every
    leaf are stored as a description that carries a digest of its own. So whichever file is damaged, at most its step is
    lost: a damaged step is neither restored nor the best, `restore` says so in a warning, and the next save deletes it.

    With several processes, `workdir` is on a file system they share and every process makes every call; a leaf that is
    sharded over processes is gathered, one leaf at a time, to compute its digest. `sole_run` keeps a second run out of
    the directory.
    """

    def __init__(self, workdir: str | os.PathLike, *, num_last: int = 2):
        """Open the directory, creating it if need be, and remove what a killed run left behind.

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
        self._num_last = num_last
        with _readable_errors(f"opening {self.directory}"):
            self.directory.mkdir(exist_ok=True)
            _remove_leftovers(self.directory)
        self._descriptions, self._damaged = _read_descriptions(self.directory)
        self._abandoned: set[int] = set()
        self._pending: tuple[int, Any] | None = None

    def __enter__(self) -> "Checkpoints":
        """Nothing to do: the directory is open already."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Complete the save that is under way; that it failed does not hide an exception that is already on its way."""
        try:
            self.wait()
        except CheckpointError as failed_save:
            if error is None:
                raise
            error.add_note(f"besides: {failed_save}")

    @property
    def latest_step(self) -> int | None:
        """The newest step, or None; after `restore`, steps newer than the restored one are ignored."""
        return max(self._steps() - self._abandoned, default=None)

    @property
    def best_step(self) -> int | None:
        """The step with the largest metric, of equals the newest; None if no metric was saved."""
        ranked = _best_first({step: self._descriptions[step] for step in self._usable()})
        return ranked[0] if ranked and self._descriptions[ranked[0]]["metric"] is not None else None

    def save(self, step: int, state: Any, *, config: Mapping[str, Any], metric: float | None = None) -> None:
        """Start saving a state in the background, once the save before is complete.

        The values are taken before this returns: the state's buffers may be donated or overwritten afterwards.
        Steps behind a restored one are deleted first: they are damaged, or from an abandoned continuation.

        Args:
            step: >= 0, after `latest_step`.
            state: pytree whose leaves are arrays, typed PRNG keys included; NumPy's come back as JAX's.
            config: data only; stored beside the state.
            metric: larger is better; None or a number that is not finite: this step is never the best.

        Raises:
            CheckpointError: this save or the one before failed, the step does not increase, or a leaf is not an array.
            ConfigError: the config holds something that is not plain data.
        """
        from orbax.checkpoint import v1

        _silence_stragglers()
        self.wait()
        latest = self.latest_step
        if latest is not None and step <= latest:
            raise CheckpointError(f"step={step} must come after the newest checkpoint of {self.directory}, {latest}")
        description = _describe(state, config, metric)
        with _readable_errors(f"saving step {step} in {self.directory}"):
            self._delete(self._abandoned)
            response = v1.save_async(self.directory / str(step), state, custom_metadata=_sealed(description))
        self._descriptions[step] = description
        self._pending = step, response

    def wait(self) -> None:
        """Return when the save that is under way is complete, and the steps that it makes needless are deleted.

        Raises:
            CheckpointError: it failed.
        """
        if self._pending is None:
            return
        (step, response), self._pending = self._pending, None
        try:
            with _readable_errors(f"saving step {step} in {self.directory}"):
                response.result()
        except CheckpointError:
            del self._descriptions[step]
            raise
        with _readable_errors(f"deleting old steps in {self.directory}"):
            self._delete(self._steps() - {*self._usable()[-self._num_last :], self.best_step})

    def restore(self, abstract_state: _State, step: int | None = None) -> tuple[_State, int]:
        """Load a state, verified; damaged steps are passed over with a warning that names them.

        The best step is verified as well, because it is kept for evaluation; a warning names those that no longer
        count, and the next save deletes them.

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
        steps = sorted(self._steps())
        if step is not None and step not in steps:
            raise CheckpointError(f"there is no checkpoint step={step} in {self.directory}; steps there: {steps}")
        load = functools.partial(self._load, jax.tree.map(_abstract, abstract_state))
        state, good = _first_good(steps[::-1] if step is None else [step], load, self.directory)
        self._abandoned = {known for known in steps if known > good}
        self._verify_best(load, good)
        return state, good

    def config(self, step: int | None = None) -> dict[str, Any]:
        """The config stored with a step.

        Args:
            step: None for the newest whose description can be read.

        Raises:
            CheckpointError: there is no such step, or it is damaged.
        """
        candidates = sorted(self._steps() - self._abandoned, reverse=True) if step is None else [step]
        for known in candidates:
            if known in self._descriptions:
                return self._descriptions[known]["config"]
        raise _no_good_step(self.directory, {known: self._damaged.get(known, "not there") for known in candidates})

    def _steps(self) -> set[int]:
        return {*self._descriptions, *self._damaged}

    def _usable(self) -> list[int]:
        return sorted(self._descriptions.keys() - self._damaged.keys() - self._abandoned)

    def _load(self, template: Any, step: int) -> Any:
        from orbax.checkpoint import v1

        leaves = _intact(step, self._descriptions, self._damaged)["leaves"]
        _check_same_model(leaves, template, f"checkpoint {step} of {self.directory}")
        state = v1.load(self.directory / str(step), template)
        _verify(leaves, state)
        return state

    def _verify_best(self, load: Callable[[int], Any], restored: int) -> None:
        """Look at the best step too, and say which of the older ones are damaged."""
        while (best := self.best_step) is not None and best != restored:
            _, good, reasons = _try_each([best], load)
            if good is not None:
                break
            self._damaged |= reasons
        if older := {step: reason for step, reason in self._damaged.items() if step < restored}:
            found = f"damaged checkpoints in {self.directory} no longer count: {_listed(older)}"
            warnings.warn(f"{found}; the best is step {self.best_step}", stacklevel=3)

    def _delete(self, steps: Iterable[int]) -> None:
        for step in sorted(steps):
            if jax.process_index() == 0:
                _remove(self.directory / str(step))
            self._descriptions.pop(step, None)
            self._damaged.pop(step, None)
        self._abandoned -= set(steps)


def load_variables(
    workdir: str | os.PathLike,
    *,
    step: int | Literal["best", "latest"] = "best",
    names: Sequence[str] | None = None,
    sharding: jax.sharding.Sharding | None = None,
) -> Loaded:
    """Load a saved state for evaluation, without knowing its structure and without touching the directory.

    The structure comes from the checkpoint: dataclasses and named tuples come back as dicts by field, tuples as lists.
    The run may go on meanwhile: a step that it deletes in between is looked for no more.

    Args:
        workdir: the run's directory.
        step: a step and no other; or "latest", the newest good one; or "best", the good one with the largest metric, of
            equals the newest, or the newest if there is no metric. Damaged steps are passed over with a warning that
            names them; "best" warns of every step whose metric cannot be read, for it may have been the best.
        names: top-level fields to load ("params", "batch_stats"); the others are not read. None: all.
        sharding: where the arrays go; None: as in `Checkpoints.restore`.

    Raises:
        CheckpointError: there is no such step or field (those there are listed), or no good one.
    """
    directory = Path(workdir).absolute() / "checkpoints"
    if not directory.is_dir():
        raise CheckpointError(f"there is no checkpoint in {directory}: no such directory")
    for _ in range(_ATTEMPTS):
        descriptions, damaged = _read_descriptions(directory)
        candidates = _candidates(descriptions, damaged, step, directory)
        load = functools.partial(_load_parts, directory, descriptions, damaged, names, sharding)
        variables, good, reasons = _try_each(candidates, load)
        if all_processes_agree(all((directory / str(failed)).exists() for failed in reasons)):
            break
    if good is None:
        raise _no_good_step(directory, reasons)
    if reasons:
        _warn_of_damage(directory, reasons, good)
    return Loaded(variables, descriptions[good]["config"], good)


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


def _remove_leftovers(directory: Path) -> None:
    """What a killed run did not finish to write or to delete."""
    if jax.process_index() == 0:
        for path in directory.iterdir():
            if _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path)


def _remove(path: Path) -> None:
    """Delete a step so that, killed in between, it does not stand there half."""
    doomed = path.with_name(f"{path.name}.deleted")
    if path.exists():
        path.replace(doomed)
        shutil.rmtree(doomed)


def _steps_on_disk(directory: Path) -> list[int]:
    """The steps as process 0 sees them."""
    steps = [int(path.name) for path in directory.iterdir() if path.name.isdecimal() and path.is_dir()]
    count = int(from_process_0(np.int32(len(steps))))
    padded = np.resize(np.array([-1, *steps], np.int32), count + 1)
    return sorted(from_process_0(padded)[1:].tolist())


def _read_descriptions(directory: Path) -> tuple[dict[int, _Description], dict[int, str]]:
    """The descriptions of the steps in a directory, and of the other steps what is wrong with theirs."""
    descriptions: dict[int, _Description] = {}
    damaged: dict[int, str] = {}
    for step in _steps_on_disk(directory):
        description, good, reasons = _try_each([step], lambda step: _read_description(directory / str(step)))
        if good is None:
            damaged |= reasons
        else:
            descriptions[step] = description
    return descriptions, damaged


def _read_description(path: Path) -> _Description:
    from orbax.checkpoint import v1

    return _unsealed(v1.metadata(path).custom_metadata or {})


def _intact(step: int, descriptions: Mapping[int, _Description], damaged: Mapping[int, str]) -> _Description:
    if step in damaged:
        raise _Damaged(damaged[step])
    return descriptions[step]


def _candidates(
    descriptions: Mapping[int, _Description], damaged: Mapping[int, str], step: int | str, directory: Path
) -> list[int]:
    """The steps to try, in order; for "best" those with an unknown metric come first, so that they are named."""
    known = sorted({*descriptions, *damaged})
    if step == "best" and known:
        return [*damaged, *_best_first(descriptions)]
    if step == "latest" and known:
        return known[::-1]
    if step not in known:
        raise CheckpointError(f"there is no checkpoint step={step!r} in {directory}; steps there: {known}")
    return [int(step)]


def _best_first(descriptions: Mapping[int, _Description]) -> list[int]:
    """Steps by their metric, of equals the newest first; those without one come last."""

    def rank(step: int) -> tuple[bool, float, int]:
        metric = descriptions[step]["metric"]
        return metric is not None, metric or 0.0, step

    return sorted(descriptions, key=rank, reverse=True)


def _try_each(steps: Iterable[int], load: Callable[[int], Any]) -> tuple[Any, int | None, dict[int, str]]:
    """What the first good step holds, and the step (None: there is none); of those before it, what is wrong."""
    reasons: dict[int, str] = {}
    for step in steps:
        try:
            with _orbax_silenced():
                value = load(step)
        except CheckpointError:
            raise
        except Exception as error:
            reasons[step] = _root_message(error)
        if all_processes_agree(step not in reasons):
            return value, step, reasons
        reasons.setdefault(step, "another process cannot read it")
    return None, None, reasons


def _first_good(steps: Sequence[int], load: Callable[[int], Any], directory: Path) -> tuple[Any, int]:
    value, good, reasons = _try_each(steps, load)
    if good is None:
        raise _no_good_step(directory, reasons)
    if reasons:
        _warn_of_damage(directory, reasons, good)
    return value, good


def _no_good_step(directory: Path, reasons: Mapping[int, str]) -> CheckpointError:
    if not reasons:
        return CheckpointError(f"there is no checkpoint in {directory}")
    return CheckpointError(f"no good checkpoint in {directory}: {_listed(reasons)}")


def _warn_of_damage(directory: Path, reasons: Mapping[int, str], good: int) -> None:
    message = f"damaged checkpoints in {directory} passed over: {_listed(reasons)}; step {good} is used"
    warnings.warn(message, stacklevel=4)


def _load_parts(
    directory: Path,
    descriptions: Mapping[int, _Description],
    damaged: Mapping[int, str],
    names: Sequence[str] | None,
    sharding: Any,
    step: int,
) -> dict[str, Any]:
    from orbax.checkpoint import v1

    path, description = directory / str(step), _intact(step, descriptions, damaged)
    fields = description["fields"]
    if unknown := [name for name in names or () if name not in fields]:
        raise CheckpointError(f"names={unknown} are not in checkpoint {step} of {directory}; there: {sorted(fields)}")
    chosen = fields if names is None else names
    expected = {name: leaf for name, leaf in description["leaves"].items() if _is_below(name, chosen)}
    saved = v1.metadata(path).metadata
    parts = {name: saved[name] for name in chosen}
    context = v1.Context()
    context.pytree.loading.partial_load = True
    place = sharding or _default_sharding()
    with context:
        template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), parts)
        variables = v1.load(path, template)
    _verify(expected, variables)
    return variables


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _describe(state: Any, config: Mapping[str, Any], metric: float | None) -> _Description:
    """Everything that is stored beside the arrays, and by which they are verified."""
    known = metric is not None and math.isfinite(metric)
    return {
        "config": freeze(config),
        "metric": float(metric) if metric is not None and known else None,
        "fields": _fields(state),
        "leaves": _describe_leaves(state),
    }


def _fields(state: Any) -> list[str]:
    """The names of the top level, those without any leaf included."""
    children, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda node: node is not state)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in children]


def _describe_leaves(state: Any) -> dict[str, dict[str, Any]]:
    leaves = _named_leaves(state)
    for name, leaf in leaves.items():
        if not isinstance(leaf, jax.Array | np.ndarray):
            raise CheckpointError(f"{name}={leaf!r} of the state is a {type(leaf).__name__}; only arrays can be saved")
        if isinstance(leaf, np.ndarray) and leaf.dtype != jax.dtypes.canonicalize_dtype(leaf.dtype):
            raise CheckpointError(
                f"{name} of the state has dtype={leaf.dtype}, which JAX would not read back (x64 is off)"
            )
    return {name: _describe_leaf(leaf) for name, leaf in leaves.items()}


def _describe_leaf(leaf: Any) -> dict[str, str]:
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


def _verify(stored: Mapping[str, Any], tree: Any) -> None:
    found = {name: _describe_leaf(leaf) for name, leaf in _named_leaves(tree).items()}
    wrong = sorted(name for name in stored.keys() | found.keys() if stored.get(name) != found.get(name))
    if wrong:
        raise _Damaged(f"{len(wrong)} leaves are not what was saved: {', '.join(wrong[:_SHOWN])}")


def _sealed(description: _Description) -> dict[str, Any]:
    return {**description, "sha256": hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()}


def _unsealed(sealed: Mapping[str, Any]) -> _Description:
    description = {key: value for key, value in sealed.items() if key != "sha256"}
    if _sealed(description) != sealed:
        raise _Damaged("its description is missing or not what was saved")
    if not {"metric", "fields"} <= description.keys():
        raise _Damaged("it was written by an older version, which did not seal the metric")
    return description


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    place = getattr(leaf, "sharding", None) or _default_sharding()
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _default_sharding() -> jax.sharding.Sharding:
    if jax.process_count() == 1:
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("all",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


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


class _WithoutStragglers:
    """`sys.unraisablehook` without the reads that were under way when one failed."""

    def __init__(self, hook: Callable[[Any], Any]):
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        text = f"{unraisable.exc_value} {unraisable.object!r}"
        if not any(mark in text for mark in (*_MARKS_OF_ORBAX, "Event loop is closed")):
            self._hook(unraisable)


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    text = f"{record.pathname} {record.getMessage()}"
    return record.levelno < logging.ERROR or not any(mark in text for mark in _MARKS_OF_ORBAX)


def _silence_stragglers() -> None:
    """What fails is raised; besides, each of Orbax's threads and tasks logs it, page by page and at any later time."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_not_of_orbax)
    if not isinstance(sys.unraisablehook, _WithoutStragglers):
        sys.unraisablehook = _WithoutStragglers(sys.unraisablehook)


@contextlib.contextmanager
def _orbax_silenced() -> Iterator[None]:
    """On a damaged checkpoint Orbax logs pages of what its exception says anyway."""
    _silence_stragglers()
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(action="ignore"):
        try:
            yield
        except BaseException:
            time.sleep(_STRAGGLERS_SECONDS)
            gc.collect()
            raise
        finally:
            logging.disable(disabled)


def _root_message(error: BaseException) -> str:
    while cause := error.__cause__ or error.__context__:
        error = cause
    first_line = next(iter(str(error).splitlines()), "")
    if len(first_line) > 2 * _ENDS_SHOWN:  # TensorStore begins with the place and ends with the cause
        first_line = f"{first_line[:_ENDS_SHOWN]} ... {first_line[-_ENDS_SHOWN:]}"
    if isinstance(error, _Damaged):
        return first_line
    return f"{type(error).__name__}: {first_line}" if first_line else type(error).__name__
