"""Composite attacks: attributes and noise in an order that is searched too."""

from typing import Any, Literal

from spa_jax.attacks.iterative import IterativeAttack, Keep, make_attack
from spa_jax.attacks.spa import attribute_spaces
from spa_jax.solvers.component_wise import component_wise
from spa_jax.spaces.chain import chain
from spa_jax.spaces.noise import noise_ball
from spa_jax.spaces.ordered import ordered
from spa_jax.types import Count, Scalar
from spa_jax.validation import require_choice, require_count

Order = Literal["scheduled", "random", "fixed"]


def caa(
    radius: Scalar,
    attributes: Any = ("hue", "saturation", "rotation", "brightness", "contrast"),
    num_steps: Count = 10,
    order: Order = "scheduled",
    order_steps: Count | None = None,
    *,
    norm: str = "linf",
    rel_step_size: Scalar | None = None,
    loss: Any = "cross_entropy",
    keep: Keep = "best",
) -> IterativeAttack:
    """The composite adversarial attack (CAA, Hsiung et al. 2023): edits and noise one after the other, in any order.

    Each component is moved by projected gradient steps while those after it are not applied yet; then the order is
    changed, for every image on its own. See `spa_jax.solvers.component_wise` for the search and where it departs from
    the paper, `spa_jax.spaces.ordered` for the variable `order`. `spa` moves all components at once, in one order.

    It takes `order_steps * (1 + n * num_steps)` passes forward and backward for n components, noise included: 305 by
    default.

    Args:
        radius: of the noise, on the [0, 1] scale; 8/255 in the paper on CIFAR-10.
        attributes: as for `spa`, at most six. The default is the paper's, for images of 3 channels, with its ranges.
        num_steps: steps of each component in a round, 10 in the authors' code (7 in training).
        order: "scheduled", the gradient of the order is followed; "random", it is drawn for each image and round;
            "fixed", the one of the attributes, noise last.
        order_steps: rounds. Default: 5 for "scheduled", else 1, as in the authors' code.
        norm: of the noise, "linf", "l2" or "l1".
        rel_step_size: of every component, in radii. Default: 2.5 / num_steps, at most 1.
        loss, keep: as for `make_attack`.

    Raises:
        ValueError: a broken rule, naming the value.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import caa
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> attack = caa(0.015, {"brightness": (-0.01, 0.01)}, num_steps=5, order_steps=2)
        >>> result = attack(jax.random.key(0), model, images, labels)  # neither 0.015 nor 0.01 suffices alone
        >>> print(result.success, result.variables["brightness"].round(3), result.variables["order"].shape)
        [ True  True] [-0.01 -0.01] (2, 2, 2)
    """
    require_choice("order", order, ("scheduled", "random", "fixed"))
    rounds = require_count("order_steps", (5 if order == "scheduled" else 1) if order_steps is None else order_steps)
    members = attribute_spaces(attributes) | {"noise": noise_ball(norm, radius)}
    space = chain(**members) if order == "fixed" else ordered(**members)
    solver = component_wise(rel_step_size, num_steps, "random" if order == "random" else "scheduled")
    return make_attack(space, loss, solver, rounds * solver.passes(len(members)), keep=keep, without=("noise",))
