"""Every key of a config with its type, its default and its rule, and the config that has them all."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from spa_jax.attacks import autoattack_parts
from spa_jax.configuration import named, with_defaults
from spa_jax.errors import ConfigError, suggest
from spa_jax.evaluation.accuracy import RESERVED_NAMES
from spa_jax.evaluation.cascade import chosen_parts
from spa_jax.evaluation.certified import check_range
from spa_jax.training.placement import ENGINES
from spa_jax.validation import require_choice, require_count, require_number

OWN = "own"
"""The name of the attack that a model was trained with, in the report on training examples."""
_LARGEST_SEED = 2**32 - 1
_NAMED = ("data", "model", "recipe", "optimizer", "schedule")


def _one_cycle() -> Mapping[str, Any]:
    return {"name": "one_cycle", "peak": 3e-3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A config: one model that is trained and judged, and others beside it.

    Where a mapping has a `name`, the name alone stands for a mapping of nothing else: `"data": "digits"`. The defaults
    are our choice.

    Attributes:
        name: of the model, and of its directory in the run's. Default: the recipe's name.
        seed: of everything random, in 0..2**32 - 1.
        data: `name` of a data set and its options, see `spa_jax.data.load_dataset`.
        normalization: `mean` and `std`, a number or one a channel, of the images in [0, 1]. None: as they are.
        augmentation: of the training images, the options of `spa_jax.data.Augmentation`; None for no augmentation.
        model: `name` of a network of `spa_jax.models` and its options.
        recipe: `name` of a way to train of `spa_jax.training.recipes` and its options.
        optimizer: `name` of an optimiser of `spa_jax.training.optimizers` and its options.
        schedule: `name` of a learning rate schedule of the same module and its options.
        training: see `Training`.
        evaluation: see `Evaluation`.
        networks: networks that the recipe trains beside the model by name, each a `NetworkSettings`.
        parts: networks trained before that attacks are made of by name, each a `Part`.
        victims: what is judged beside the models by name: defences made of them and of parts, each as
            `spa_jax.victims.victim_from_config` takes it; one that is None is left out.
        baselines: further models to train and to compare, each its `name` and what differs from this config. A mapping
            with a `name` replaces the config's, one without is merged into it; a network that is None is left out.

    Raises:
        ValueError: a seed out of range.
    """

    name: str | None = None
    seed: int = 0
    data: str | Mapping
    normalization: Mapping | None = None
    augmentation: Mapping | None = None
    model: str | Mapping
    recipe: str | Mapping
    optimizer: str | Mapping = "adam"
    schedule: str | Mapping = dataclasses.field(default_factory=_one_cycle)
    training: Mapping = dataclasses.field(default_factory=dict)
    evaluation: Mapping = dataclasses.field(default_factory=dict)
    networks: Mapping | None = None
    parts: Mapping | None = None
    victims: Mapping | None = None
    baselines: tuple | list | None = ()

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= _LARGEST_SEED:
            raise ValueError(f"seed={self.seed!r} must be in 0..{_LARGEST_SEED}")


@dataclasses.dataclass(frozen=True)
class Training:
    """How long a model is trained, and how. The defaults are our choice.

    Attributes:
        batch_size: of all devices together.
        num_epochs: passes over the training split, also a fraction of one.
        engine: "jit" or "pmap", see `spa_jax.training.placement.make_engine`.
        ema_decay: of the average of the weights, in [0, 1); 0 keeps none.
        attack_warmup: share of the steps, in [0, 1), over which the attack grows to its full size.
        separate_statistics: whether BatchNorm keeps the statistics of clean and of attacked images apart.
        evaluate_every: epochs between evaluations on the validation split, each followed by a checkpoint.
        start_from: the part `{"part": NAME}` whose weights a network of the same kind starts from; None: from new ones.
        train_share: the share of the training split that is learned from, evenly spaced over it, in (0, 1].
        weight_perturbation: adversarial weight perturbation, see `WeightPerturbationSettings`; None for none.

    Raises:
        ValueError: a number out of range, or an unknown engine.
    """

    batch_size: int = 128
    num_epochs: float = 10.0
    engine: str = "jit"
    ema_decay: float = 0.0
    attack_warmup: float = 0.0
    separate_statistics: bool = False
    evaluate_every: int = 1
    start_from: Mapping | None = None
    train_share: float = 1.0
    weight_perturbation: Mapping | None = None

    def __post_init__(self) -> None:
        require_number("train_share", self.train_share, "in (0, 1]", lambda share: 0 < share <= 1)
        if self.start_from is not None and set(self.start_from) != {"part"}:
            raise ValueError(f"start_from={self.start_from!r} must name a part: {{'part': NAME}}")
        for name in ("batch_size", "evaluate_every"):
            require_count(name, getattr(self, name))
        is_finite = "a finite number larger than 0"
        require_number("num_epochs", self.num_epochs, is_finite, lambda epochs: 0 < epochs < math.inf)
        for name in ("ema_decay", "attack_warmup"):
            require_number(name, getattr(self, name), "in [0, 1)", lambda share: 0 <= share < 1)
        require_choice("engine", self.engine, ENGINES)


@dataclasses.dataclass(frozen=True)
class WeightPerturbationSettings:
    """Adversarial weight perturbation, of every recipe; see `spa_jax.training.weight_perturbation`.

    Attributes:
        gamma: how far each layer moves, in its norms; 5e-3 is the paper's.
        warmup: share of the steps, in [0, 1), that go without.

    Raises:
        ValueError: a number out of range.
    """

    gamma: float = 5e-3
    warmup: float = 0.0

    def __post_init__(self) -> None:
        require_number("gamma", self.gamma, "0 or larger", lambda gamma: gamma >= 0)
        require_number("warmup", self.warmup, "in [0, 1)", lambda share: 0 <= share < 1)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How models are chosen and judged. The defaults are our choice.

    Attributes:
        batch_size: of all devices together.
        attacks: of the report by name, as `spa_jax.attacks.attack_from_config` takes them, in the order of the report
            and of the cascade. One that looks for the nearest image, such as `fmn`, and has no radius gives distances
            and their curve instead of an accuracy.
        selection_attack: the attack of the validation. Default: that of the recipe, if it has one.
        select_by: the accuracy that chooses the best checkpoint, "clean" or "robust", the latter under the selection
            attack. Default: "robust" if there is one, else "clean".
        survivors_only: whether each attack sees only the examples that all attacks before it have left, which gives the
            worst case for the least work; False: each attack on its own.
        num_examples: of the test split, evenly spaced; None for all.
        judge_draws: how often a randomised victim judges each image, as for `spa_jax.evaluation.evaluate`.
        examples_per_class: how many fooled images of each class `report.html` shows at most under each attack, with
            half as many survivors, as for `spa_jax.evaluation.evaluate`; 0 for none.
        perceptual: the name of a classifier of the config, in whose features the report tells how far each attack moved
            the images that it fooled (`spa_jax.perceptual.captured_features`); None: not at all.
        radii: at which the accuracy under `radius_attack` is measured; None for no such curve.
        radius_attack: the name of an attack.
        attribute_points: how many values of each attribute the accuracy is measured at; 0 for no such curve.
        manipulation: how manipulators are judged, see `Manipulation`; None for no such report.
        universal: which universal perturbations are crafted against classifiers, see `Universal`; None for none.
        training_examples: how the examples that models train on are judged, see `TrainingExamples`; None: not at all.
        autoattack: the standard evaluation of every model and victim, see `AutoAttack`; None for none.
        certified: what is proved of every model and victim under one attribute, see `Certified`; None for no proof.

    Raises:
        ValueError: a number out of range, or an attack whose name the report uses for itself.
    """

    batch_size: int = 500
    attacks: Mapping = dataclasses.field(default_factory=dict)
    selection_attack: str | Mapping | None = None
    select_by: str | None = None
    survivors_only: bool = True
    num_examples: int | None = None
    judge_draws: int = 10
    examples_per_class: int = 8
    perceptual: str | None = None
    radii: tuple | list | None = None
    radius_attack: str | None = None
    attribute_points: int = 0
    manipulation: Mapping | None = None
    universal: Mapping | None = None
    training_examples: Mapping | None = None
    autoattack: Mapping | None = None
    certified: Mapping | None = None

    def __post_init__(self) -> None:
        require_count("batch_size", self.batch_size)
        require_count("judge_draws", self.judge_draws)
        if self.num_examples is not None:
            require_count("num_examples", self.num_examples)
        if not all(_is_radius(radius) for radius in self.radii or ()):
            raise ValueError(f"radii={self.radii!r} must hold finite numbers of 0 or larger")
        require_number("examples_per_class", self.examples_per_class, "0 or larger", lambda count: count >= 0)
        require_number("attribute_points", self.attribute_points, "0 or larger", lambda points: points >= 0)
        if self.select_by is not None:
            require_choice("select_by", self.select_by, ("clean", "robust"))
        _check_attack_names(self.attacks)
        if self.radius_attack is not None:
            require_choice("radius_attack", self.radius_attack, tuple(self.attacks))


def _check_attack_names(attacks: Mapping[str, Any]) -> None:
    for name in attacks:
        if not name.strip() or not name.isprintable() or name in RESERVED_NAMES:
            rule = f"printable, not empty, and not one of {', '.join(RESERVED_NAMES)}"
            raise ValueError(f"attacks holds the name {name!r}; it must be {rule}")


def _is_radius(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


@dataclasses.dataclass(frozen=True)
class Manipulation:
    """How the manipulators of a config are judged.

    Attributes:
        low, high: the box of values, a number for each attribute.
        regressor, classifier: the parts that judge, `{"part": NAME}`.
    """

    low: tuple | list
    high: tuple | list
    regressor: Mapping
    classifier: Mapping


@dataclasses.dataclass(frozen=True)
class AutoAttack:
    """AutoAttack against every model and victim, see `spa_jax.evaluation.autoattack`.

    Attributes:
        radius: of the ball, on the [0, 1] scale.
        norm: "linf", "l2" or "l1".
        version: "standard", "plus" or "rand".
        parts: names of the attacks that run, in this order; None: all of the version, in the published order.
        give_up_after: images in a row that withstand an attack after the first before it ends, the nearest to being
            misclassified first; None: no attack gives up.
        num_examples: of the test split, evenly spaced; None for those of the other attacks.
        claimed: robust accuracies in [0, 1] that are claimed, by model or victim.

    Raises:
        ValueError: a number out of range, or an unknown norm, version or part.
    """

    radius: float
    norm: str = "linf"
    version: str = "standard"
    parts: tuple | list | None = None
    give_up_after: int | None = None
    num_examples: int | None = None
    claimed: Mapping = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        chosen_parts(autoattack_parts(self.radius, self.norm, self.version), self.parts)
        for name in ("give_up_after", "num_examples"):
            if (value := getattr(self, name)) is not None:
                require_count(name, value)
        for name, share in self.claimed.items():
            require_number(f"claimed.{name}", share, "an accuracy in [0, 1]", lambda share: 0 <= share <= 1)


@dataclasses.dataclass(frozen=True)
class Certified:
    """Which images are proved robust to one attribute, see `spa_jax.evaluation.certified`. The defaults are our choice.

    Attributes:
        attribute: "rotation" (within 90 degrees), "brightness", "contrast" or "saturation".
        low, high: the range of its value.
        points: at which the sweep looks, evenly spaced over the range.
        cells: that the range is cut into at first.
        splits: how often a cell may be halved before the image is undecided.
        num_images: of the test split, evenly spaced.

    Raises:
        ValueError: another attribute, a range that is empty or too wide, or a number below 1.
    """

    attribute: str
    low: float
    high: float
    points: int = 41
    cells: int = 16
    splits: int = 8
    num_images: int = 100

    def __post_init__(self) -> None:
        check_range(self.attribute, self.low, self.high, "attribute")
        for name in ("points", "cells", "splits", "num_images"):
            require_count(name, getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Universal:
    """Universal perturbations that are crafted afresh against every classifier. The defaults are our choice.

    Attributes:
        attacks: by name, as `spa_jax.attacks.attack_from_config` takes them, with variables that all images share.
        targets: for each attack named here the classes that it is made for, one perturbation a class, or "all".
        crafting: the split that they are made from, "train" or "validation"; they are measured on the test split.
        num_images: of the crafting split, evenly spaced; None for all.
        image_counts: further numbers of crafting images, for a curve over the untargeted attacks.
        batch_size: of all devices together, when crafting.
        num_epochs: passes over the crafting images.
        seeds: how often each is made.
        transfer_from: a baseline; the perturbations that were made against it are shown to the other models too.

    Raises:
        ValueError: a number out of range, another split, or targets for an attack that is not there.
    """

    attacks: Mapping
    targets: Mapping = dataclasses.field(default_factory=dict)
    crafting: str = "train"
    num_images: int | None = None
    image_counts: tuple | list = ()
    batch_size: int = 200
    num_epochs: int = 5
    seeds: int = 1
    transfer_from: str | None = None

    def __post_init__(self) -> None:
        _check_attack_names(self.attacks)
        for name in ("batch_size", "num_epochs", "seeds"):
            require_count(name, getattr(self, name))
        for count in (*self.image_counts, *(() if self.num_images is None else (self.num_images,))):
            require_count("num_images", count)
        require_choice("crafting", self.crafting, ("train", "validation"))
        for name, classes in self.targets.items():
            require_choice("targets", name, tuple(self.attacks))
            if classes != "all" and not (isinstance(classes, tuple | list) and classes):
                raise ValueError(f"targets.{name}={classes!r} must be 'all' or some classes")


@dataclasses.dataclass(frozen=True)
class TrainingExamples:
    """Whether an independent network still reads the examples that models train on. The defaults are our choice.

    Attributes:
        judge: a part, `{"part": NAME}`: a robust network that is none of those judged.
        attacks: by name, against every classifier beside the attack of its own recipe, which is called "own".
        num_images: of the training split, evenly spaced.

    Raises:
        ValueError: a number below 1, a judge that names no part, or a reserved name.
    """

    judge: Mapping
    attacks: Mapping = dataclasses.field(default_factory=dict)
    num_images: int = 1000

    def __post_init__(self) -> None:
        require_count("num_images", self.num_images)
        _check_attack_names(self.attacks)
        if set(self.judge) != {"part"}:
            raise ValueError(f"judge={self.judge!r} must name a part: {{'part': NAME}}")
        if OWN in self.attacks:
            raise ValueError(f"attacks holds the name {OWN!r}, which stands for the attack of each recipe")


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """A network that a recipe trains beside the model; see `Settings` for the keys."""

    model: str | Mapping
    optimizer: str | Mapping = "adam"
    schedule: str | Mapping = dataclasses.field(default_factory=_one_cycle)


@dataclasses.dataclass(frozen=True)
class Part:
    """A network trained before.

    Attributes:
        model: a model of the same config, or of the run in `workdir`. `{victim}` stands for the model that is attacked.
        network: one that the model's recipe trains beside it; None for the model itself.
        workdir: of another run.
    """

    model: str
    network: str | None = None
    workdir: str | None = None


def complete(config: Any, path: str = "config") -> dict[str, Any]:
    """The config of one model with every key, in the order of `Settings`, defaults in the place of what it leaves out.

    What the sections name, such as a model and its options, is left as it is. A complete config stays as it is.

    Args:
        config: plain data.
        path: its name, for messages.

    Raises:
        ConfigError: an unknown or missing key, a wrong type or a number out of range, by its dotted path.
    """
    full = with_defaults(config, Settings, path)
    full |= {key: _with_name(full[key], f"{path}.{key}") for key in _NAMED}
    if "attack" in full["recipe"]:
        full["recipe"] = full["recipe"] | {"attack": named(full["recipe"]["attack"])}
    if full["name"] is None:
        full["name"] = full["recipe"]["name"]
    full["training"] = _complete_training(full["training"], f"{path}.training")
    full["evaluation"] = _complete_evaluation(full["evaluation"], f"{path}.evaluation")
    full["networks"] = _each(_complete_network, full["networks"], f"{path}.networks")
    full["parts"] = _each(_complete_part, full["parts"], f"{path}.parts")
    full["victims"] = _each(lambda spec, path: named(spec), full["victims"], f"{path}.victims")
    return full


def _with_name(spec: Any, path: str) -> dict[str, Any]:
    spec = named(spec)
    if not isinstance(spec.get("name"), str):
        raise ConfigError(f"{path}={spec!r} must be a mapping with a `name`, or a name")
    return spec


def _complete_training(section: Mapping[str, Any], path: str) -> dict[str, Any]:
    full = with_defaults(section, Training, path)
    if (own := full["weight_perturbation"]) is not None:
        full["weight_perturbation"] = with_defaults(own, WeightPerturbationSettings, f"{path}.weight_perturbation")
    return full


def _complete_evaluation(section: Mapping[str, Any], path: str) -> dict[str, Any]:
    full = with_defaults(section, Evaluation, path)
    full["attacks"] = {name: named(spec) for name, spec in full["attacks"].items()}
    for name, spec in full["attacks"].items():
        if isinstance(spec, Mapping) and "name" not in spec:
            hint = suggest(name, [other for other in full["attacks"] if other != name])
            raise ConfigError(f"{path}.attacks.{name}={spec!r} is a new attack without a `name`{hint}")
    full["selection_attack"] = named(full["selection_attack"])
    if full["manipulation"] is not None:
        full["manipulation"] = with_defaults(full["manipulation"], Manipulation, f"{path}.manipulation")
    if full["autoattack"] is not None:
        full["autoattack"] = with_defaults(full["autoattack"], AutoAttack, f"{path}.autoattack")
    if full["certified"] is not None:
        full["certified"] = with_defaults(full["certified"], Certified, f"{path}.certified")
    if full["universal"] is not None:
        full["universal"] = _with_attacks(with_defaults(full["universal"], Universal, f"{path}.universal"))
    if full["training_examples"] is not None:
        own = with_defaults(full["training_examples"], TrainingExamples, f"{path}.training_examples")
        full["training_examples"] = _with_attacks(own)
    return full


def _with_attacks(section: dict[str, Any]) -> dict[str, Any]:
    return section | {"attacks": {name: named(spec) for name, spec in section["attacks"].items()}}


def _complete_network(section: Mapping[str, Any], path: str) -> dict[str, Any]:
    return {key: named(value) for key, value in with_defaults(section, NetworkSettings, path).items()}


def _complete_part(section: Mapping[str, Any], path: str) -> dict[str, Any]:
    return with_defaults(section, Part, path)


def _each(
    complete_one: Callable[[Any, str], dict[str, Any]], sections: Mapping[str, Any] | None, path: str
) -> dict[str, Any] | None:
    """Every entry completed, those that are None left out; None where nothing is left."""
    known = {name: section for name, section in (sections or {}).items() if section is not None}
    return {name: complete_one(section, f"{path}.{name}") for name, section in known.items()} or None


def check_model_name(name: Any, path: str) -> None:
    """Check a name that becomes a directory of the run.

    Raises:
        ConfigError: it is not text, empty, a path, hidden, not printable, or "report", which is a directory already.
    """
    is_plain = isinstance(name, str) and bool(name.strip()) and name.isprintable()
    if not is_plain or name.startswith(".") or set(name) & set("/\\") or name.casefold() == "report":
        rule = "a name for a directory: printable, without / and \\, not starting with a dot, and not 'report'"
        raise ConfigError(f"{path}={name!r} must be {rule}")
