"""What every recipe is written with: examples, victim, outer loss and update, the same on one device and on many."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from spa_jax.catalogue import attack_from_config, part_names
from spa_jax.combinators import shrunk
from spa_jax.data import Augmentation, augment, to_unit_float
from spa_jax.engine import PureAttack
from spa_jax.losses import cross_entropy
from spa_jax.predict import Victim, classifier
from spa_jax.solvers import fold_in
from spa_jax.training.networks import Network
from spa_jax.training.state import TrainState, as_variables
from spa_jax.types import Images, Keys, Labels, Logits, Values

Metrics: TypeAlias = dict[str, jax.Array]
TrainStep: TypeAlias = Callable[[TrainState, Mapping[str, Any], Any], tuple[TrainState, Metrics]]
_AUGMENT, _ATTACK = 0, 1


class SeparateStatistics(NamedTuple):
    """New BatchNorm statistics of attacked and of clean images, kept apart."""

    attacked: Any
    clean: Any


@dataclasses.dataclass(frozen=True)
class Learner:
    """The network, its optimiser, and how sums over the batch are taken.

    Attributes:
        model: a flax.linen classifier.
        optimizer: the optax rule of the outer update.
        mean, std: input normalisation, part of the victim and of the trained network alike.
        ema_decay: of the weight average; 0 keeps none.
        augmentation: of the training images, or None.
        attack_warmup: steps over which the attack grows to its full size; 0 for an attack of full size at once.
        axis_name: the mapped axis under `pmap`; None under `jit`, where the arrays are global.
        separate_statistics: whether BatchNorm keeps the statistics of clean and of attacked images apart.
        networks: further networks that the recipe trains, by name.
        builders: what the variables in `TrainState.frozen`, and of these networks, become for an attack, by name.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    mean: Any = 0.0
    std: Any = 1.0
    ema_decay: float = 0.0
    augmentation: Augmentation | None = None
    attack_warmup: int = 0
    axis_name: str | None = None
    separate_statistics: bool = False
    networks: Mapping[str, Network] = dataclasses.field(default_factory=dict)
    builders: Mapping[str, Callable[[Any], Any]] = dataclasses.field(default_factory=dict)

    def init(self, key: Any, image_shape: tuple[int, int, int]) -> TrainState:
        """The state before the first step."""
        from spa_jax.models import init_variables

        variables = init_variables(self.model, key, image_shape)
        params = variables["params"]
        ema = jax.tree.map(jnp.copy, params) if self.ema_decay else None
        statistics = variables.get("batch_stats", {})
        networks = {
            name: network.init(jax.random.fold_in(key, i), image_shape)
            for i, (name, network) in enumerate(sorted(self.networks.items()))
        }
        clean = jax.tree.map(jnp.copy, statistics) if self.separate_statistics else None
        opt_state = self.optimizer.init(params)
        return TrainState(jnp.zeros((), jnp.int32), params, statistics, opt_state, ema, clean, networks)

    def examples(self, state: TrainState, batch: Mapping[str, Any], key: Any) -> tuple[Keys, Images, Labels, Values]:
        """Keys, augmented images in [0, 1], labels and weights of a batch.

        A key depends on the run's key, the step and the position in the GLOBAL batch, never on devices or processes.
        """
        step_key = jax.random.fold_in(key, state.step)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, batch["index"])
        images = to_unit_float(batch["image"])
        if self.augmentation is not None:
            images = augment(fold_in(keys, _AUGMENT), images, self.augmentation)
        return fold_in(keys, _ATTACK), images, batch["label"], batch["mask"].astype(jnp.float32)

    def victim(self, state: TrainState, averaged: bool = False) -> Victim:
        """The network in inference mode (running BatchNorm statistics): as it is now, or with averaged weights."""
        variables = state.variables() if averaged else state.training_variables()
        return classifier(self.model, variables, self.mean, self.std)

    def parts(self, state: TrainState) -> dict[str, Any]:
        """What attacks may be made of: networks trained before, and those trained here as they are now."""
        variables = {**state.frozen, **{name: network.variables() for name, network in state.networks.items()}}
        return {name: self.builders[name](found) for name, found in variables.items() if name in self.builders}

    def attacker(self, spec: Mapping[str, Any]) -> Callable[[TrainState], Any]:
        """The attack of a config for a state: one that needs no learned part is built, and checked, at once."""
        if part_names(spec):
            return lambda state: attack_from_config(spec, self.parts(state))
        attack = attack_from_config(spec)
        return lambda state: attack

    def craft(self, attack: PureAttack, state: TrainState, keys: Keys, x: Images, y: Labels) -> Any:
        """The attack's result on the network as it is now, constant to the outer gradient."""
        if self.attack_warmup:
            attack = shrunk(attack, jnp.minimum(1.0, (state.step + 1) / self.attack_warmup))
        return jax.lax.stop_gradient(attack.search(keys, self.victim(state), x, y))

    def logits(self, params: Any, state: TrainState, images: Images) -> tuple[Logits, Any]:
        """Logits in training mode, and the new BatchNorm statistics, which see all images of the call as one batch."""
        variables = as_variables(params, state.batch_stats)
        normalised = (images - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        logits, updates = self.model.apply(variables, normalised, train=True, mutable=["batch_stats"])
        return logits, updates.get("batch_stats", state.batch_stats)

    def responses(self, params: Any, state: TrainState, clean: Images, *attacked: Images) -> tuple[list[Logits], Any]:
        """Logits in training mode of clean and attacked images, one entry each, and the new BatchNorm statistics.

        All images go through the network as one batch. Where statistics are kept apart, clean images go by themselves
        and are normalised by statistics of their own, and inference uses those of attacked images (after Xie et al.
        2020, who keep scales and biases apart too and infer with the clean ones).
        """
        if state.clean_batch_stats is None:
            logits, statistics = self.logits(params, state, interleave(clean, *attacked))
            return separate(logits, 1 + len(attacked)), statistics
        first, clean_statistics = self.logits(params, state.replace(batch_stats=state.clean_batch_stats), clean)
        others, statistics = self.logits(params, state, interleave(*attacked))
        return [first, *separate(others, len(attacked))], SeparateStatistics(statistics, clean_statistics)

    def average(self, values: Values, weights: Values) -> jax.Array:
        """This device's share of the weighted mean over the global batch; `total` of the shares is the mean."""
        return jnp.sum(values * weights) / self.total(jnp.sum(weights))

    def total(self, tree: Any) -> Any:
        """The sum over devices under `pmap`; under `jit` sums are global already."""
        return tree if self.axis_name is None else jax.lax.psum(tree, self.axis_name)

    def accuracy(self, logits: Logits, labels: Labels, weights: Values) -> jax.Array:
        """This device's share of the accuracy."""
        return self.average((jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32), weights)

    def cross_entropy(self, logits: Logits, labels: Labels, weights: Values) -> jax.Array:
        """This device's share of the mean cross entropy."""
        return self.average(cross_entropy(logits, labels), weights)

    def descend(self, state: TrainState, loss: Callable[[Any], Any]) -> tuple[TrainState, Metrics]:
        """One update of the weights.

        Args:
            state: before the step.
            loss: `params -> (share of the loss, (BatchNorm statistics, shares of metrics))`; the statistics are those
                that `logits` or `responses` returned.
        """
        (value, (statistics, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        gradient = self.total(gradient)
        updates, opt_state = self.optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = jax.tree.map(lambda old, new: old + (1 - self.ema_decay) * (new - old), ema, params)
        if isinstance(statistics, SeparateStatistics):
            state = state.replace(clean_batch_stats=statistics.clean)
            statistics = statistics.attacked
        state = state.replace(step=state.step + 1, params=params, batch_stats=statistics, opt_state=opt_state, ema=ema)
        return state, self.total({"loss": value, **metrics}) | {"gradient_norm": optax.tree.norm(gradient)}


def interleave(*variants: Any) -> Any:
    """Several images of each example side by side, [variants * b, ...], so that a sharded batch stays where it is."""
    stacked = jnp.stack(variants, axis=1)
    return stacked.reshape(-1, *stacked.shape[2:])


def separate(logits: Float[Array, "n k"], variants: int) -> list[Any]:
    """The logits of each variant that `interleave` put side by side."""
    grouped = logits.reshape(-1, variants, logits.shape[-1])
    return [grouped[:, i] for i in range(variants)]
