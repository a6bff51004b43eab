"""A solver that moves most where the gradients of all classes are large."""

from typing import Any

import jax
import jax.numpy as jnp

from spa_jax.solvers.base import Problem, require_solver
from spa_jax.trees import pytree, static
from spa_jax.types import Evaluation, Keys, Solver, Variables
from spa_jax.validation import require_choice


@pytree
class SharedMask:
    """See `shared_mask`."""

    solver: Any
    over: str = static()

    def init(self, problem: Problem, v: Variables) -> Any:
        return self.solver.init(problem, v)

    def step(self, problem: Problem, v: Variables, state: Any, keys: Keys) -> tuple[Variables, Any, Evaluation]:
        proposed, state, evaluation = self.solver.step(problem, v, state, keys)
        sizes = class_gradients(problem, v, keys, evaluation.logits.shape[-1])
        reduce = jnp.min if self.over == "min" else jnp.mean
        weights = problem.space.map(_weights, jax.tree.map(lambda size: reduce(size, axis=0), sizes))
        moved = jax.tree.map(lambda old, new, weight: old + weight * (new - old), v, proposed, weights)
        return problem.hold(v, moved), state, evaluation


def shared_mask(solver: Solver, over: str = "min") -> SharedMask:
    """A solver whose steps are shortened where the image matters to some classes only: the mask of SPAT.

    Each variable's step is multiplied by min(1, s / mean s), where s is the smallest, or the mean, of |d log p_k / dv|
    over the classes k, and the mean is over the variables of one image: what matters to every class moves by the full
    step. A weight on the gradient could not do that, since a sign step forgets its size. Semantics-preserving
    adversarial training is public by its abstract alone, which names pixels shared among all classes; the weights are
    our choice.

    A step costs k backward passes and a forward pass more.

    Args:
        solver: how the variables climb, by steps within the space, such as `projected_gradient`.
        over: "min" or "mean" over the classes.

    Raises:
        ValueError: not a solver, one that leaves the space on its way or takes no gradient, or another `over`.
    """
    require_solver(solver)
    if getattr(solver, "leaves_space", False) or not getattr(solver, "takes_gradient", True):
        raise ValueError(f"solver={type(solver).__name__} must take gradient steps within the space for a shared mask")
    require_choice("over", over, ("min", "mean"))
    return SharedMask(solver, over)


def class_gradients(problem: Problem, v: Variables, keys: Keys, classes: int) -> Variables:
    """|d log p_k / dv| for every class k, [k, ...] in front of the axes of each variable; entries not finite are 0."""

    def of_class(k: Any) -> Variables:
        def log_probability(v: Variables, probe: Any) -> tuple[Any, None]:
            return jnp.take(jax.nn.log_softmax(problem.logits(v, keys)), k, axis=-1), None

        _, gradient, _ = problem.space.gradient(log_probability, v, problem.examples)
        return jax.tree.map(jnp.abs, gradient)

    return jax.vmap(of_class)(jnp.arange(classes))


def _weights(sizes: Variables) -> Variables:
    """Relative to the mean size of each variable, at most 1; 1 where all are 0."""

    def relative(size: Any) -> Any:
        mean = jnp.mean(size)
        return jnp.where(mean > 0, jnp.minimum(1, size / jnp.where(mean > 0, mean, 1)), 1)

    return jax.tree.map(relative, sizes)
