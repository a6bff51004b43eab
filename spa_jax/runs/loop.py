"""The loop: restore, step, record, evaluate, save, and at the end the report."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from spa_jax.attacks.catalogue import attack_from_config, part_names
from spa_jax.configuration import build
from spa_jax.data import steps_per_epoch, train_batches
from spa_jax.errors import ConfigError, SpaError
from spa_jax.evaluation.accuracy import evaluate
from spa_jax.evaluation.sweep import DeviceBatch, example_keys, make_sweep
from spa_jax.parallel import data_mesh
from spa_jax.runs.checkpoints import Checkpoints, prepare_workdir
from spa_jax.runs.checkpoints import check_config as check_same_config
from spa_jax.runs.experiment import (
    MAY_CHANGE,
    Experiment,
    LoadData,
    check_config,
    classifies,
    data_loader,
    evaluation_batch_size,
    find_parts,
    make_experiment,
    selection_attack,
    selects_by,
    training_order,
    variants,
)
from spa_jax.runs.lock import sole_run
from spa_jax.runs.recorder import Recorder
from spa_jax.runs.reporting import report_models
from spa_jax.runs.settings import complete
from spa_jax.training.optimizers import SCHEDULES
from spa_jax.training.state import TrainState

_INIT, _TRAIN, _EVALUATE = 0, 1, 2
_NUM_EPOCHS = "training.num_epochs"


class TrainingDiverged(SpaError):
    """The loss became NaN or infinite."""


class Interrupted(SpaError):
    """The run was asked to stop and has saved its state."""


def train_and_evaluate(config: Mapping[str, Any], workdir: str | Path, *, extend: bool = False) -> str:
    """Train every model of a config and write the report that compares them.

    Started again with the same config and directory it continues from the last good checkpoint and ends with the same
    parameters, bit for bit; a finished model is not trained again. While it lives, no other run can use the directory.

    Args:
        config: see `spa_jax.runs.settings.Settings` and `configs/`.
        workdir: gets one directory a model (checkpoints, metrics.jsonl, TensorBoard events) and `report/`.
        extend: whether `training.num_epochs` may be larger than that of the directory's checkpoints. The schedule then
            spans the new number of steps from the next step on, so the learning rate may jump: a line says from what to
            what. The result is not that of a run of the larger number from its start.

    Returns:
        The report's table as text.

    Raises:
        ConfigError: the config is wrong, or not the one that the directory's checkpoints were made with.
        ValueError: a number out of range; a batch that the devices cannot share; the report cannot be written.
        DataNotFoundError: the data are not there.
        WorkdirInUse: another run is using the directory.
        CheckpointError: the directory cannot be written, or all its checkpoints are damaged or of another model.
        RecordError: the metrics cannot be written.
        TrainingDiverged: the loss became NaN.
        Interrupted: SIGTERM or SIGINT came; the state is saved.
    """
    config, workdir = check_config(config), Path(workdir).expanduser()
    experiments, load = _prepare(config, workdir)
    with sole_run(prepare_workdir(workdir)):
        _train_each(experiments, workdir, extend)
        return report_models(config, workdir, load, data_mesh())


def train_models(config: Mapping[str, Any], workdir: Path) -> tuple[dict[str, dict[str, Any]], LoadData]:
    """Train every model of a checked config, each in its own directory; finished ones are left as they are.

    Everything is built, and so checked, before the first of them starts.

    Returns:
        The configs of the models by name, and what loads a config's data and has read these.
    """
    experiments, load = _prepare(config, workdir)
    with sole_run(prepare_workdir(workdir)):
        _train_each(experiments, workdir)
    return variants(config), load


def _prepare(config: Mapping[str, Any], workdir: Path) -> tuple[dict[str, Experiment], LoadData]:
    """The experiments of a config by name, in the order of training, and what has read their data."""
    mesh, models, load = data_mesh(), variants(config), data_loader()
    experiments = {}
    for name, variant in models.items():
        judged, selected = variant["evaluation"], selection_attack(variant)
        if not classifies(variant):  # what it has from the config to judge classifiers is not for it
            judged, selected = judged["manipulation"], None
        needed = part_names([variant["recipe"], variant["training"], selected]) - set(variant["networks"] or {})
        known = find_parts(variant, needed | part_names(judged), models, workdir, load)
        parts = {part: known[part] for part in sorted(needed & set(known))}
        experiments[name] = make_experiment(variant, load(variant), mesh, parts, known)
    return {name: experiments[name] for name in training_order(experiments, workdir)}, load


def _train_each(experiments: Mapping[str, Experiment], workdir: Path, extend: bool = False) -> None:
    for name, experiment in experiments.items():
        train(experiment, workdir / name, extend=extend)


def train(experiment: Experiment, workdir: Path, *, extend: bool = False) -> None:
    """Train one model to its last step, from its last good checkpoint if there is one.

    The caller sees to it that nothing else trains in the directory, see `sole_run`.
    """
    frozen = _frozen_parts(experiment, workdir / "frozen")
    with Checkpoints(workdir) as checkpoints, _stop_requests() as stop_requested:
        state, news = _restore_or_init(experiment, checkpoints, frozen, extend)
        start = int(state.step)
        if start >= experiment.total_steps:
            return
        with Recorder(workdir, experiment.total_steps, start, experiment.config["name"]) as recorder:
            for line in news:
                recorder.message(f"{experiment.config['name']}: {line}")
            _run(experiment, state.replace(frozen=frozen), checkpoints, recorder, stop_requested)


def _restore_or_init(
    experiment: Experiment, checkpoints: Checkpoints, frozen: Mapping[str, Any], extend: bool
) -> tuple[TrainState, list[str]]:
    """The state to go on from, and what is to be said about it."""
    if checkpoints.latest_step is not None:
        _check_goes_on(complete(checkpoints.config()), experiment.config, extend)
    key = jax.random.fold_in(experiment.key, _INIT)
    fresh, is_resumed = (
        experiment.learner.init(key, experiment.dataset.image_shape),
        checkpoints.latest_step is not None,
    )
    if (start := experiment.config["training"]["start_from"]) and not is_resumed:
        fresh = experiment.learner.started_from(fresh, frozen[start["part"]])
    fresh = experiment.engine.place_state(fresh.replace(carried=experiment.carried(frozen, is_resumed)))
    if not is_resumed:
        return fresh, []
    state, step = checkpoints.restore(fresh)
    return state, [f"going on from step {step}", *_extension(complete(checkpoints.config(step)), experiment, step)]


def _check_goes_on(stored: Mapping[str, Any], current: Mapping[str, Any], extend: bool) -> None:
    """Check that a run may go on with this config from a checkpoint of that one.

    Raises:
        ConfigError: they differ in what may not change; where more epochs are asked for, it names the flag.
    """
    before, now = (config["training"]["num_epochs"] for config in (stored, current))
    longer = now > before
    try:
        may_change = (*MAY_CHANGE, _NUM_EPOCHS) if extend and longer else MAY_CHANGE
        check_same_config(stored, current, may_change=may_change)
    except ConfigError as error:
        if extend or not longer:
            raise
        hint = f"to go on to {_NUM_EPOCHS}={now:g}, add --extend (in Python: extend=True)"
        raise ConfigError(f"{error}\n{hint}") from None


def _extension(stored: Mapping[str, Any], experiment: Experiment, step: int) -> list[str]:
    """What a larger number of steps changes from here on, as one line; nothing if it is the same."""
    config, total = experiment.config, experiment.total_steps
    before, now = (own["training"]["num_epochs"] for own in (stored, config))
    if before == now:
        return []
    former = round(before * steps_per_epoch(experiment.dataset.train, config["training"]["batch_size"]))
    rates = [
        f"{f'of {name} ' if name else ''}{_rate(spec, former, step):.4g} -> {_rate(spec, total, step):.4g}"
        for name, spec in {"": config, **(config.get("networks") or {})}.items()
    ]
    line = (
        f"extended from {former} to {total} steps ({_NUM_EPOCHS}={before:g} -> {now:g}), which stretches the schedule"
    )
    warmups = [round(config["training"]["attack_warmup"] * steps) for steps in (former, total)]
    warmup = f"; attack warm-up {warmups[0]} -> {warmups[1]} steps" if warmups[1] else ""
    return [f"{line}: learning rate of step {step + 1} {', '.join(rates)}{warmup}"]


def _rate(spec: Mapping[str, Any], total_steps: int, step: int) -> float:
    return float(build(SCHEDULES, spec["schedule"], "schedule", "config.schedule", total_steps=total_steps)(step))


def _frozen_parts(experiment: Experiment, directory: Path) -> dict[str, Any]:
    """The parts trained before, as they were when this model's training began.

    They are saved beside its checkpoints, twice, so that one damaged file does not cost them.
    """
    if not experiment.parts:
        return {}
    everywhere = NamedSharding(experiment.mesh, PartitionSpec())
    parts = {name: part.load(everywhere) for name, part in experiment.parts.items()}
    with Checkpoints(directory) as store:
        if store.latest_step is not None:
            parts, _ = store.restore(parts)
        saved = -1 if store.latest_step is None else store.latest_step
        for copy in range(saved + 1, 2):
            store.save(copy, parts, config={})
    return parts


def _run(
    experiment: Experiment,
    state: TrainState,
    checkpoints: Checkpoints,
    recorder: Recorder,
    stop_requested: Callable[[int], bool],
) -> None:
    engine, start, total = experiment.engine, int(state.step), experiment.total_steps
    key = engine.place_state(jax.random.fold_in(experiment.key, _TRAIN))
    batch_size = experiment.config["training"]["batch_size"]
    watch = _LossWatch(recorder, checkpoints, batch_size)
    for step, batch in zip(range(start + 1, total + 1), _batches(experiment, start), strict=False):
        placed = engine.place_batch(batch)
        for _ in range(experiment.updates):
            state, metrics = engine.step(state, placed, key)
        watch.add(step, metrics)
        stopping = stop_requested(step) and step < total
        due = step == total or step % experiment.evaluate_every == 0
        if due or stopping:
            watch.flush()
            recorder.flush()  # before the checkpoint: what a resumed run does not do again must be on disk
        if due:
            _evaluate_and_save(experiment, state, checkpoints, recorder)
        elif stopping:
            checkpoints.save(step, state.replace(frozen={}), config=experiment.config)
        if stopping:
            checkpoints.wait()
            raise Interrupted(f"stopped at step={step} of {total}, saved; the same command goes on from there")


def _batches(experiment: Experiment, start: int) -> Iterator[Any]:
    return train_batches(
        experiment.dataset.train,
        experiment.config["training"]["batch_size"],
        seed=experiment.config["seed"],
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _evaluate_and_save(experiment: Experiment, state: TrainState, checkpoints: Checkpoints, recorder: Recorder) -> None:
    """Judge the validation split, record it, and save the state with the number that chooses the best checkpoint."""
    step = int(state.step)
    judge = _judge_classifier if classifies(experiment.config) else _judge_part
    found, score = judge(experiment, state)
    recorder.evaluation(step, "validation", found)
    checkpoints.save(step, state.replace(frozen={}), config=experiment.config, metric=score)


def _judge_classifier(experiment: Experiment, state: TrainState) -> tuple[dict[str, float], float]:
    """Accuracies on the validation split, and the one that chooses."""
    spec = selection_attack(experiment.config)
    attacks = {} if spec is None else {"robust": attack_from_config(spec, experiment.learner.parts(state))}
    validation = experiment.dataset.validation
    found = evaluate(
        experiment.learner.victim(state, averaged=True),
        validation,
        attacks,
        key=jax.random.fold_in(experiment.key, _EVALUATE),
        batch_size=evaluation_batch_size(experiment.config, validation),
        mesh=experiment.mesh,
        sanity=False,
    )
    accuracies = {"accuracy": found.accuracies["clean"].value}
    if attacks:
        accuracies["robust_accuracy"] = found.accuracies["worst_case"].value
    return accuracies, accuracies["accuracy" if selects_by(experiment.config) == "clean" else "robust_accuracy"]


def _judge_part(experiment: Experiment, state: TrainState) -> tuple[dict[str, float], float]:
    """Means over the validation split of what the recipe measures, and the number that chooses."""
    validation, split = experiment.validation, experiment.dataset.validation
    key = jax.random.fold_in(experiment.key, _EVALUATE)
    sweep = make_sweep(split, evaluation_batch_size(experiment.config, split), experiment.mesh)

    def measure(batch: DeviceBatch) -> Any:
        keys = example_keys(key, batch.index)
        return experiment.measure(state, keys, batch.images, batch.labels, batch.attribute)

    found = sweep.run("validation", measure, np.arange(len(sweep.split)))
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return means, validation.sign * means[validation.chosen]


class _LossWatch:
    """Records metrics one step late, so that the host never waits for the step that runs, and stops at a NaN."""

    def __init__(self, recorder: Recorder, checkpoints: Checkpoints, batch_size: int):
        self._recorder, self._checkpoints, self._batch_size = recorder, checkpoints, batch_size
        self._pending: tuple[int, Any] | None = None

    def add(self, step: int, metrics: Any) -> None:
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        values = {name: float(np.asarray(value)) for name, value in metrics.items()}
        self._recorder.train(step, values, self._batch_size)
        if not np.isfinite(values["loss"]):
            good = self._checkpoints.latest_step
            last = f"the last good checkpoint is step {good}" if good else "there is no checkpoint before it"
            raise TrainingDiverged(
                f"loss={values['loss']!r} at step {step} must be finite; {last}, in {self._checkpoints.directory}"
            )


@contextlib.contextmanager
def _stop_requests() -> Iterator[Callable[[int], bool]]:
    """Whether to save and stop after a step: SIGTERM or SIGINT has come. A second SIGINT interrupts at once."""
    if jax.process_count() > 1:  # every process must stop after the same step, so JAX's preemption service decides
        yield multihost_utils.reached_preemption_sync_point
        return
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    try:
        previous = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not in the main thread: whoever runs this thread handles signals
        previous = {}
    try:
        yield lambda step: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
