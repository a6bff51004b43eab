"""Universal perturbations: one set of variables for all images, by gradient steps over batches or image by image."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from spa_jax import solvers
from spa_jax.attacks.base import JUDGE, START, PureAttack, stream
from spa_jax.attacks.deepfool import over_nearest
from spa_jax.attacks.gradient import relative_step
from spa_jax.attacks.iterative import IterativeAttack, Keep, make_attack
from spa_jax.attacks.minimal_norm import NormProblem
from spa_jax.attacks.spa import attribute_spaces
from spa_jax.goals import misclassified
from spa_jax.losses import class_balanced
from spa_jax.solvers import projected_gradient, track_labels
from spa_jax.spaces.bank import bank
from spa_jax.spaces.chain import chain
from spa_jax.spaces.lift import Lifted, universal
from spa_jax.spaces.noise import noise_ball
from spa_jax.trees import branch, pytree, static
from spa_jax.types import Example, Image, Images, Keys, Predict, Result, Scalar, Solver, Space
from spa_jax.validation import require_choice, require_count, require_number


def uap(
    radius: Scalar | None = None,
    num_steps: int = 10,
    norm: str = "linf",
    loss: Any = "capped_cross_entropy",
    *,
    attributes: Any = (),
    classes: int | None = None,
    rule: str = "sign",
    step_size: Scalar | None = None,
    rel_step_size: Scalar | None = None,
    random_start: bool = False,
    keep: Keep = "last",
    axis_name: str | None = None,
) -> IterativeAttack:
    """A universal adversarial perturbation by ascent on the mean loss of a batch (Shafahi et al. 2020, algorithm 2).

    A call makes `num_steps` steps on one batch. Over a data set, carry the state: `init` on the first batch, `step` on
    each, `spa_jax.evaluation.craft` does that; `attack.apply(state.variables, ...)` changes other images.

    Args:
        radius: of the noise, on the [0, 1] scale; None: no noise, the attributes alone.
        num_steps: steps of a call.
        norm: of the noise, "linf", "l2" or "l1".
        loss: as for `make_attack`. The default is cross entropy clipped at 9, so misclassified images contribute no
            gradient. With a target, choose "cross_entropy": log p_t, which ends at 0 by itself.
        attributes: as for `spa`: one rotation, hue or other edit for all images, before the noise.
        classes: one perturbation for each of that many classes, picked by the label (see `spa_jax.spaces.bank`).
        rule: "sign": steepest ascent; "momentum": the same of a gradient averaged with decay 0.9; "adam": Adam on the
            raw gradient.
        step_size: in the units of the radius.
        rel_step_size: as a fraction of the radius, and of half the range of an attribute. Default: 0.1, our choice (the
            training of Shafahi et al. uses 1).
        random_start: start at a random point instead of at no change.
        keep: "last", or "best" where all steps see the same batch.
        axis_name: the mapped axis inside `pmap` or `shard_map`, as for `spa_jax.universal`.

    Raises:
        ValueError: a broken rule, naming the value; neither radius nor attributes; when called, a number of classes
            that is not the victim's.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import uap
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> result = uap(radius=0.03)(jax.random.key(0), model, images, labels)
        >>> print(result.success, result.variables.shape)
        [ True  True] (4, 4, 1)
    """
    space = _space(radius, norm, attributes, classes)
    solver = _solver(rule, radius, num_steps, step_size, rel_step_size)
    lift = functools.partial(universal, axis_name=axis_name)
    return make_attack(space, loss, solver, num_steps, lift=lift, keep=keep, random_start=random_start)


def cb_uap(
    radius: Scalar | None = None,
    num_steps: int = 10,
    norm: str = "linf",
    *,
    cap: Scalar = 2.0,
    calibration: Scalar = 0.0,
    temperature: Scalar = 1.0,
    penalty: Scalar = 1.0,
    margin: Scalar = 0.5,
    adjustment: Scalar = 0.25,
    penalise: str = "mass",
    decay: Scalar = 0.9,
    attributes: Any = (),
    classes: int | None = None,
    rule: str = "sign",
    step_size: Scalar | None = None,
    rel_step_size: Scalar | None = None,
    random_start: bool = False,
    axis_name: str | None = None,
) -> IterativeAttack:
    """A class-balanced universal perturbation (CB-UAP): it fools, and spreads the wrong answers over the classes.

    Args:
        radius, num_steps, norm, attributes, rule, step_size, rel_step_size, random_start, axis_name: as for `uap`.
        cap, calibration, temperature, penalty, margin, adjustment, penalise: of the loss
            `spa_jax.losses.class_balanced`, which says what is published and what is our choice.
        classes: as for `uap`: one perturbation for each class, which needs the labels; for training. Our choice.
        decay: of the running shares of the classes, see `spa_jax.solvers.track_labels`.

    Raises:
        ValueError: as for `uap`; when called with targets.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import cb_uap
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> result = cb_uap(radius=0.03)(jax.random.key(0), model, images, labels)
        >>> print(result.success, result.variables.shape)
        [ True  True] (4, 4, 1)
    """
    loss = class_balanced(cap, calibration, temperature, penalty, margin, adjustment, penalise)
    solver = track_labels(_solver(rule, radius, num_steps, step_size, rel_step_size), decay)
    lift, space = functools.partial(universal, axis_name=axis_name), _space(radius, norm, attributes, classes)
    return make_attack(space, loss, solver, num_steps, lift=lift, keep="last", random_start=random_start)


def _space(radius: Scalar | None, norm: str, attributes: Any, classes: int | None) -> Space:
    members: dict[str, Space] = attribute_spaces(attributes) if attributes else {}
    if radius is None and not members:
        raise ValueError("radius=None, attributes=(): a universal perturbation needs noise or attributes")
    noise = None if radius is None else noise_ball(norm, radius)
    if noise is not None and members:
        members |= {"noise": noise}
    space: Any = chain(**members) if members else noise
    return space if classes is None else bank(space, classes)


def _solver(
    rule: str, radius: Scalar | None, num_steps: int, step_size: Scalar | None, rel_step_size: Scalar | None
) -> Solver:
    require_choice("rule", rule, ("sign", "momentum", "adam"))
    if radius is None and step_size is not None:
        raise ValueError(f"step_size={step_size!r} is in the units of the radius, and radius=None; use rel_step_size")
    step = relative_step(1.0 if radius is None else radius, num_steps, step_size, rel_step_size, 0.1, carried=True)
    if rule == "adam":
        return projected_gradient(step, solvers.rule(optax.adam, 1.0), steepest_direction=False)
    return projected_gradient(step, gradient_rule=solvers.rule(optax.ema, 0.9, False) if rule == "momentum" else None)


# --- image by image: the slow reference -----------------------------------------------------------------------------


class AccumulatedState(NamedTuple):
    """The state between two passes over the images.

    Attributes:
        step: int32 [], passes made.
        key: of the attack.
        variables: the perturbation [h, w, c].
        best: the one of the passes so far that fooled most.
        rate: the share that it fooled; -1 before any pass.
        evaluations: int32 [], forward passes plus backward passes of one image.
    """

    step: Any
    key: Any
    variables: Any
    best: Any
    rate: Any
    evaluations: Any


@pytree
class Accumulated(PureAttack):
    """See `deepfool_uap`."""

    space: Lifted
    enough: Any
    overshoot: Any
    num_steps: int = static()
    inner_steps: int = static()
    norm: str = static()

    @property
    def shared(self) -> bool:
        return True

    def members(self) -> Mapping[str, Any]:
        return self.space.members()

    def batch_sizes(self, size: int) -> set[int]:
        return {size, 1}

    def found(self, state: AccumulatedState) -> Image:
        """The perturbation of the best pass."""
        return state.best

    def begin(self, keys: Keys, predict: Predict, examples: Example) -> AccumulatedState:
        nothing = self.space.identity(examples)
        zero = jnp.zeros((), jnp.int32)
        return AccumulatedState(zero, keys, nothing, nothing, jnp.asarray(-1.0, jnp.float32), zero)

    def move(self, state: AccumulatedState, predict: Predict, examples: Example) -> AccumulatedState:
        def one_pass(state: AccumulatedState) -> AccumulatedState:
            v, count = self._pass(state, predict, examples)
            rate = self._rate(v, state.key, predict, examples)
            better = rate > state.rate
            best = jnp.where(better, v, state.best)
            count = count + len(examples.image)
            return AccumulatedState(state.step, state.key, v, best, jnp.maximum(rate, state.rate), count)

        needed = (state.rate < self.enough).astype(jnp.int32)
        state = branch(needed, [lambda state: state, one_pass], state)
        return state._replace(step=state.step + 1)

    advance = move

    def end(self, state: AccumulatedState, predict: Predict, examples: Example) -> Result:
        found = self.make(state.best, predict, examples)
        logits = predict(self._keys(state.key, found), found)
        success = misclassified(logits, examples)
        return Result(found, state.best, success.astype(found.dtype), success)

    def run(self, driver: Any, keys: Keys, examples: Example) -> Result:
        state = driver.call(self, "begin", keys, examples)
        state = driver.repeat(self, self.num_steps, state, examples)
        return driver.call(self, "end", state, examples)

    def make(self, variables: Any, predict: Predict, examples: Example, without: tuple[str, ...] = ()) -> Images:
        """The images with the perturbation."""
        return self.space.apply(self.space.identity(examples) if without else variables, examples)

    def _keys(self, key: Any, images: Images) -> Keys:
        return self.space.example_keys(stream(key, JUDGE), len(images))

    def _rate(self, v: Any, key: Any, predict: Predict, examples: Example) -> Any:
        logits = predict(self._keys(key, examples.image), self.make(v, predict, examples))
        return self.space.summarise(misclassified(logits, examples), examples).astype(jnp.float32)

    def _pass(self, state: AccumulatedState, predict: Predict, examples: Example) -> tuple[Any, Any]:
        """Once through the images in a random order, adding for each that is not fooled yet what fools it.

        Returns:
            The variables, and the evaluations so far.
        """
        count = len(examples.image)
        order = jax.random.permutation(stream(state.key, START, state.step), count)
        weight = jnp.ones(count) if examples.weight is None else examples.weight
        rows = (examples.replace(weight=weight, prepared=None), self._keys(state.key, examples.image))

        def add(carry: tuple[Any, Any], i: Any) -> tuple[tuple[Any, Any], None]:
            v, count = carry
            example, key = jax.tree.map(lambda leaf: leaf[i], rows)
            seen = self.space.space.apply(v, example)
            fooled = _Point(example, key, predict, self.norm, self.overshoot)
            change, own = fooled.nearest(seen, self.inner_steps)
            counts = example.weight > 0
            v = jnp.where(counts, self.space.space.project(v + change, None), v)
            return (v, count + jnp.where(counts, own, 0)), None

        return jax.lax.scan(add, (state.variables, state.evaluations), order)[0]


class _Point(NamedTuple):
    """One image that DeepFool moves over the nearest linearised boundary, or to the target's side."""

    example: Example
    key: Any
    predict: Predict
    norm: str
    overshoot: Any

    def logits(self, image: Image) -> Any:
        return self.predict(self.key[None], image[None])[0]

    def reached(self, logits: Any) -> Any:
        batch = jax.tree.map(lambda leaf: leaf[None], (logits, self.example.replace(key=None)))
        return misclassified(*batch)[0]

    def nearest(self, image: Image, num_steps: int) -> tuple[Image, Any]:
        """The change that fools, 0 where none was found within the steps or none is needed, and its evaluations."""

        def unfinished(carry: tuple[Any, ...]) -> Any:
            _, done, step = carry
            return ~done & (step < num_steps)

        def go(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            moved, _, step = carry
            moved = moved + (1 + self.overshoot) * self._step(moved, logits)
            return moved, self.reached(self.logits(moved)), step + 1

        logits = self.logits(image)
        start = (image, self.reached(logits), jnp.zeros((), jnp.int32))
        moved, done, steps = jax.lax.while_loop(unfinished, go, start)
        backward = len(logits) - 1 if self.example.target is None else 1
        return jnp.where(done, moved - image, jnp.zeros_like(image)), 1 + steps * (1 + backward)

    def _step(self, image: Image, logits: Any) -> Image:
        """Onto the nearest boundary of the linearised logits, or onto that of the target."""
        batch = jax.tree.map(lambda leaf: leaf[None], self.example.replace(key=None))
        problem = NormProblem(self.predict, batch, self.norm)
        classes = problem.likely(logits[None], len(logits))
        gaps, slopes, _ = problem.boundaries(image[None], self.key[None], classes)
        return over_nearest(gaps[0], slopes[0], self.norm)


def deepfool_uap(
    radius: Scalar,
    num_passes: int = 10,
    norm: str = "linf",
    success_share: Scalar = 0.8,
    inner_steps: int = 50,
    overshoot: Scalar = 0.02,
) -> Accumulated:
    """The universal perturbation of Moosavi-Dezfooli et al. (2017, algorithm 1): DeepFool's vectors, added up.

    Each pass goes through the images of the call one by one in a random order; an image that the perturbation does not
    fool yet adds the smallest change that fools it (DeepFool, Moosavi-Dezfooli et al. 2016), and the sum is projected.
    With a target it accumulates targeted vectors. It is sequential, costs one backward pass for each other class and
    inner step (with a target one), and is here as a reference: `uap` is faster and stronger.

    The paper compares with the clean prediction; this compares with the label, so pass the predictions as labels for
    the paper's rule. One step is one pass; passes after `success_share` was reached change nothing. The result is the
    perturbation of the best pass.

    Args:
        radius: of the ball, on the [0, 1] scale.
        num_passes: at most so many; 10 is our choice.
        norm: "linf" or "l2".
        success_share: 1 - delta, the share of fooled images at which it stops; 0.8 is the paper's.
        inner_steps: of DeepFool, 50 in the authors' code.
        overshoot: of DeepFool's steps, the authors' 0.02.

    Raises:
        ValueError: a number out of range, another norm.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import deepfool_uap
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> result = deepfool_uap(radius=0.03)(jax.random.key(0), model, images, labels)
        >>> print(result.success, result.variables.shape)
        [ True  True] (4, 4, 1)
    """
    require_choice("norm", norm, ("linf", "l2"))
    num_passes, inner_steps = require_count("num_passes", num_passes), require_count("inner_steps", inner_steps)
    return Accumulated(
        universal(noise_ball(norm, radius)),
        require_number("success_share", success_share, "in [0, 1]", lambda share: 0 <= share <= 1),
        require_number("overshoot", overshoot, "0 or larger", lambda o: o >= 0),
        num_passes,
        inner_steps,
        norm,
    )
