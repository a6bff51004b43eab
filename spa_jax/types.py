"""The words of the library: array shapes, and what a space, a loss, a solver, a victim and an attack are.

Array conventions everywhere: images are NHWC floats in [0, 1], labels are class indices, logits are raw scores.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jaxtyping as jt
import optax
from jaxtyping import Array, Bool, Float, Int

from spa_jax.numerics import unit_per_channel

Scalar: TypeAlias = Float[Array, ""] | float | int
Key: TypeAlias = jt.Key[Array, ""]
Keys: TypeAlias = jt.Key[Array, " b"]
Image: TypeAlias = Float[Array, "h w c"]
Images: TypeAlias = Float[Array, "b h w c"]
Label: TypeAlias = Int[Array, ""]
Labels: TypeAlias = Int[Array, " b"]
Logits: TypeAlias = Float[Array, "b k"]
Values: TypeAlias = Float[Array, " b"]
Flags: TypeAlias = Bool[Array, " b"]
Variables: TypeAlias = Any

Predict: TypeAlias = Callable[[Any, Any], Any]
"""A complete victim, `(keys [b], images [b, h, w, c]) -> logits [b, k]`: normalisation, purifier and classifier in one.

It gets one key per image, so that the randomness of a stochastic victim does not depend on how a batch is laid out;
a deterministic victim ignores them. Write it as a pytree (`jax.tree_util.Partial`, `spa_jax.classifier`) to let new
weights reuse a compiled attack.
"""

Loss: TypeAlias = Callable[[Any, Any], Any]
"""`(logits [b, k], labels [b]) -> values [b]`; the attacker maximises it."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Example:
    """One image and what a space may know of the attack on it; most spaces read the image alone.

    Attributes:
        image: [h, w, c] in [0, 1]. Inside a chain, the image as the spaces before have left it.
        label: the class the attack was called with, and of a targeted attack, which is called with another, the class
            that the victim sees in the unchanged image; None outside of an attack.
        key: this example's key, given to a stochastic victim, or None.
        predict: the victim, or None outside of an attack.
        prepared: what the space has computed of the image once for all steps, or None; see `Space.prepare`.
    """

    image: Any
    label: Any = None
    key: Any = None
    predict: Predict | None = dataclasses.field(default=None, metadata={"static": True})
    prepared: Any = None

    def replace_image(self, image: Any) -> "Example":
        """The same example showing another image, of which nothing has been computed."""
        return dataclasses.replace(self, image=image, prepared=None)

    def gradient(self, image: Image, constant: bool = True) -> Image:
        """The victim's cross-entropy gradient at `image`, of unit L2 norm per channel (zero where it vanishes).

        This is the input of a learned noise generator (L2L-DA's normalisation).

        Args:
            image: where to take it.
            constant: whether it is a constant to autodiff; False lets second derivatives of the victim through.

        Raises:
            ValueError: the example does not belong to an attack, so it knows neither victim nor label.
        """
        if self.predict is None or self.label is None:
            raise ValueError(
                "Example.predict=None: a space that reads the victim's gradient works only inside an attack"
            )
        predict, label, key = self.predict, self.label, self.key

        def cross_entropy(image: Image) -> Float[Array, ""]:
            logits = predict(None if key is None else key[None], image[None])
            return optax.softmax_cross_entropy_with_integer_labels(logits[0], label)

        gradient = unit_per_channel(jax.grad(cross_entropy)(image))
        return jax.lax.stop_gradient(gradient) if constant else gradient


@runtime_checkable
class Space(Protocol):
    """The variables of an attack on ONE image: where they start, what is allowed, which way is up, what they do.

    Implementations are frozen pytree dataclasses: numbers are leaves, structure is static. `project` is idempotent and
    its result, applied, is a valid image in the set; `direction` is the step of one radius that raises a linear
    objective fastest; `apply` at `identity` returns the image bit for bit.

    A space may also have `prepare(example) -> example`, called once before an attack's steps: it puts what does not
    depend on the variables into `Example.prepared`.
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


class Evaluation(NamedTuple):
    """How good variables are for the attacker: the loss and whether the goal is reached, per example."""

    value: Values
    success: Flags


class Problem(NamedTuple):
    """What a solver sees: a lifted space, the examples it acts on, the objective, and the number of steps there are."""

    space: Any
    examples: Any
    value: Callable[[Variables, Any], Evaluation]
    num_steps: int


@runtime_checkable
class Solver(Protocol):
    """How the variables climb; a frozen pytree dataclass."""

    def init(self, problem: Problem, v: Variables) -> Any:
        """The solver's state before the first step."""

    def step(self, problem: Problem, v: Variables, state: Any, keys: Any) -> tuple[Variables, Any, Evaluation]:
        """One move: the new variables, the new state, and the evaluation of the variables that came in."""


class Result(NamedTuple):
    """What an attack returns, per example.

    Attributes:
        x: adversarial images in [0, 1].
        variables: the variables that made them.
        value: the attack's loss there.
        success: whether the victim was fooled (untargeted: prediction != label; targeted: prediction == target).
    """

    x: Any
    variables: Variables
    value: Any
    success: Any


@runtime_checkable
class Attack(Protocol):
    """A pure function from a key, a victim, images and labels to a `Result`; a pytree whose numbers are leaves."""

    def __call__(self, key: Any, predict: Predict, x: Any, y: Any) -> Any:
        """Attack the images."""
