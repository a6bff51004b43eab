"""Types: array shapes, and the protocols of spaces, losses, goals, solvers, victims and attacks.

Array conventions everywhere: images are NHWC floats in [0, 1], labels are class indices, logits are raw scores.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jaxtyping as jt
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from spa_jax.trees import pytree

Scalar: TypeAlias = Float[Array, ""] | float | int
"""A number: a Python number or an array without axes."""
Count: TypeAlias = int | np.integer
"""A structural number, such as a number of steps; it decides what is compiled."""
Key: TypeAlias = jt.Key[Array, ""]
"""A typed PRNG key, `jax.random.key(0)`."""
Keys: TypeAlias = jt.Key[Array, "..."]
"""One key for each example, [b]; a single one, [], where the variables are shared."""
Image: TypeAlias = Float[Array, "h w c"]
"""One image in [0, 1]."""
Images: TypeAlias = Float[Array, "b h w c"]
"""A batch of images in [0, 1]."""
Label: TypeAlias = Int[Array, ""]
"""The class of one image."""
Labels: TypeAlias = Int[Array, " b"]
"""The classes of a batch."""
Logits: TypeAlias = Float[Array, "b k"]
"""Raw scores, before a softmax."""
Values: TypeAlias = Float[Array, " b"]
"""One number for each example."""
Flags: TypeAlias = Bool[Array, " b"]
"""One truth value for each example."""
Variables: TypeAlias = Any
"""What a space moves: an array, or a mapping of names to arrays for a chain."""

Victim: TypeAlias = Callable[..., Any]
"""A complete victim: any function from images [b, h, w, c] to logits [b, k], normalisation and purifier included.

`spa_jax.randomized(f)` marks a stochastic one, `f(keys [b], images)`: one key an image, so that its randomness does not
depend on how a batch is laid out.
"""

Predict: TypeAlias = Callable[[Any, Any], Any]
"""A victim as the engine calls it, `(keys [b], images) -> logits`; see `spa_jax.victims.as_victim`."""


class SeenVictim:
    """The victim as an example carries it: not part of its arrays, and equal to itself alone."""

    def __init__(self, victim: Predict) -> None:
        self.victim = victim

    def __call__(self, keys: Any, images: Any) -> Any:
        """The logits [b, k] of images, with one key each."""
        return self.victim(keys, images)


@pytree
@dataclasses.dataclass(frozen=True)
class Example:
    """One image and what may be known about it; a batch of them has a leading axis in every array.

    Attributes:
        image: [h, w, c] in [0, 1]. Inside a chain, the image as the spaces before have left it.
        label: the true class.
        target: the class to reach; None: the attack is untargeted.
        weight: how much the example counts where examples share something; 0 for padding, None: all alike.
        reference: logits [k] that a loss compares with, or None.
        key: this example's key, given to a randomised victim.
        prepared: what the space has computed of the image once for all steps, or None.
        predict: the victim, or None outside of an attack.
    """

    image: Any
    label: Any = None
    target: Any = None
    weight: Any = None
    reference: Any = None
    key: Any = None
    prepared: Any = None
    predict: SeenVictim | None = dataclasses.field(default=None, metadata={"static": True})

    def replace(self, **changes: Any) -> "Example":
        """The same example with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def replace_image(self, image: Any) -> "Example":
        """The same example with another image and without `prepared`."""
        return dataclasses.replace(self, image=image, prepared=None)


DistanceOfImages: TypeAlias = Callable[[Any, Any], Any]
"""`(images [b, h, w, c], others [b, h, w, c]) -> distances [b]`."""

Loss: TypeAlias = Callable[[Any, Any], Any]
"""`(logits [b, k], examples) -> values [b]`; the attacker maximises it. It reads the label, or the target if any."""

Goal: TypeAlias = Callable[[Any, Any], Any]
"""`(logits [b, k], examples) -> flags [b]`: the attack has succeeded."""


@runtime_checkable
class Space(Protocol):
    """The variables of an attack on ONE image: where they start, what is allowed, which way is up, what they do.

    Implementations are classes under `spa_jax.trees.pytree` that inherit `spa_jax.spaces.SpaceBase`: numbers are
    leaves, structure is static. `project` is idempotent and its result, applied, is a valid image in the set;
    `direction` is the step of one radius that raises a linear objective fastest; `apply` at `identity` returns the
    image bit for bit.
    """

    def init(self, key: Any, example: Any) -> Variables:
        """A random point of the set."""

    def identity(self, example: Any) -> Variables:
        """The point that leaves the image as it is."""

    def project(self, v: Variables, example: Any) -> Variables:
        """The nearest allowed point; `example` is None where the variables are shared by all images."""

    def direction(self, g: Variables) -> Variables:
        """Steepest ascent for the gradient `g`, one radius long."""

    def apply(self, v: Variables, example: Any) -> Any:
        """The changed image, in [0, 1]."""

    def scaled(self, share: Any) -> Any:
        """The same kind of space, `share` of the size: every radius, and every range about its identity."""

    def members(self) -> Mapping[str, Any]:
        """The space itself, or the links of a chain, by name."""


class NonFinite(NamedTuple):
    """How much was NaN or infinite during a search, per example, int32.

    Attributes:
        gradients: entries of gradients; they count as 0.
        answers: pixels of images, and how often logits were no answer (`spa_jax.goals.is_answer`); no success.
    """

    gradients: Any
    answers: Any


class Evaluation(NamedTuple):
    """How good variables are for the attacker, per example.

    Attributes:
        value: the loss.
        success: whether the goal is reached.
        logits: [b, k].
        nonfinite: how much was NaN or infinite.
    """

    value: Values
    success: Flags
    logits: Any
    nonfinite: NonFinite


@runtime_checkable
class Solver(Protocol):
    """How the variables climb; a class under `spa_jax.trees.pytree`. `problem` is a `spa_jax.solvers.Problem`.

    A solver whose steps take no gradient says `takes_gradient = False`. One whose variables may lie outside of the
    space on the way says `leaves_space = True`, and gives these points the value -infinity and no success. One that
    never reads `problem.num_steps` may say `counts_steps = False`: attacks of different length then share their
    programs. One whose random starts are not evenly drawn from the space has `draw_start(problem, v, keys)`, which
    gives the start instead of `v`, a point of the space drawn by the same keys.
    """

    def init(self, problem: Any, v: Variables) -> Any:
        """The solver's state before the first step."""

    def step(self, problem: Any, v: Variables, state: Any, keys: Any) -> tuple[Variables, Any, Evaluation]:
        """One move: the new variables, the new state, and the evaluation of the variables that came in."""


@pytree
@dataclasses.dataclass(frozen=True)
class Result:
    """What an attack returns, per example.

    Attributes:
        x: adversarial images in [0, 1].
        variables: the variables that made them.
        value: the attack's loss there.
        success: whether the goal is reached there; untargeted: prediction != label, targeted: prediction == target.
        without: the images with some of the variables at their identity, by name: `without["noise"]` of a SPA attack
            holds the edited images A(x, a). Which ones is a setting of the attack.
        nonfinite: how much was NaN or infinite during the search; None where that was not counted. An accuracy is not
            to be believed where much was.
    """

    x: Any
    variables: Variables
    value: Any
    success: Any
    without: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    nonfinite: NonFinite | None = None


@runtime_checkable
class Attack(Protocol):
    """Pure steps on a pytree state, and the call that makes all of them; a pytree whose numbers are leaves.

    `victim` is any function from images to logits; `labels` are the true classes and `target` the classes to reach.
    """

    @property
    def shared(self) -> bool:
        """Whether all images share one set of variables."""

    def init(self, key: Any, victim: Victim, images: Any, labels: Any, target: Any = None, **extra: Any) -> Any:
        """The state before the first step."""

    def step(self, state: Any, victim: Victim, images: Any, labels: Any, target: Any = None, **extra: Any) -> Any:
        """One step."""

    def result(self, state: Any, victim: Victim, images: Any, labels: Any, target: Any = None, **extra: Any) -> Any:
        """What the state has found."""

    def __call__(self, key: Any, victim: Victim, images: Any, labels: Any, target: Any = None, **extra: Any) -> Any:
        """Attack the images: `init`, all steps, `result`."""
