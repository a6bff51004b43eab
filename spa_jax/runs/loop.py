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
from spa_jax.data import train_batches
from spa_jax.errors import SpaError
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
    find_parts,
    make_experiment,
    selection_attack,
    selects_by,
    training_order,
    variants,
)
from spa_jax.runs.recorder import Recorder
from spa_jax.runs.reporting import report_models
from spa_jax.runs.settings import complete
from spa_jax.training.state import TrainState

_INIT, _TRAIN, _EVALUATE = 0, 1, 2


class TrainingDiverged(SpaError):
    """The loss became NaN or infinite."""


class Interrupted(SpaError):
    """The run was asked to stop and has saved its state."""


def train_and_evaluate(config: Mapping[str, Any], workdir: str | Path) -> str:
    """Train every model of a config and write the report that compares them.

    Started again with the same config and directory it continues from the last checkpoint and ends with the same
    parameters, bit for bit; a finished model is not trained again.

    Args:
        config: see `spa_jax.runs.settings.Settings` and `configs/`.
        workdir: gets one directory a model (checkpoints, metrics.jsonl, TensorBoard events) and `report/`.

    Returns:
        The report's table as text.

    Raises:
        ConfigError: the config is wrong, or not the one that the directory's checkpoints were made with.
        ValueError: a number out of range; a batch that the devices cannot share.
        DataNotFoundError: the data are not there.
        CheckpointError: the directory cannot be written, or its checkpoints are damaged or of another model.
        TrainingDiverged: the loss became NaN.
        Interrupted: SIGTERM or SIGINT came; the state is saved.
    """
    config = check_config(config)
    workdir = Path(workdir)
    _, load = train_models(config, workdir)
    return report_models(config, workdir, load, data_mesh())


def train_models(config: Mapping[str, Any], workdir: Path) -> tuple[dict[str, dict[str, Any]], LoadData]:
    """Train every model of a checked config, each in its own directory; finished ones are left as they are.

    Everything is built, and so checked, before the first of them starts.

    Returns:
        The configs of the models by name, and what loads a config's data and has read these.
    """
    mesh, models, load = data_mesh(), variants(config), data_loader()
    experiments = {}
    for name, variant in models.items():
        judged, selected = variant["evaluation"], selection_attack(variant)
        if not classifies(variant):  # what it has from the config to judge classifiers is not for it
            judged, selected = judged["manipulation"], None
        needed = part_names([variant["recipe"], selected]) - set(variant["networks"] or {})
        known = find_parts(variant, needed | part_names(judged), models, workdir, load)
        parts = {part: known[part] for part in sorted(needed & set(known))}
        experiments[name] = make_experiment(variant, load(variant), mesh, parts, known)
    order = training_order(experiments, workdir)
    workdir = prepare_workdir(workdir)
    for name in order:
        train(experiments[name], workdir / name)
    return models, load


def train(experiment: Experiment, workdir: Path) -> None:
    """Train one model to its last step, from its last checkpoint if there is one."""
    frozen = _frozen_parts(experiment, workdir / "frozen")
    with Checkpoints(workdir) as checkpoints, _stop_requests() as stop_requested:
        state = _restore_or_init(experiment, checkpoints).replace(frozen=frozen)
        start = int(state.step)
        if start >= experiment.total_steps:
            return
        with Recorder(workdir, experiment.total_steps, start, experiment.config["name"]) as recorder:
            if start:
                recorder.message(f"{experiment.config['name']}: going on from step {start}")
            _run(experiment, state, checkpoints, recorder, stop_requested)


def _restore_or_init(experiment: Experiment, checkpoints: Checkpoints) -> TrainState:
    if checkpoints.latest_step is not None:
        check_same_config(complete(checkpoints.config()), experiment.config, may_change=MAY_CHANGE)
    key = jax.random.fold_in(experiment.key, _INIT)
    fresh = experiment.learner.init(key, experiment.dataset.image_shape).replace(carried=experiment.carried())
    fresh = experiment.engine.place_state(fresh)
    return fresh if checkpoints.latest_step is None else checkpoints.restore(fresh)[0]


def _frozen_parts(experiment: Experiment, directory: Path) -> dict[str, Any]:
    """The parts trained before, as they were when this model's training began; saved once, beside its checkpoints."""
    if not experiment.parts:
        return {}
    everywhere = NamedSharding(experiment.mesh, PartitionSpec())
    parts = {name: part.load(everywhere) for name, part in experiment.parts.items()}
    with Checkpoints(directory) as store:
        if store.latest_step is not None:
            return store.restore(parts)[0]
        store.save(0, parts, config={})
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
        state, metrics = engine.step(state, engine.place_batch(batch), key)
        watch.add(step, metrics)
        stopping = stop_requested(step) and step < total
        if step == total or step % experiment.evaluate_every == 0:
            watch.flush()
            _evaluate_and_save(experiment, state, checkpoints, recorder)
        elif stopping:
            watch.flush()
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
    found = evaluate(
        experiment.learner.victim(state, averaged=True),
        experiment.dataset.validation,
        attacks,
        key=jax.random.fold_in(experiment.key, _EVALUATE),
        batch_size=experiment.config["evaluation"]["batch_size"],
        mesh=experiment.mesh,
        sanity=False,
    )
    accuracies = {"accuracy": found.accuracies["clean"].value}
    if attacks:
        accuracies["robust_accuracy"] = found.accuracies["worst_case"].value
    return accuracies, accuracies["accuracy" if selects_by(experiment.config) == "clean" else "robust_accuracy"]


def _judge_part(experiment: Experiment, state: TrainState) -> tuple[dict[str, float], float]:
    """Means over the validation split of what the recipe measures, and the number that chooses."""
    validation = experiment.validation
    key = jax.random.fold_in(experiment.key, _EVALUATE)
    sweep = make_sweep(experiment.dataset.validation, experiment.config["evaluation"]["batch_size"], experiment.mesh)

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
