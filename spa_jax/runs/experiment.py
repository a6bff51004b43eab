"""From a config to the objects of a run: everything is checked before anything is read, compiled or written."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spa_jax.attacks import PureAttack, attack_from_config
from spa_jax.attacks.catalogue import check_attack, part_names, simple_specs, surrogates, takes
from spa_jax.configuration import build, check_spec, freeze
from spa_jax.data import Augmentation, Dataset, Examples, load_dataset, steps_per_epoch
from spa_jax.errors import ConfigError, listed, suggest
from spa_jax.evaluation.sweep import evenly_spaced
from spa_jax.models import abstract_variables, create_model
from spa_jax.parallel import check_divisible
from spa_jax.runs.composed import check_victims
from spa_jax.runs.parts import TrainedPart, check_parts, stored_config
from spa_jax.runs.settings import check_model_name, complete
from spa_jax.training.learner import Learner
from spa_jax.training.networks import Network
from spa_jax.training.optimizers import OPTIMIZERS, SCHEDULES
from spa_jax.training.placement import Engine, make_engine
from spa_jax.training.recipes import STEPS, Start, Validation, becomes, options_of
from spa_jax.training.weight_perturbation import WeightPerturbation
from spa_jax.types import Example, Victim
from spa_jax.validation import require_classes

_CARRIED = 4
_OTHER = {True: "evaluation.attacks", False: "evaluation.universal.attacks"}

LoadData = Callable[[Mapping[str, Any]], Dataset]
"""From a config to its data."""

MAY_CHANGE = ("data.data_dir", "evaluation", "victims", "baselines")
"""What may differ between a checkpoint's config and the config that goes on from it."""


def check_config(config: Any) -> dict[str, Any]:
    """The config as plain data with every key of `spa_jax.runs.settings`, checked as far as that goes without the data.

    Its `baselines` stay what differs; `variants` makes them whole.

    Raises:
        ConfigError: an unknown or missing key, name or wrong type, or a number out of range, by its dotted path.
        ValueError: a number of an attack out of range.
    """
    config = freeze(config)
    models = variants(config)
    *others, own = models
    # The config first: what a baseline has from it is named there.
    paths = {own: "config"} | {name: f"config.baselines[{name}]" for name in others}
    for name, path in paths.items():
        _check_sections(models[name], path)
        check_parts(models[name], models, path)
    classifiers = [name for name, model in models.items() if classifies(model)]
    for name, path in paths.items():
        check_victims(models[name], models, classifiers, path)
        judge = models[name]["evaluation"]["perceptual"]
        if judge is not None and judge not in classifiers:
            hint = suggest(judge, classifiers)
            raise ConfigError(f"{path}.evaluation.perceptual={judge!r} must be a classifier of the config{hint}")
    source = (models[own]["evaluation"]["universal"] or {}).get("transfer_from")
    if source is not None and source not in others:
        hint = suggest(source, others)
        raise ConfigError(f"config.evaluation.universal.transfer_from={source!r} must be a baseline{hint}")
    return {**models[own], "baselines": config.get("baselines") or []}


def _check_sections(config: Mapping[str, Any], path: str) -> None:
    check_spec(STEPS, config["recipe"], "recipe", f"{path}.recipe", ("learner",))
    _check_updates(config, path)
    for name, network in (config["networks"] or {}).items():
        _check_updates(network, f"{path}.networks.{name}")
    check_spec({"augmentation": Augmentation}, _options(config, "augmentation"), "augmentation", f"{path}.augmentation")
    check_spec({"normalization": _Normalization}, _options(config, "normalization"), "normalization", path)
    for key, spec in attack_specs(config).items():
        check_attack(spec, f"{path}.{key}")
        if surrogates(spec) and not key.startswith("evaluation.attacks."):
            raise ConfigError(f"{path}.{key} is crafted on a surrogate: this belongs to evaluation.attacks")
    _check_judgement(config, f"{path}.evaluation")


def _check_updates(config: Mapping[str, Any], path: str) -> None:
    check_spec(OPTIMIZERS, config["optimizer"], "optimizer", f"{path}.optimizer", ("learning_rate",))
    check_spec(SCHEDULES, config["schedule"], "schedule", f"{path}.schedule", ("total_steps",))


def _check_judgement(config: Mapping[str, Any], path: str) -> None:
    """What `Evaluation` alone cannot tell: it takes the attacks and the recipe."""
    section = config["evaluation"]
    for key, attacks, is_shared in (
        ("attacks", section["attacks"], False),
        ("universal.attacks", universal_specs(config), True),
    ):
        for name, spec in attacks.items():
            _check_kind(spec, is_shared, f"{path}.{key}.{name}")
    if classifies(config) and section["select_by"] == "robust" and selection_attack(config) is None:
        raise ConfigError(f"{path}.select_by='robust' needs a selection_attack, or a recipe with an attack")
    chosen = selection_attack(config) if classifies(config) else None
    if chosen is not None:
        _check_kind(chosen, False, f"{path}.selection_attack")
        for simple, attack in _built(chosen):
            if attack.nearest_in:
                raise ConfigError(
                    f"{path}.selection_attack, or the recipe's attack: {simple['name']!r} needs a radius, since at any "
                    "distance it leaves no accuracy"
                )
    curve = section["radius_attack"]
    if curve is not None and not takes(section["attacks"][curve], "radius"):
        raise ConfigError(f"{path}.radius_attack={curve!r} must be an attack with a radius")


def _check_kind(spec: Mapping[str, Any], is_shared: bool, path: str) -> None:
    """Refuse an attack that belongs to the evaluation of the other kind."""
    for simple, attack in _built(spec):
        if attack.shared != is_shared:
            rule = "share its variables over all images" if is_shared else "have variables for each image"
            raise ConfigError(f"{path} must {rule}: {simple['name']!r} belongs to {_OTHER[is_shared]}")


def _options(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {"name": key} | dict(config[key] or {})


@dataclasses.dataclass(frozen=True)
class _Normalization:
    mean: float | tuple = 0.0
    std: float | tuple = 1.0


def variants(config: Any) -> dict[str, dict[str, Any]]:
    """The complete configs of all models that a config trains: its baselines in order, then its own.

    A baseline holds its name and what differs. A mapping with a `name` replaces the config's mapping, one without is
    merged into it; a network that is None is left out.

    Raises:
        ConfigError: a baseline without a name, two models of one name or one whose name cannot be a directory, or a key
            that `complete` refuses.
    """
    own = _without_baselines(complete(config))
    found: dict[str, dict[str, Any]] = {}
    for i, change in enumerate(config.get("baselines") or ()):
        if not isinstance(change, Mapping) or "name" not in change:
            raise ConfigError(f"config.baselines[{i}]={change!r} must be a mapping with a `name`")
        name = change["name"]
        check_model_name(name, f"config.baselines[{i}].name")
        if name in (own["name"], *found):
            raise ConfigError(f"config.baselines: the name {name!r} stands for two models")
        found[name] = _without_baselines(complete(_merge(own, change), f"config.baselines[{name}]"))
    check_model_name(own["name"], "config.name")
    return found | {own["name"]: own}


def _without_baselines(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "baselines"}


def _merge(config: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = dict(config)
    for key, value in change.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and "name" not in value
        merged[key] = _merge(merged[key], value) if nested else value
    return merged


def selection_attack(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The attack by which a classifier's checkpoints are judged: its own setting, or the attack of its recipe.

    A recipe's perturbation of all images does not judge, since it would have to be crafted afresh.
    """
    own, crafted = config["evaluation"]["selection_attack"], config["recipe"].get("attack")
    return own or (None if crafted is None or _is_shared(crafted) else crafted)


def _is_shared(spec: Mapping[str, Any]) -> bool:
    """Whether variables of the attack are those of all images."""
    return any(attack.shared for _, attack in _built(spec))


def _built(spec: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], PureAttack]]:
    """The simple attacks of a spec that need no trained part, each with what it builds."""
    for simple in simple_specs(spec):
        if not part_names(simple):
            yield simple, attack_from_config(simple)


def selects_by(config: Mapping[str, Any]) -> str:
    """The accuracy that chooses a classifier's best checkpoint, "clean" or "robust"."""
    return config["evaluation"]["select_by"] or ("clean" if selection_attack(config) is None else "robust")


def classifies(config: Mapping[str, Any]) -> bool:
    """Whether a config trains a classifier, and not a part of attacks or a judge of one."""
    return options_of(config["recipe"])[0].validation is None


def evaluation_batch_size(config: Mapping[str, Any], split: Examples) -> int:
    """That of the config, or the whole split if that is smaller: padding of the last batch costs as much as images."""
    return min(config["evaluation"]["batch_size"], len(split))


def load_data(config: Mapping[str, Any]) -> Dataset:
    """The data set of a config.

    Raises:
        ValueError: unknown name or option.
        DataNotFoundError: it is not in `data.data_dir`.
    """
    files = {key: os.path.expanduser(config["data"][key]) for key in ("data_dir", "file") if config["data"].get(key)}
    return load_dataset(**config["data"] | files)


def data_loader() -> LoadData:
    """`load_data` that reads the same data once, however many models are trained on them."""
    known: dict[str, Dataset] = {}

    def load(config: Mapping[str, Any]) -> Dataset:
        name = json.dumps(config["data"], sort_keys=True)
        if name not in known:
            known[name] = load_data(config)
        return known[name]

    return load


def evaluation_attacks(
    config: Mapping[str, Any],
    parts: Mapping[str, Any] | None = None,
    surrogate: Callable[[Any], Victim] | None = None,
) -> dict[str, PureAttack]:
    """The attacks of the report, by the names the config gives them, made of the given parts and surrogates."""
    specs = config["evaluation"]["attacks"]
    return {name: attack_from_config(spec, parts, surrogate) for name, spec in specs.items()}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What one model's training needs.

    Attributes:
        config: plain data.
        dataset: the data.
        mesh: the devices.
        learner: network and optimiser.
        engine: the compiled step.
        total_steps: number of updates.
        evaluate_every: steps between evaluations on the validation split, each followed by a checkpoint.
        parts: networks trained before that this training needs, by name.
    """

    config: Mapping[str, Any]
    dataset: Dataset
    mesh: Mesh
    learner: Learner
    engine: Engine
    total_steps: int
    evaluate_every: int
    parts: Mapping[str, TrainedPart]

    @property
    def needs(self) -> set[Path]:
        """The directories of the models that have to be trained before."""
        return {part.directory for part in self.parts.values()}

    @functools.cached_property
    def measure(self) -> Callable[..., Any]:
        """Of a model that is not a classifier: what its recipe measures of a batch, compiled."""
        _, options = options_of(self.config["recipe"])
        return jax.jit(functools.partial(self.validation.measure, self.learner, **options))

    @property
    def validation(self) -> Validation:
        """How a model that is not a classifier is judged."""
        validation = options_of(self.config["recipe"])[0].validation
        if validation is None:
            raise ValueError(f"recipe={self.config['recipe']['name']!r} trains a classifier")
        return validation

    def carried(self, frozen: Mapping[str, Any], is_resumed: bool = False) -> Any:
        """What the recipe carries from step to step, before the first one.

        Args:
            frozen: the variables of the parts, by name.
            is_resumed: whether a checkpoint will replace it.
        """
        recipe, options = options_of(self.config["recipe"])
        key, batch_size = jax.random.fold_in(self.key, _CARRIED), self.config["training"]["batch_size"]
        parts = {name: self.parts[name].build(variables) for name, variables in frozen.items()}
        shape, train = self.dataset.image_shape, self.dataset.train
        return recipe.init(Start(self.learner, key, batch_size, shape, train, parts, is_resumed), **options)

    @property
    def updates(self) -> int:
        """How often the recipe's step is made on each batch."""
        recipe, options = options_of(self.config["recipe"])
        return recipe.updates(**options)

    @property
    def key(self) -> Any:
        """The run's key; initialisation, training and evaluation fold it with a number each."""
        return jax.random.key(self.config["seed"])


def make_experiment(
    config: Mapping[str, Any],
    dataset: Dataset,
    mesh: Mesh,
    parts: Mapping[str, TrainedPart] | None = None,
    known: Mapping[str, TrainedPart] | None = None,
) -> Experiment:
    """Build model, optimiser, recipe and engine of a checked config.

    Args:
        config: of one model.
        dataset: its data.
        mesh: the devices.
        parts: networks trained before that its training needs, see `find_parts`.
        known: these, and those that only the attacks of the report need, which are checked here. Default: `parts`.

    Raises:
        ConfigError: the recipe needs attributes that the data do not have; an attack does not fit the data.
        ValueError: a name, option or number of the model is wrong; a batch cannot be split over the devices or is
            larger than the training split; the validation split is empty.
    """
    training, parts = config["training"], parts or {}
    check_divisible(training["batch_size"], mesh)
    if training["train_share"] < 1:
        count = max(1, round(training["train_share"] * len(dataset.train)))
        dataset = dataclasses.replace(dataset, train=evenly_spaced(dataset.train, count))
    epoch = steps_per_epoch(dataset.train, training["batch_size"])
    if not len(dataset.validation):
        raise ValueError(
            f"data={config['data']['name']!r} holds no validation examples, which choose the best checkpoint: give "
            "data.validation_size, 1 or more, where the data set takes it"
        )
    total_steps = round(training["num_epochs"] * epoch)
    if total_steps < 1:
        raise ValueError(
            f"training.num_epochs={training['num_epochs']!r} must give at least one step of {epoch} an epoch"
        )
    _check_data(config, dataset)
    learner = make_learner(config, dataset, total_steps)
    _check_attacks(config, learner, parts if known is None else known, dataset)
    builders = {**learner.builders, **{name: part.build for name, part in parts.items()}}
    learner = dataclasses.replace(learner, builders=builders)
    engine = make_engine(training["engine"], mesh, learner, _recipe(config))
    evaluate_every = training["evaluate_every"] * epoch
    return Experiment(config, dataset, mesh, learner, engine, total_steps, evaluate_every, parts)


def part_source(
    config: Mapping[str, Any], name: str, models: Mapping[str, Mapping[str, Any]], workdir: Path
) -> tuple[Path, Mapping[str, Any]]:
    """Where a part that a config declares was or will be trained, and the complete config of that model.

    Raises:
        ConfigError: the part's model is not there.
        CheckpointError: the run of a part in another directory has no checkpoint.
    """
    entry = config["parts"][name]
    model = entry["model"].replace("{victim}", config["name"])
    directory = Path(entry["workdir"] or workdir).expanduser() / model
    if entry["workdir"]:
        return directory, stored_config(directory)
    if model not in models:
        raise ConfigError(f"parts.{name}.model={model!r} is not a model{suggest(model, models)}")
    return directory, models[model]


def find_parts(
    config: Mapping[str, Any],
    names: Iterable[str],
    models: Mapping[str, Mapping[str, Any]],
    workdir: Path,
    load: LoadData = load_data,
) -> dict[str, TrainedPart]:
    """The parts of those names that a config declares: where they were or will be trained, and what they are.

    Args:
        config: of the model that is trained or attacked.
        names: of parts, as `part_names` finds them in a recipe or in attacks; undeclared ones are passed over.
        models: all models of the run, by name.
        workdir: of the run.
        load: gives the data of a config.

    Raises:
        ConfigError: a part's model is not there, or has no such network.
        CheckpointError: the run of a part in another directory has no checkpoint.
    """
    found = {}
    declared = config["parts"] or {}
    for name in sorted(set(names) & set(declared)):
        directory, source = part_source(config, name, models, workdir)
        model, network = directory.name, declared[name]["network"]
        data = load({**source, "data": {**source["data"], **_data_dir(config)}})
        learner = make_learner(source, data)
        if network is not None and network not in learner.networks:
            hint = suggest(network, learner.networks)
            raise ConfigError(f"parts.{name}.network={network!r} is not a network of {model!r}{hint}")
        trained = learner.model if network is None else learner.networks[network].model
        build = becomes(source["recipe"], network, trained, learner.mean, learner.std)
        if build is None:
            raise ConfigError(f"parts.{name}.network={network!r} of {model!r} cannot be part of an attack")
        found[name] = TrainedPart(directory, network, build, abstract_variables(trained, data.image_shape))
    return found


def training_order(experiments: Mapping[str, Experiment], workdir: Path) -> list[str]:
    """The names of the models, each after those whose parts it needs, and otherwise in their own order.

    Raises:
        ConfigError: models that need each other.
    """
    ordered: list[str] = []
    waiting = dict(experiments)
    while waiting:
        missing = {name: workdir / name for name in waiting}
        ready = [name for name, own in waiting.items() if not own.needs & (set(missing.values()) - {missing[name]})]
        if not ready:
            raise ConfigError(f"config.parts: the models {listed(waiting)} need each other; none can be trained first")
        ordered.append(ready[0])
        del waiting[ready[0]]
    return ordered


def _data_dir(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"data_dir": config["data"].get("data_dir")}


def attack_specs(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Every attack that a complete config trains or judges with, by its dotted key."""
    evaluation = config["evaluation"]
    named = {"recipe.attack": config["recipe"].get("attack"), "evaluation.selection_attack": selection_attack(config)}
    named |= {f"evaluation.attacks.{name}": spec for name, spec in evaluation["attacks"].items()}
    named |= {f"evaluation.universal.attacks.{name}": spec for name, spec in universal_specs(config).items()}
    if section := evaluation["training_examples"]:
        named |= {f"evaluation.training_examples.attacks.{name}": spec for name, spec in section["attacks"].items()}
    return {key: spec for key, spec in named.items() if spec is not None}


def universal_specs(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The universal attacks of a complete config by name; none where it asks for none."""
    section = config["evaluation"]["universal"]
    return section["attacks"] if section else {}


def _check_data(config: Mapping[str, Any], dataset: Dataset) -> None:
    recipe, options = options_of(config["recipe"])
    if recipe.needs_attributes and not dataset.attributes:
        raise ConfigError(
            f"config.recipe.name={config['recipe']['name']!r} needs attributes; {dataset.name!r} has none"
        )
    if "centre" in options and len(options["centre"]) != len(dataset.attributes):
        raise ConfigError(
            f"config.recipe.centre={options['centre']!r} must hold a number for each of the {len(dataset.attributes)} "
            f"attributes of {dataset.name!r}"
        )


def _check_attacks(
    config: Mapping[str, Any],
    learner: Learner,
    parts: Mapping[str, TrainedPart],
    dataset: Dataset,
) -> None:
    """Build every attack whose parts are known and apply its space to an image, and its loss to logits, abstractly.

    A colour edit of grey images fails here, a manipulator without the attribute that the attack names, or a loss that
    needs more classes, or a target that is not a class.
    """
    image_shape = dataset.image_shape
    builders = {name: part.build for name, part in parts.items()} | dict(learner.builders)
    abstract = {name: part.abstract for name, part in parts.items()}
    for name, network in learner.networks.items():
        abstract[name] = abstract_variables(network.model, image_shape)
    num_classes = config["model"].get("num_classes", dataset.num_classes) if classifies(config) else None
    simple = [(key, own) for key, spec in attack_specs(config).items() for own in simple_specs(spec)]
    for key, spec in simple:
        needed = part_names(spec)
        if needed <= set(builders):
            own = {name: abstract[name] for name in needed}
            fits = functools.partial(_fits, spec, builders, num_classes)
            try:
                jax.eval_shape(fits, own, jax.ShapeDtypeStruct(image_shape, np.float32))
            except ValueError as error:
                raise ConfigError(f"config.{key}: {error}") from error
    if num_classes is not None:
        _check_targets(config, num_classes)


def _check_targets(config: Mapping[str, Any], num_classes: int) -> None:
    """The classes that universal perturbations are made for, in training and in the report, are there."""
    named = {"config.recipe.targets": config["recipe"].get("targets", "all")}
    if section := config["evaluation"]["universal"]:
        path = "config.evaluation.universal.targets"
        named |= {f"{path}.{name}": targets for name, targets in section["targets"].items()}
    for path, targets in named.items():
        if not isinstance(targets, str):
            try:
                require_classes(path, targets, num_classes)
            except ValueError as error:
                raise ConfigError(str(error)) from error


def _fits(
    spec: Mapping[str, Any],
    builders: Mapping[str, Any],
    num_classes: int | None,
    variables: Mapping[str, Any],
    image: Any,
) -> Any:
    attack = attack_from_config(spec, {name: builders[name](own) for name, own in variables.items()})
    if num_classes is not None:
        attack.inside(functools.partial(_check_classes, num_classes))
    example = Example(image, np.int32(0))
    for space in attack.members().values():
        if space.grid_axes:
            space.apply(space.init(jax.random.key(0), example.replace(prepared=space.prepare(example))), example)
    return image


def _check_classes(num_classes: int, attack: Any) -> Any:
    """The innermost attack, after its loss was applied to logits of so many classes; a bank has a set for each."""
    attack.check_classes(num_classes)
    logits = jnp.zeros((1, num_classes))
    if hasattr(attack, "loss"):
        attack.loss(logits, Example(jnp.zeros((1, 1, 1, 1)), jnp.zeros(1, jnp.int32), reference=logits))
    return attack


def _recipe(config: Mapping[str, Any]) -> Callable[[Learner], Any]:
    return lambda learner: build(STEPS, config["recipe"], "recipe", "config.recipe", learner=learner)


def make_learner(config: Mapping[str, Any], dataset: Dataset, total_steps: int = 1) -> Learner:
    """Networks, normalisation and optimisers of a config."""
    recipe, options = options_of(config["recipe"])
    model, optimizer = _network(config, dataset, total_steps * recipe.updates(**options))
    networks = {
        name: Network(*_network(spec, dataset, total_steps)) for name, spec in (config["networks"] or {}).items()
    }
    normal = build({"normalization": _Normalization}, _options(config, "normalization"), "normalization")
    augmentation = None
    if config["augmentation"] is not None:
        augmentation = build({"augmentation": Augmentation}, _options(config, "augmentation"), "augmentation")
    mean, std = (_channels(name, value, dataset) for name, value in (("mean", normal.mean), ("std", normal.std)))
    training = config["training"]
    return Learner(
        model,
        optimizer,
        mean,
        std,
        training["ema_decay"],
        augmentation,
        round(training["attack_warmup"] * total_steps),
        separate_statistics=training["separate_statistics"],
        networks=networks,
        builders=_builders(config, networks, mean, std),
        weight_perturbation=_weight_perturbation(training["weight_perturbation"], total_steps),
    )


def _weight_perturbation(settings: Mapping[str, Any] | None, total_steps: int) -> WeightPerturbation | None:
    if settings is None:
        return None
    return WeightPerturbation(settings["gamma"], round(settings["warmup"] * total_steps))


def _builders(config: Mapping[str, Any], networks: Mapping[str, Network], mean: Any, std: Any) -> dict[str, Any]:
    """What the networks that the recipe trains beside the model become, by name."""
    found = {name: becomes(config["recipe"], name, network.model, mean, std) for name, network in networks.items()}
    return {name: build for name, build in found.items() if build is not None}


def _network(spec: Mapping[str, Any], dataset: Dataset, total_steps: int) -> tuple[Any, Any]:
    """A model that fits the data, and its optimiser."""
    schedule = build(SCHEDULES, spec["schedule"], "schedule", "config.schedule", total_steps=total_steps)
    optimizer = build(OPTIMIZERS, spec["optimizer"], "optimizer", "config.optimizer", learning_rate=schedule)
    model = create_model(
        **{"num_classes": dataset.num_classes, **spec["model"]},
        num_attributes=len(dataset.attributes),
        attribute_names=dataset.attribute_names,
        **_attribute_statistics(dataset),
        input_shape=dataset.image_shape,
    )
    return model, optimizer


def _attribute_statistics(dataset: Dataset) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of every attribute over the training data, at most 10,000 examples of it."""
    if not dataset.attributes:
        return {}
    known = dataset.train.take(np.arange(min(len(dataset.train), 10_000)))["attribute"].astype(np.float64)
    spread = known.std(axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    return {"attribute_centre": tuple(known.mean(axis=0).tolist()), "attribute_scale": tuple(scale.tolist())}


def _channels(name: str, value: Any, dataset: Dataset) -> np.ndarray:
    channels = dataset.image_shape[-1]
    array = np.asarray(value, np.float32)
    if array.shape not in ((), (channels,)):
        raise ValueError(f"normalization.{name}={value!r} must be one number or one per channel ({channels})")
    if name == "std" and np.any(array <= 0):
        raise ValueError(f"normalization.std={value!r} must be larger than 0")
    return array
