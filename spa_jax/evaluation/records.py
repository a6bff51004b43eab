"""The results of an evaluation as plain data: the examples classified correctly under each attack, and intervals."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from spa_jax.evaluation.gallery import Gallery

_NORMAL_QUANTILE_975 = 1.959963984540054

_CURVE_POINTS = 61
_SIMILARITIES = ("ssim", "psnr")

ExampleFlags: TypeAlias = Bool[np.ndarray, " n"]
ExampleShares: TypeAlias = Float[np.ndarray, " n"]
ExampleLabels: TypeAlias = Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Proportion:
    """A share of `total` examples with its 95 % interval after Wilson (1927), which is valid at 0 % and 100 % as well.

    The interval covers the sampling of the examples, not the training seed of the model.

    Raises:
        ValueError: `total` below 1, or `correct` outside of 0..total.
    """

    correct: int
    total: int

    def __post_init__(self) -> None:
        """Check the counts."""
        if self.total < 1:
            raise ValueError(f"total={self.total} must be at least 1")
        if not 0 <= self.correct <= self.total:
            raise ValueError(f"correct={self.correct} must lie in 0..total={self.total}")

    @classmethod
    def of(cls, flags: Bool[np.ndarray, " n"]) -> "Proportion":
        """The share of True."""
        return cls(int(np.sum(flags)), len(flags))

    @property
    def value(self) -> float:
        """The share, in [0, 1]."""
        return self.correct / self.total

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return max(0.0, self._centre - self._half_width) if self.correct else 0.0

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return min(1.0, self._centre + self._half_width) if self.correct < self.total else 1.0

    @property
    def _shrinkage(self) -> float:
        return 1 + _NORMAL_QUANTILE_975**2 / self.total

    @property
    def _centre(self) -> float:
        return (self.value + _NORMAL_QUANTILE_975**2 / (2 * self.total)) / self._shrinkage

    @property
    def _half_width(self) -> float:
        variance = self.value * (1 - self.value) / self.total + (_NORMAL_QUANTILE_975 / (2 * self.total)) ** 2
        return _NORMAL_QUANTILE_975 * math.sqrt(variance) / self._shrinkage

    def __str__(self) -> str:
        """As in a table: `57.2 % [52.3, 62.0]`."""
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        return {"correct": self.correct, "total": self.total, "accuracy": self.value, "interval": [self.low, self.high]}


@dataclasses.dataclass(frozen=True)
class Mean:
    """The mean of a number over examples, with the half-width of its 95 % interval (normal approximation)."""

    value: float
    half_width: float

    @classmethod
    def of(cls, values: Float[np.ndarray, " n"]) -> "Mean":
        """The mean of n >= 1 values; of a single one the half-width is 0."""
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        return cls(float(np.mean(values)), _NORMAL_QUANTILE_975 * spread / math.sqrt(len(values)))

    def __str__(self) -> str:
        """As in a table: `0.412 +- 0.020`."""
        return f"{self.value:.3f} +- {self.half_width:.3f}"


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far the images that fooled a model lie from where they came from.

    Attributes:
        mean: over them.
        worst: the largest; of the similarities "ssim" and "psnr" the smallest.
    """

    mean: float
    worst: float

    @classmethod
    def of(cls, name: str, values: Float[np.ndarray, " f"]) -> "Distance":
        """Of what is called `name`, measured on at least one image."""
        worst = np.min(values) if name in _SIMILARITIES else np.max(values)
        return cls(float(np.mean(values, dtype=np.float64)), float(worst))


@dataclasses.dataclass(frozen=True, eq=False)
class AttributeValues:
    """The values of one attribute at which an attack fooled a model.

    Attributes:
        values: [f], one for each fooled example.
        low, high: the range that the attack was given.
    """

    values: Float[np.ndarray, " f"]
    low: float
    high: float

    @classmethod
    def of(
        cls, names: Sequence[str], values: Shaped[np.ndarray, "f ..."], low: Any, high: Any
    ) -> "dict[str, AttributeValues]":
        """One record by name for each number of an attribute, whose values are numbers [f] or vectors [f, m]."""
        columns = np.reshape(values, (len(values), len(names))).T
        bounds = np.broadcast_to(np.reshape(np.stack([low, high]), (2, -1)), (2, len(names)))
        return {own: cls(column, *map(float, box)) for own, column, box in zip(names, columns, bounds.T, strict=True)}


@dataclasses.dataclass(frozen=True)
class OverDraws:
    """How a randomised victim classifies one set of images over several fresh draws.

    Attributes:
        mean: the accuracy, mean over the draws.
        always: the share of examples classified correctly in all draws.
        ever: the share of examples classified correctly in some draw.
    """

    mean: float
    always: float
    ever: float

    @classmethod
    def of(cls, failed: ExampleShares) -> "OverDraws":
        """Of the share of draws in which each example is misclassified."""
        return cls(1 - float(np.mean(failed)), float(np.mean(failed == 0)), float(np.mean(failed < 1)))


@dataclasses.dataclass(frozen=True, eq=False)
class Nearest:
    """How far the nearest images lie that one attack has found to fool a model.

    Attributes:
        norm: "linf", "l2" or "l1".
        distances: [n], in that norm; 0 for those misclassified as they are, infinite where nothing was found.
    """

    norm: str
    distances: ExampleShares

    @property
    def median(self) -> float:
        """The median distance: half of the examples withstand the attack within it. Infinite if more than half do."""
        low, high = np.quantile(self.distances, 0.5, method="lower"), np.quantile(self.distances, 0.5, method="higher")
        return float((low + high) / 2)

    def accuracy(self, radius: float) -> Proportion:
        """The share of examples that withstand the attack within a radius."""
        return Proportion.of(self.distances > radius)

    def curve(self, name: str) -> "Curve":
        """The accuracy at 61 radii from 0 to the largest finite distance, of an attack by name."""
        finite = self.distances[np.isfinite(self.distances)]
        radii = np.linspace(0, finite.max(initial=0), _CURVE_POINTS) if finite.any() else np.zeros(1)
        correct = tuple(self.accuracy(radius).correct for radius in radii)
        return Curve("nearest", f"{name} ({self.norm})", tuple(radii.tolist()), correct, len(self.distances))


@dataclasses.dataclass(frozen=True, eq=False)
class AttackRecord:
    """One attack on one model.

    Attributes:
        correct: [n], still classified correctly: under this attack, or in a cascade under this and all before it.
        attacked: how many of them the attack was run on; the others were misclassified before.
        invalid: of these, how many images it returned that were finite and not in [0, 1]; these are not successes.
        seconds: wall time, compilation included.
        parameters: what the attack is made of, as plain data.
        distances: of `attack_distances`, over the examples that the attack fooled; empty if it fooled none. The
            other images are left out, because they are merely where the search ended.
        attributes: the values of each attribute at which the attack fooled, empty where it fooled none.
        broken: of those attacked, how many are wrong because the image, or the victim's answer to it or to another that
            the search met, was not finite.
        failed: [n], of a randomised victim the share of fresh draws in which each example is misclassified, 1 for those
            that were misclassified before; None where it was judged by one draw.
        nearest: of an attack that looks for the nearest image at any distance, how far it lies; None for others.
        gallery: some of the images, for those who want to look at them; None where none were kept.
    """

    correct: ExampleFlags
    attacked: int
    invalid: int = 0
    seconds: float = 0.0
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    distances: Mapping[str, Distance] = dataclasses.field(default_factory=dict)
    attributes: Mapping[str, AttributeValues] = dataclasses.field(default_factory=dict)
    broken: int = 0
    failed: ExampleShares | None = None
    gallery: Gallery | None = None
    nearest: Nearest | None = None


@dataclasses.dataclass(frozen=True)
class Check:
    """The outcome of one sanity check; one that did not pass is a warning.

    Attributes:
        name: of the check.
        passed: whether the check found no sign of a false accuracy.
        message: what was seen, with the numbers.
        advice: what to do where it did not pass.
        numbers: the measured values.
        cause: what makes the accuracy doubtful, in a few words; empty where the check passed.
    """

    name: str
    passed: bool
    message: str
    advice: str
    numbers: Mapping[str, float]
    cause: str = ""


@dataclasses.dataclass(frozen=True)
class Curve:
    """Accuracy of one model against a number.

    Attributes:
        kind: "radius" (of an attack), "nearest" (the same from the distances of one attack, `Nearest`) or "attribute"
            (value of an image edit, no attack).
        name: which attack or which edit.
        values: the numbers, ascending.
        correct: for each of them, how many of `total` examples are classified correctly.
        total: number of examples.
    """

    kind: str
    name: str
    values: Sequence[float]
    correct: Sequence[int]
    total: int

    @property
    def accuracies(self) -> list[Proportion]:
        """Share and interval at every value."""
        return [Proportion(correct, self.total) for correct in self.correct]


@dataclasses.dataclass(frozen=True, eq=False)
class ModelReport:
    """How a model fared on a whole split, example by example.

    An example that is misclassified clean counts as wrong under every attack. An attack that looks for the nearest
    image at any distance has no accuracy, but distances: `nearest` of its record. It is none of the conditions, and in
    a cascade it runs on everything classified correctly clean and takes nothing away.

    Attributes:
        labels: [n], in the split's order.
        clean: [n], classified correctly as it is.
        attacks: by name, in the order in which they ran.
        survivors_only: True: a cascade, each attack ran on the examples that no earlier one fooled, so its accuracy is
            the worst case so far. False: each attack ran on everything classified correctly clean and has its own
            accuracy.
        checks: of `sanity_checks`; `findings` are those that did not pass.
        curves: of `accuracy_by_radius` and `accuracy_by_attribute`.
        draws: how often each image was judged with fresh keys. Who is `correct` is decided by the first of them.
        failed: [n], the share of these draws in which the example is misclassified as it is; None for a single draw.
    """

    labels: ExampleLabels
    clean: ExampleFlags
    attacks: Mapping[str, AttackRecord]
    survivors_only: bool
    checks: Sequence[Check] = ()
    curves: Sequence[Curve] = ()
    draws: int = 1
    failed: ExampleShares | None = None

    @property
    def worst_case(self) -> ExampleFlags:
        """[n], classified correctly clean and under every attack."""
        return np.all([self.clean, *(record.correct for record in self.bounded.values())], axis=0)

    @property
    def bounded(self) -> dict[str, AttackRecord]:
        """The attacks that have an accuracy: all but those that look for the nearest image at any distance."""
        return {name: record for name, record in self.attacks.items() if record.nearest is None}

    def attacked(self, name: str) -> ExampleFlags:
        """[n], which examples an attack was run on: in a cascade those that no bounded one before it has fooled."""
        if not self.survivors_only or name not in self.bounded:
            return self.clean
        before = itertools.takewhile(lambda other: other != name, self.bounded)
        return np.all([self.clean, *(self.bounded[other].correct for other in before)], axis=0)

    @property
    def drawn_curves(self) -> list[Curve]:
        """The curves, and those of accuracy against the distances of `nearest`."""
        records = self.attacks.items()
        return [*self.curves, *(record.nearest.curve(name) for name, record in records if record.nearest is not None)]

    @property
    def conditions(self) -> dict[str, ExampleFlags]:
        """Who is correct under everything there is: `clean`, each attack, and `worst_case` where there are attacks."""
        named = {name: record.correct for name, record in self.bounded.items()}
        return {"clean": self.clean, **named} | ({"worst_case": self.worst_case} if named else {})

    @property
    def accuracies(self) -> dict[str, Proportion]:
        """Share and interval for each of the `conditions`."""
        return {name: Proportion.of(correct) for name, correct in self.conditions.items()}

    @property
    def over_draws(self) -> "dict[str, OverDraws]":
        """Each of the `conditions` over the draws; empty where there was one draw, as of a deterministic victim.

        The worst case takes of each example the condition that it fails under most often.
        """
        if self.failed is None:
            return {}
        shares = {"clean": self.failed} | {name: record.failed for name, record in self.bounded.items()}
        known = {name: share for name, share in shares.items() if share is not None}
        worst = {"worst_case": np.max(list(known.values()), axis=0)} if self.bounded else {}
        return {name: OverDraws.of(share) for name, share in (known | worst).items()}

    @property
    def findings(self) -> list[Check]:
        """The sanity checks that did not pass."""
        return [check for check in self.checks if not check.passed]

    def by_class(self, condition: str) -> dict[int, Proportion]:
        """Accuracy under one of the `conditions` for each class that occurs."""
        correct = self.conditions[condition]
        return {int(label): Proportion.of(correct[self.labels == label]) for label in np.unique(self.labels)}
