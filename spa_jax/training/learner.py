"""What every recipe is written with: examples, victim, outer loss and update, the same on one device and on many."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from spa_jax.attacks import PureAttack, attack_from_config
from spa_jax.attacks.catalogue import part_names
from spa_jax.data import Augmentation, augment, to_unit_float
from spa_jax.losses import cross_entropy
from spa_jax.solvers import fold_in
from spa_jax.training.networks import Network, update
from spa_jax.training.state import TrainState, as_variables
from spa_jax.training.weight_perturbation import WeightPerturbation
from spa_jax.types import Example, Images, Logits, Result, Values
from spa_jax.victims import classifier
from spa_jax.victims.rewriting import quick

Metrics: TypeAlias = dict[str, jax.Array]
"""The metrics of a step by name, each a scalar."""
TrainStep: TypeAlias = Callable[[TrainState, Mapping[str, Any], Any], tuple[TrainState, Metrics]]
"""`(state, batch, key) -> (state, metrics)`."""
_AUGMENT, _ATTACK = 0, 1
_ACCURACIES = {"clean": "accuracy", "edited": "edited_accuracy", "attacked": "robust_accuracy"}


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
        weight_perturbation: where the weights are moved to before each gradient is taken; None: nowhere.
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
    weight_perturbation: WeightPerturbation | None = None

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

    def started_from(self, state: TrainState, variables: Mapping[str, Any]) -> TrainState:
        """The state with the weights and statistics of a network trained before.

        Raises:
            ValueError: they are of another network.
        """
        own = jax.tree.map(jnp.shape, state.variables())
        if own != jax.tree.map(jnp.shape, dict(variables)):
            raise ValueError("start_from is of another network: its weights have other names or shapes")
        params, statistics = (jax.tree.map(jnp.copy, variables.get(name, {})) for name in ("params", "batch_stats"))
        ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
        clean = None if state.clean_batch_stats is None else jax.tree.map(jnp.copy, statistics)
        return state.replace(params=params, batch_stats=statistics, ema=ema, clean_batch_stats=clean)

    def examples(self, state: TrainState, batch: Mapping[str, Any], key: Any) -> Example:
        """The examples of a batch with augmented images in [0, 1], labels, weights (0 for padding) and keys.

        A key depends on the run's key, the step and the position in the GLOBAL batch, never on devices or processes.
        """
        step_key = jax.random.fold_in(key, state.step)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, batch["index"])
        images = to_unit_float(batch["image"])
        if self.augmentation is not None:
            images = augment(fold_in(keys, _AUGMENT), images, self.augmentation)
        weight = batch["mask"].astype(jnp.float32)
        return Example(images, batch["label"], weight=weight, key=fold_in(keys, _ATTACK))

    def victim(self, state: TrainState, averaged: bool = False) -> Any:
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

    def grown(self, attack: Any, state: TrainState) -> Any:
        """The attack at the size that it has at this step of the warm-up."""
        if not self.attack_warmup:
            return attack
        return attack.scaled(jnp.minimum(1.0, (state.step + 1).astype(jnp.float32) / self.attack_warmup))

    def craft(self, attack: PureAttack, state: TrainState, examples: Example) -> Result:
        """The attack's result on the network as it is now, constant to the outer gradient."""
        found = self.grown(attack, state)(
            examples.key,
            self.victim(state),
            examples.image,
            examples.label,
            weight=examples.weight,
            reference=examples.reference,
        )
        return jax.lax.stop_gradient(found)

    def logits(self, params: Any, state: TrainState, images: Images) -> tuple[Logits, Any]:
        """Logits in training mode, and the new BatchNorm statistics, which see all images of the call as one batch."""
        variables = as_variables(params, state.batch_stats)

        def apply(variables: Any, images: Images) -> tuple[Logits, Any]:
            mean, std = (
                jnp.broadcast_to(jnp.asarray(own, images.dtype), images.shape) for own in (self.mean, self.std)
            )
            return self.model.apply(variables, (images - mean) / std, train=True, mutable=["batch_stats"])

        logits, updates = quick(apply)(variables, images)
        return logits, updates.get("batch_stats", state.batch_stats)

    def responses(
        self, params: Any, state: TrainState, images: Mapping[str, Images], apart: bool = False
    ) -> tuple[dict[str, Logits], Any]:
        """Logits in training mode of several images of each example, by name, and the new BatchNorm statistics.

        All images go through the network as one batch, or with `apart` each kind by itself, one after the other, which
        moves the running statistics in turn. Where these are kept apart, "clean" images go by themselves and move
        statistics of their own, and inference uses those of all others (after Xie et al. 2020, who keep scales and
        biases apart too and infer with the clean ones).
        """
        chex.assert_equal_shape(list(images.values()))
        if state.clean_batch_stats is not None and "clean" in images:
            with_clean = state.replace(batch_stats=state.clean_batch_stats)
            clean, clean_statistics = self.logits(params, with_clean, images["clean"])
            others = {name: own for name, own in images.items() if name != "clean"}
            named, statistics = self.responses(params, state, others, apart)
            return {"clean": clean, **named}, SeparateStatistics(statistics, clean_statistics)
        named = {}
        for names in [[name] for name in images] if apart else [list(images)]:
            logits, statistics = self.logits(params, state, interleave(*(images[name] for name in names)))
            named |= zip(names, separate(logits, len(names)), strict=True)
            state = state.replace(batch_stats=statistics)
        return named, state.batch_stats

    def average(self, values: Values, weights: Values) -> jax.Array:
        """This device's contribution to the weighted mean over the global batch; `total` (psum) gives the mean."""
        return jnp.sum(values * weights) / self.total(jnp.sum(weights))

    def total(self, tree: Any) -> Any:
        """The sum over devices under `pmap`; under `jit` sums are global already."""
        return tree if self.axis_name is None else jax.lax.psum(tree, self.axis_name)

    def accuracy(self, logits: Logits, examples: Example) -> jax.Array:
        """This device's share of the accuracy."""
        correct = jnp.argmax(logits, axis=-1) == examples.label
        return self.average(correct.astype(jnp.float32), examples.weight)

    def cross_entropy(self, logits: Logits, examples: Example) -> jax.Array:
        """This device's share of the mean cross entropy."""
        return self.average(cross_entropy(logits, examples), examples.weight)

    def weigh(
        self,
        params: Any,
        state: TrainState,
        objective: Any,
        images: Mapping[str, Any],
        examples: Example,
        attacked_share: Any = 1.0,
    ) -> tuple[Values, dict[str, Logits], Any, Metrics]:
        """An outer objective of the network in training mode.

        Args:
            params: the weights.
            state: with the BatchNorm statistics.
            objective: of `spa_jax.training.outer`.
            images: by name; those that the objective sees are shown to the network.
            examples: what they were made from.
            attacked_share: scales the weight of the attacked images.

        Returns:
            The objective [b], the logits by name, the new BatchNorm statistics, and shares of the accuracies.
        """
        shown = {name: images[name] for name in objective.images}
        logits, statistics = self.responses(params, state, shown, objective.apart)
        accuracies = {_ACCURACIES[name]: self.accuracy(own, examples) for name, own in logits.items()}
        return objective(logits, examples, attacked_share), logits, statistics, accuracies

    def learn(
        self,
        state: TrainState,
        objective: Any,
        images: Mapping[str, Any],
        examples: Example,
        attacked_share: Any = 1.0,
    ) -> tuple[TrainState, Metrics]:
        """One update of the weights by an outer objective; the arguments are those of `weigh`."""

        def loss(params: Any) -> Any:
            values, _, *seen = self.weigh(params, state, objective, images, examples, attacked_share)
            return self.average(values, examples.weight), tuple(seen)

        return self.descend(state, loss)

    def descend(self, state: TrainState, loss: Callable[[Any], Any]) -> tuple[TrainState, Metrics]:
        """One update of the weights.

        Args:
            state: before the step.
            loss: `params -> (share of the loss, (BatchNorm statistics, shares of metrics))`; the statistics are those
                that `logits` or `responses` returned.
        """

        def alone(params: Any, _: Any) -> Any:
            value, (statistics, metrics) = loss(params)
            return value, (statistics, metrics, None)

        state, metrics, _ = self.descend_beside(state, (), alone)
        return state, metrics

    def descend_beside(
        self, state: TrainState, beside: Any, loss: Callable[[Any, Any], Any]
    ) -> tuple[TrainState, Metrics, tuple[Any, Any]]:
        """One update of the weights, and the gradient of something else by the same backward pass.

        Args:
            state: before the step.
            beside: what else the loss depends on, such as a perturbation.
            loss: `(params, beside) -> (share of the loss, (BatchNorm statistics, shares of metrics, anything))`.

        Returns:
            The state, the metrics, and what the loss returned last with this device's share of the gradient of
            `beside`.
        """
        (value, (statistics, metrics, seen)), (gradient, other) = jax.value_and_grad(loss, (0, 1), has_aux=True)(
            self._perturbed(state, lambda params: loss(params, beside)[0]), beside
        )
        gradient = self.total(gradient)
        params, opt_state = update(self.optimizer, gradient, state.opt_state, state.params)
        ema = state.ema
        if ema is not None:
            ema = jax.tree.map(lambda old, new: old + (1 - self.ema_decay) * (new - old), ema, params)
        if isinstance(statistics, SeparateStatistics):
            state = state.replace(clean_batch_stats=statistics.clean)
            statistics = statistics.attacked
        state = state.replace(step=state.step + 1, params=params, batch_stats=statistics, opt_state=opt_state, ema=ema)
        metrics = self.total({"loss": value, **metrics}) | {"gradient_norm": optax.tree.norm(gradient)}
        return state, metrics, (seen, other)

    def _perturbed(self, state: TrainState, share: Callable[[Any], Any]) -> Any:
        """The weights at which the update's gradient is taken, by the loss that it lowers."""
        if self.weight_perturbation is None:
            return state.params
        gradient = self.total(jax.grad(share)(state.params))
        return self.weight_perturbation.moved(state.params, gradient, state.step)


def interleave(*variants: Any) -> Any:
    """Several images of each example side by side, [variants * b, ...], so that a sharded batch stays where it is."""
    stacked = jnp.stack(variants, axis=1)
    return stacked.reshape(-1, *stacked.shape[2:])


def separate(logits: Float[Array, "n k"], variants: int) -> list[Any]:
    """The logits of each variant that `interleave` put side by side."""
    grouped = logits.reshape(-1, variants, logits.shape[-1])
    return [grouped[:, i] for i in range(variants)]
