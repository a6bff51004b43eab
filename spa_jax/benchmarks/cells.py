"""What the speed benchmark times, one thing a process: attacks and training steps with their floor, other libraries."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from spa_jax.attacks.catalogue import attack_from_config
from spa_jax.benchmarks.floor import Passes, count_passes, run_passes
from spa_jax.benchmarks.peers import make_peer, make_training_peer, task_of
from spa_jax.benchmarks.stock import STOCK
from spa_jax.losses import cross_entropy
from spa_jax.models import create_model, init_variables, parameter_count
from spa_jax.parallel import data_mesh, on_all_devices, replicate, shard_batch
from spa_jax.training.learner import Learner
from spa_jax.training.placement import make_engine
from spa_jax.training.recipes import adversarial
from spa_jax.types import Example, Predict, Victim
from spa_jax.victims import as_victim, classifier
from spa_jax.victims.rewriting import quick

Run: TypeAlias = Callable[[], Any]
Cell: TypeAlias = tuple[Mapping[str, Any], Mapping[str, Run]]
"""Facts for the table, and functions by name; the first is the one whose first call counts."""

FORMS = ("zoo", "stock")
FLOORS = ("prepared", "plain")
_MOST_PASSES = 10
_LEARNING_RATE, _MOMENTUM = 0.01, 0.9


class Bench:
    """A network with random weights, and random images and labels for it: what is computed does not depend on them.

    Attributes:
        model, variables: the network.
        input_shape: (h, w, c) of one image.
        images, labels: NumPy arrays.
    """

    def __init__(self, section: Mapping[str, Any], name: str, seed: int, form: str = "zoo") -> None:
        network = section["networks"][name]
        self.form, self.input_shape = form, tuple(network["input_shape"])
        classes, batch = section["num_classes"], section["batch_size"]
        if form == "stock":
            self.model: Any = STOCK[network["stock"]](num_classes=classes)
        else:
            self.model = create_model(num_classes=classes, input_shape=self.input_shape, **network["model"])
        self.variables = init_variables(self.model, jax.random.key(seed), self.input_shape)
        random = np.random.default_rng(seed)
        self.images = random.uniform(size=(batch, *self.input_shape)).astype(np.float32)
        self.labels = random.integers(classes, size=batch).astype(np.int32)

    @property
    def victim(self) -> Victim:
        """Of the zoo, `classifier(model, variables)`; of a stock network, the closure that a user would write."""
        model, variables = self.model, self.variables
        return classifier(model, variables) if self.form == "zoo" else lambda images: model.apply(variables, images)

    def predict(self, floor: str) -> Predict:
        """The victim with its weights as arguments: "prepared" for this machine, as attacks do, or "plain"."""
        return as_victim(self.victim, self.images, inline=False, rewrite=floor == "prepared")


# --- attacks --------------------------------------------------------------------------------------------------------


def attack_cell(
    section: Mapping[str, Any], network: str, attack: Mapping[str, Any], seed: int, form: str = "zoo", devices: int = 1
) -> Cell:
    """An attack on a network, and the network's bare passes as the victim is and as it is prepared.

    The functions are `run`, and of each kind of floor `gradients` and, where the attack searches, `forwards`: at most
    10 passes each. The facts hold how many the attack needs at least, and how many were timed.
    """
    bench, mesh = Bench(section, network, seed, form), data_mesh(jax.devices()[:devices])
    made = attack_from_config(attack)
    victim, call = bench.victim, made if devices == 1 else on_all_devices(made, mesh)
    functions: dict[str, Run] = {
        "run": lambda: jax.block_until_ready(call(jax.random.key(0), victim, bench.images, bench.labels))
    }
    shares, floors = bare_passes(bench, mesh, count_passes(made))
    return {"parameters": parameter_count(bench.variables), "passes": shares}, functions | floors


def bare_passes(bench: Bench, mesh: Mesh, needed: Passes) -> tuple[dict[str, tuple[int, int]], dict[str, Run]]:
    """How many passes of each kind are needed and how many are timed, and the functions that run them."""
    timed = Passes(min(needed.gradients, _MOST_PASSES), min(needed.forwards, _MOST_PASSES))
    kinds = {"gradients": Passes(gradients=timed.gradients), "forwards": Passes(forwards=timed.forwards)}
    functions: dict[str, Run] = {}
    for floor in FLOORS:
        placed = functools.cache(functools.partial(_placed, bench, floor, mesh))
        for kind, passes in kinds.items():
            if passes != Passes():
                functions[f"{floor} {kind}"] = functools.partial(_run_placed, placed, passes)
    return {kind: (getattr(needed, kind), getattr(timed, kind)) for kind in kinds}, functions


def _placed(bench: Bench, floor: str, mesh: Mesh) -> tuple[Any, Any, Any]:
    return replicate(bench.predict(floor), mesh), *shard_batch((bench.images, bench.labels), mesh)


def _run_placed(placed: Callable[[], tuple[Any, Any, Any]], passes: Passes) -> None:
    run_passes(*placed(), passes)


def peer_cell(section: Mapping[str, Any], network: str, attack: Mapping[str, Any], seed: int, peer: str = "") -> Cell:
    """Another library's form of an attack, on the network of the zoo."""
    bench = Bench(section, network, seed)
    task = task_of(attack, bench.model, bench.variables, bench.input_shape, seed)
    made = make_peer(peer, task)
    return {"parameters": parameter_count(bench.variables)}, {"run": lambda: made(bench.images, bench.labels)}


# --- training steps -------------------------------------------------------------------------------------------------


class Training:
    """An adversarial-training step (Madry et al. 2018) on the devices of a mesh, with plain momentum.

    Attributes:
        step: the compiled step; its input state is donated and must not be used again.
        state, batch, key: its arguments.
    """

    def __init__(self, bench: Bench, attack: Mapping[str, Any], mesh: Mesh) -> None:
        learner = Learner(bench.model, optax.sgd(_LEARNING_RATE, _MOMENTUM))
        engine = make_engine("jit", mesh, learner, lambda learner: adversarial(learner, attack))
        count = len(bench.labels)
        batch = {"image": bench.images, "label": bench.labels, "index": np.arange(count), "mask": np.ones(count, bool)}
        self.step: Any = engine.step
        self.state = engine.place_state(learner.init(jax.random.key(0), bench.input_shape))
        self.batch, self.key = engine.place_batch(batch), engine.place_state(jax.random.key(1))

    def run(self) -> None:
        """One step, from which the next one continues."""
        self.state, metrics = self.step(self.state, self.batch, self.key)
        jax.block_until_ready((self.state, metrics))


def training_cell(
    section: Mapping[str, Any], network: str, attack: Mapping[str, Any], seed: int, form: str = "zoo", devices: int = 1
) -> Cell:
    """A training step on an attack. Its floor has one gradient of the weights (`updates`) more."""
    bench, mesh = Bench(section, network, seed, form), data_mesh(jax.devices()[:devices])
    spec = {**attack, "keep": "last"}
    training = Training(bench, spec, mesh)
    shares, floors = bare_passes(bench, mesh, count_passes(attack_from_config(spec)))
    for floor in FLOORS:
        arguments = replicate(bench.variables, mesh), *shard_batch((bench.images, bench.labels), mesh)
        update = functools.partial(weight_gradient(bench.model, floor == "prepared"), *arguments)
        floors[f"{floor} updates"] = functools.partial(_wait, update)
    facts = {"parameters": parameter_count(bench.variables), "passes": shares | {"updates": (1, 1)}}
    return facts, {"run": training.run} | floors


def weight_gradient(model: Any, prepared: bool) -> Any:
    """The compiled gradient of the mean cross entropy in training mode: `(variables, images, labels) -> gradient`."""

    def apply(variables: Any, images: Any) -> tuple[Any, Any]:
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    def loss(params: Any, variables: Any, images: Any, labels: Any) -> Any:
        logits, updates = (quick(apply) if prepared else apply)({**variables, "params": params}, images)
        return jnp.mean(cross_entropy(logits, Example(images, labels))), updates

    def gradient(variables: Any, images: Any, labels: Any) -> Any:
        return jax.grad(loss, has_aux=True)(variables["params"], variables, images, labels)

    return jax.jit(gradient)


def _wait(function: Run) -> None:
    jax.block_until_ready(function())


def training_peer_cell(
    section: Mapping[str, Any], network: str, attack: Mapping[str, Any], seed: int, peer: str = ""
) -> Cell:
    """The same training step as a loop of another library."""
    bench = Bench(section, network, seed)
    task = task_of(attack, bench.model, bench.variables, bench.input_shape, seed)
    made = make_training_peer(peer, task, _LEARNING_RATE, _MOMENTUM)
    return {"parameters": parameter_count(bench.variables)}, {"run": lambda: made(bench.images, bench.labels)}
