"""Universal perturbations over data sets: crafted on one split, measured on another, and what labels they lead to."""

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from spa_jax.attacks.base import PureAttack
from spa_jax.data.batching import steps_per_epoch, train_batches
from spa_jax.data.types import Examples, IndexArray
from spa_jax.evaluation.gallery import NO_ANSWER
from spa_jax.evaluation.judging import answers, described, logits_of_batch
from spa_jax.evaluation.records import ExampleLabels, Proportion
from spa_jax.evaluation.sweep import DeviceBatch, Progress, Sweep, floats, make_sweep, stream
from spa_jax.goals import is_answer
from spa_jax.parallel import data_mesh, shard_batch, to_host
from spa_jax.trees import one_ahead
from spa_jax.types import Key, Variables, Victim
from spa_jax.validation import require_classes, require_count


@dataclasses.dataclass(frozen=True, eq=False)
class UniversalRecord:
    """What one universal perturbation does to a split that it was not made for.

    Attributes:
        labels: [n], true classes.
        clean: [n], what the victim answers to the images as they are; -1 where its answer is not finite.
        answers: [n], what it answers to the perturbed images; -1 where the answer, or the image, is not finite.
        num_classes: k.
        variables: of the perturbation, as NumPy arrays.
        target: the class it was to lead to, or None.
        crafting_images: how many images it was made from.
        passes: forward passes of one image that this took, each with its backward pass; alone they count half.
        seconds: wall time of the crafting, compilation included.
        parameters: what the attack is made of, as plain data.
    """

    labels: ExampleLabels
    clean: ExampleLabels
    answers: ExampleLabels
    num_classes: int
    variables: Variables
    target: int | None = None
    crafting_images: int = 0
    passes: int = 0
    seconds: float = 0.0
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def accuracy(self) -> Proportion:
        """Share of perturbed images classified correctly; those misclassified clean may be among them."""
        return Proportion.of(self.answers == self.labels)

    @property
    def broken(self) -> int:
        """How many perturbed images have no finite answer: they are misclassified, and not at a target."""
        return int(np.sum(self.answers == NO_ANSWER))

    @property
    def fooling_ratio(self) -> Proportion:
        """Share of images whose answer the perturbation changes (Moosavi-Dezfooli et al. 2017, section 2)."""
        return Proportion.of(self.answers != self.clean)

    @property
    def target_share(self) -> Proportion:
        """Share of the images of other classes that are answered with the target.

        Raises:
            ValueError: it has no target.
        """
        if self.target is None:
            raise ValueError("target=None: the perturbation was untargeted")
        return Proportion.of(self.answers[self.labels != self.target] == self.target)

    @property
    def flow(self) -> Int[np.ndarray, "k k"]:
        """How many images of each class (rows) are answered with each class (columns); broken answers are left out."""
        counts, answered = np.zeros((self.num_classes, self.num_classes), int), self.answers != NO_ANSWER
        np.add.at(counts, (self.labels[answered], self.answers[answered]), 1)
        return counts

    @property
    def top_share(self) -> float:
        """Share of the commonest answer among all answers."""
        return float(np.max(self._shares(self.answers)))

    @property
    def label_entropy(self) -> float:
        """Entropy of the answers over log k, in [0, 1]; 1 where all classes are answered equally often."""
        return _entropy(self._shares(self.answers)) / float(np.log(self.num_classes))

    @property
    def effective_labels(self) -> float:
        """exp of the entropy of the answers: how many classes they are spread over."""
        return float(np.exp(_entropy(self._shares(self.answers))))

    @property
    def effective_wrong_labels(self) -> float:
        """The same of the answers to misclassified images alone, which correct answers do not make look balanced."""
        return float(np.exp(_entropy(self._shares(self.answers[self.answers != self.labels]))))

    @property
    def class_accuracies(self) -> dict[int, Proportion]:
        """Accuracy on each class that occurs."""
        correct = self.answers == self.labels
        return {int(label): Proportion.of(correct[self.labels == label]) for label in np.unique(self.labels)}

    @property
    def class_minimum(self) -> float:
        """The lowest accuracy of a class."""
        return min(share.value for share in self.class_accuracies.values())

    @property
    def smallest_drop(self) -> float:
        """The smallest loss of accuracy of a class: below 0 where a class gains from answers that all go to it."""
        correct = self.clean == self.labels
        clean = {label: float(np.mean(correct[self.labels == label])) for label in self.class_accuracies}
        return min(clean[label] - share.value for label, share in self.class_accuracies.items())

    @property
    def class_spread(self) -> float:
        """Standard deviation of the classes' accuracies."""
        return float(np.std([share.value for share in self.class_accuracies.values()]))

    def _shares(self, answers: ExampleLabels) -> np.ndarray:
        answers = answers[answers != NO_ANSWER]
        return np.bincount(answers, minlength=self.num_classes) / max(1, len(answers))


def _entropy(shares: np.ndarray) -> float:
    return float(-np.sum(shares * np.log(np.where(shares > 0, shares, 1))))


def craft(
    attack: PureAttack,
    victim: Victim,
    split: Examples,
    *,
    key: Key,
    batch_size: int,
    num_epochs: int = 1,
    target: int | None = None,
    mesh: Mesh | None = None,
    on_batch: Progress | None = None,
) -> Any:
    """Carry a universal attack over a data set: one step a batch.

    Args:
        attack: with shared variables, such as `spa_jax.uap(8 / 255)`.
        victim: any function from images to logits, or `spa_jax.randomized(f)`.
        split: the crafting images; the batches of an epoch are drawn without repetition, an incomplete last one is left
            out.
        key: of the start and the order.
        batch_size: images of a batch over all devices; at most all of them, rounded down to a multiple of the devices.
            Fewer images than devices are left to one of them.
        num_epochs: passes over the split.
        target: the class to reach; its own images are then left out. None: untargeted.
        mesh: default: all devices.
        on_batch: told of the progress.

    Returns:
        The attack's state after the last step: `attack.found(state)` is the perturbation, and `attack.step` goes on.

    Raises:
        ValueError: no images (of other classes than the target) to craft from, a per-example attack, a target that is
            not a class, a number below 1.
    """
    return _craft(attack, victim, split, key, batch_size, num_epochs, target, mesh, on_batch)[0]


def _craft(
    attack: PureAttack,
    victim: Victim,
    split: Examples,
    key: Key,
    batch_size: int,
    num_epochs: int,
    target: int | None,
    mesh: Mesh | None,
    on_batch: Progress | None,
) -> tuple[Any, int]:
    """The last state, and the number of images that were shown."""
    if not getattr(attack, "shared", False):
        raise ValueError("attack has variables for each image: craft carries universal ones, such as spa_jax.uap")
    require_count("num_epochs", num_epochs)
    mesh = data_mesh() if mesh is None else mesh
    split = _other_classes(split, target)
    batch_size = min(batch_size, len(split))
    if batch_size < mesh.size and jax.process_count() == 1:
        mesh = data_mesh([mesh.devices.flat[0]])
    batch_size = batch_size // mesh.size * mesh.size
    if batch_size < 1:
        raise ValueError(f"a batch of {len(split)} crafting images cannot be split over {mesh.size} devices")
    sweep = Sweep(split, batch_size, mesh)
    victim, num_batches = sweep.place(victim, [attack]), num_epochs * steps_per_epoch(split, batch_size)
    order_key, start_key = stream(key, "order"), stream(key, "start")
    seed = int(jax.random.bits(order_key, dtype=np.uint32))
    batches = itertools.islice(train_batches(split, batch_size, seed=seed), num_batches)
    state = None
    for number, batch in enumerate(batches):
        images, labels, targets = shard_batch(_arrays(batch, target), mesh)
        images = floats(images)
        if state is None:
            state = attack.init(start_key, victim, images, labels, targets)
        state = one_ahead(state, attack.step(state, victim, images, labels, targets))
        if on_batch:
            on_batch("crafting", (number + 1) * batch_size, num_batches * batch_size)
    return state, num_batches * batch_size


def _arrays(batch: Mapping[str, np.ndarray], target: int | None) -> tuple[Any, Any, Any]:
    labels = batch["label"]
    return batch["image"], labels, None if target is None else np.full_like(labels, target)


def _other_classes(split: Examples, target: int | None) -> Examples:
    if target is not None:
        labels = split.labels if split.labels is not None else split.take(np.arange(len(split)))["label"]
        split = split.subset(np.flatnonzero(labels != target))
    if not len(split):
        raise ValueError("the crafting set is empty" + ("" if target is None else f" without target={target}"))
    return split


def measure_universal(
    attack: PureAttack,
    victim: Victim,
    split: Examples,
    variables: Variables,
    *,
    key: Key,
    batch_size: int,
    target: int | None = None,
    clean: ExampleLabels | None = None,
    mesh: Mesh | None = None,
    on_batch: Progress | None = None,
) -> UniversalRecord:
    """Show a victim a whole split as it is and with a universal perturbation.

    An answer that is not finite, to a finite image or not, is the right one for no image.

    Args:
        attack: that made the variables.
        victim: any function from images to logits, or `spa_jax.randomized(f)`; both answers have fresh keys.
        split: the images, disjoint from those that the perturbation was made from.
        variables: of the attack's state.
        key: of the whole measurement.
        batch_size: examples at once over all devices.
        target: that the perturbation was made for.
        clean: [n], of `clean_answers`, where they are known; None: they are found here.
        mesh: default: all devices.
        on_batch: told of the progress.

    Raises:
        ValueError: an empty split, clean answers of another one, or a broken rule of the attack.
    """
    if clean is not None and len(clean) != len(split):
        raise ValueError(f"clean holds {len(clean)} answers, must be one for each of the {len(split)} images of split")
    sweep = make_sweep(split, batch_size, mesh, on_batch)
    victim = sweep.place(victim, [attack])
    predict, judge_key = sweep.predict(victim), stream(key, "judge")
    variables = jax.tree.map(jax.numpy.asarray, variables)

    def perturbed(batch: DeviceBatch) -> Any:
        targets = None if target is None else jax.numpy.full_like(batch.labels, target)
        changed = attack.apply(variables, victim, batch.images, batch.labels, target=targets)
        return answers(predict, judge_key, batch.index, changed), batch.labels

    num_classes = sweep.check_labels(victim, split.take(np.arange(1))["label"])
    if clean is None:
        clean = clean_answers(victim, split, key=key, batch_size=batch_size, mesh=mesh)
    changed, labels = sweep.run("measuring", perturbed, np.arange(len(split)))
    return UniversalRecord(labels, clean, changed, num_classes, to_host(variables), target)


def clean_answers(
    victim: Victim, split: Examples, *, key: Key, batch_size: int, mesh: Mesh | None = None
) -> ExampleLabels:
    """The victim's answers to the images as they are, -1 where one is not finite, for `measure_universal`.

    Arguments and errors are those of `measure_universal`.
    """
    sweep = make_sweep(split, batch_size, mesh)
    victim = sweep.place(victim)
    predict, clean_key = sweep.predict(victim), stream(key, "clean")
    sweep.check_labels(victim, split.take(np.arange(1))["label"])
    return sweep.run(
        "clean", lambda batch: answers(predict, clean_key, batch.index, batch.images), np.arange(len(split))
    )


def evaluate_universal(
    victim: Victim,
    crafting: Examples,
    split: Examples,
    attacks: Mapping[str, Any],
    *,
    key: Key,
    batch_size: int,
    num_epochs: int = 1,
    seeds: int = 1,
    targets: Mapping[str, Sequence[int]] | None = None,
    clean: ExampleLabels | None = None,
    mesh: Mesh | None = None,
    on_batch: Progress | None = None,
) -> dict[str, list[UniversalRecord]]:
    """Craft universal perturbations afresh against a victim on one split, and measure them on another.

    The victim answers the images as they are once for all perturbations.

    Args:
        victim: any function from images to logits, or `spa_jax.randomized(f)`.
        crafting: the images to make them from; the attacker's training data, disjoint from `split`.
        split: the images to measure on.
        attacks: with shared variables, by name.
        key: of the whole evaluation.
        batch_size: images at once over all devices, when crafting and when measuring.
        num_epochs: passes over the crafting images.
        seeds: how often each is made, from other starts and in another order.
        targets: for the attacks named here, the classes that each is made for, one perturbation a class.
        clean: [n], of `clean_answers` on `split`, where they are known; None: they are found here.
        mesh: default: all devices.
        on_batch: told of the progress.

    Returns:
        For each attack its records, by seed and then by target. `worst_record` picks the strongest.

    Raises:
        ValueError: as `craft`; targets for an attack that is not there, or that are not classes.
    """
    require_count("seeds", seeds)
    targets = dict(targets or {})
    if unknown := sorted(set(targets) - set(attacks)):
        raise ValueError(f"targets={unknown} name attacks that are not there; there are {', '.join(attacks)}")
    num_classes = make_sweep(split, batch_size, mesh).check_labels(victim, split.take(np.arange(1))["label"])
    for name, classes in targets.items():
        require_classes(f"targets[{name!r}]", classes, num_classes)
    found: dict[str, list[UniversalRecord]] = {name: [] for name in attacks}
    common: dict[str, Any] = {"batch_size": batch_size, "mesh": mesh}
    if clean is None:
        clean = clean_answers(victim, split, key=key, **common)
    for (name, attack), seed in itertools.product(attacks.items(), range(seeds)):
        for target in targets.get(name, (None,)):
            own = stream(jax.random.fold_in(key, seed), name, str(target))
            shown = _named_progress(on_batch, name)
            started = time.perf_counter()
            state, images = _craft(attack, victim, crafting, own, batch_size, num_epochs, target, mesh, shown)
            variables = jax.block_until_ready(attack.found(state))
            seconds = time.perf_counter() - started
            record = measure_universal(attack, victim, split, variables, key=own, target=target, clean=clean, **common)
            passes = passes_of(state, images)
            cost: dict[str, Any] = {"crafting_images": len(crafting), "passes": passes, "seconds": seconds}
            found[name].append(dataclasses.replace(record, parameters=described(attack), **cost))
    return found


def passes_of(state: Any, images: int) -> int:
    """The passes of `UniversalRecord` that a state of `craft` took, which was shown so many images."""
    return int(state.evaluations) // 2 if hasattr(state, "evaluations") else images


def measure_transfer(
    attacks: Mapping[str, Any],
    found: Mapping[str, Sequence[UniversalRecord]],
    victim: Victim,
    split: Examples,
    *,
    key: Key,
    batch_size: int,
    clean: ExampleLabels | None = None,
    mesh: Mesh | None = None,
) -> dict[str, list[UniversalRecord]]:
    """Show a victim the perturbations that were made against another one.

    Args:
        attacks: by name, those that made them.
        found: of `evaluate_universal` for the other victim, whose cost the records keep.
        victim, split, key, batch_size, clean, mesh: as for `evaluate_universal`.

    Raises:
        ValueError: as `measure_universal`.
    """
    common: dict[str, Any] = {"key": key, "batch_size": batch_size, "mesh": mesh}
    if clean is None:
        clean = clean_answers(victim, split, **common)

    def shown(attack: Any, record: UniversalRecord) -> UniversalRecord:
        own = measure_universal(attack, victim, split, record.variables, target=record.target, clean=clean, **common)
        return dataclasses.replace(record, labels=own.labels, clean=own.clean, answers=own.answers)

    return {name: [shown(attacks[name], record) for record in records] for name, records in found.items()}


def _named_progress(on_batch: Progress | None, name: str) -> Progress | None:
    return None if on_batch is None else lambda what, done, total: on_batch(f"{name}, {what}", done, total)


def boundary_points(
    victim: Victim,
    split: Examples,
    target: int,
    count: int,
    *,
    key: Key,
    batch_size: int,
    mesh: Mesh | None = None,
) -> IndexArray:
    """The images that lie nearest to the region of a class: the smallest margins z_y - z_t.

    Only images of other classes that are classified correctly are among them. Region adversarial training (RAT) makes
    its targeted perturbations from these; its abstract speaks of a small set near the boundary, the margin is our
    choice.

    Args:
        victim: any function from images to logits, or `spa_jax.randomized(f)`.
        split: to choose from.
        target: the class t.
        count: how many, at least 1; fewer where fewer images are classified correctly.
        key: of a randomised victim.
        batch_size: examples at once over all devices.
        mesh: default: all devices.

    Returns:
        Indices into the split, from the smallest margin on.

    Raises:
        ValueError: `count` below 1, a target that is not a class, or no image of another class classified correctly.
    """
    return nearest_to(*logits_of(victim, split, key=key, batch_size=batch_size, mesh=mesh), target, count)


def logits_of(
    victim: Victim, split: Examples, *, key: Key, batch_size: int, mesh: Mesh | None = None
) -> tuple[Float[np.ndarray, "n k"], ExampleLabels]:
    """The victim's logits of a whole split, and the labels; arguments and errors as for `boundary_points`."""
    sweep = make_sweep(split, batch_size, mesh)
    victim = sweep.place(victim)
    predict = sweep.predict(victim)
    sweep.check_labels(victim, split.take(np.arange(1))["label"])

    def seen(batch: DeviceBatch) -> Any:
        return logits_of_batch(predict, key, batch), batch.labels

    return sweep.run("logits", seen, np.arange(len(split)))


def nearest_to(logits: Float[np.ndarray, "n k"], labels: ExampleLabels, target: int, count: int) -> IndexArray:
    """`boundary_points` of logits that are known, for one target after the other."""
    require_count("count", count)
    require_classes("target", (target,), logits.shape[1])
    gaps = logits[np.arange(len(labels)), labels] - logits[:, target]
    is_correct = np.asarray(is_answer(jax.numpy.asarray(logits))) & (np.argmax(logits, axis=-1) == labels)
    usable = is_correct & (labels != target)
    order = np.argsort(np.where(usable, gaps, np.inf), kind="stable")[: min(count, int(usable.sum()))]
    if not len(order):
        raise ValueError(f"target={target}: the victim classifies no image of another class correctly")
    return order


def worst_record(records: Sequence[UniversalRecord]) -> UniversalRecord:
    """The strongest of several perturbations: the one that leaves the lowest accuracy.

    Raises:
        ValueError: no record.
    """
    if not records:
        raise ValueError("records=[] must hold at least one")
    return min(records, key=lambda record: record.accuracy.value)
