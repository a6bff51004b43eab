"""Attacks: space x loss x solver, and the presets by noise or by one attribute.

Every attack is a pure function `attack(key, predict, x, y) -> Result` and a frozen pytree: its numbers (radius, ranges,
step sizes) are leaves, so one compiled program serves them all; its structure (steps, names, order) is static.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from spa_jax import losses, spaces
from spa_jax.carlini_wagner import CarliniWagner
from spa_jax.engine import PureAttack, make_problem
from spa_jax.inputs import require_choice, require_count, require_number
from spa_jax.solvers import Best, fold_in, projected_gradient, solve
from spa_jax.solvers import apgd as apgd_solver
from spa_jax.solvers import grid as grid_solver
from spa_jax.solvers import random_search as random_solver
from spa_jax.spaces import Lifted, per_example
from spa_jax.trees import as_pytree, pytree, static
from spa_jax.types import Keys, Loss, Predict, Problem, Result, Scalar, Solver, Space, Variables

Keep = Literal["best", "last"]


# --- the general attack ---------------------------------------------------------------------------------------------


@pytree
class IterativeAttack(PureAttack):
    """A solver climbing a loss over a space; see `make_attack`."""

    space: Lifted
    loss: Any
    solver: Any
    num_steps: int = static()
    keep: str = static()
    random_start: bool = static()
    unroll: int | None = static()
    is_targeted: bool = static(default=False)

    def search(self, keys: Keys, predict: Predict, x: Any, y: Any) -> Result:
        problem = make_problem(self, predict, x, y, keys)
        start, best = self._candidates(problem, keys)
        found = solve(problem, self.solver, start, keys, best, self.unroll)
        return as_result(problem, found)

    def _candidates(self, problem: Problem, keys: Keys) -> tuple[Variables, Best | None]:
        """Where to start, and the clean image as the first candidate for the best."""
        clean = problem.space.identity(problem.examples)
        start = start_at_random(problem, keys) if self.random_start else clean
        if self.keep == "last":
            return start, None
        return start, Best(clean, problem.value(clean, fold_in(keys, self.num_steps + 1)))


def start_at_random(problem: Problem, keys: Keys) -> Variables:
    """A start from keys that the victim never sees: a key's splits are its folds, which judge the steps."""
    return problem.space.init(fold_in(keys, problem.num_steps + 3), problem.examples)


def as_result(problem: Problem, found: Best) -> Result:
    """What a solver found, with its images."""
    return Result(problem.space.apply(found.variables, problem.examples), found.variables, *found.evaluation)


def make_attack(
    space: Space,
    loss: Any = losses.cross_entropy,
    solver: Solver | None = None,
    num_steps: int = 10,
    *,
    lift: Callable[[Space], Lifted] = per_example,
    keep: Keep = "best",
    random_start: bool = True,
    unroll: int | None = None,
) -> IterativeAttack:
    """An attack from its parts.

    Guarantees: the images are in [0, 1] and the variables in the space; with `keep="best"` no result is weaker than
    the clean image or any point the solver visited (fooled counts before loss); the same key gives the same result, and
    each example's result does not depend on the others in the batch.

    Args:
        space: what may change about one image.
        loss: what the attacker maximises: a loss, its name, or `{"name": ..., options}`.
        solver: how the variables climb. Default: plain projected gradient with steps of 2.5 / num_steps radii.
        num_steps: gradient steps, at least 1.
        lift: `per_example`, or `universal` for one set of variables for all images.
        keep: "best", or "last" as in adversarial training (which saves two forward passes).
        random_start: start at a random point of the space instead of at the clean image.
        unroll: steps per compiled loop iteration. None: all of them on CPU up to 20 steps, as stock convolutions are
            slow in a loop there; 1 for networks of `spa_jax.models`, which are not.

    Raises:
        ValueError: a broken rule, naming the value.
    """
    require_count("num_steps", num_steps)
    require_choice("keep", keep, ("best", "last"))
    solver = projected_gradient(default_step(num_steps)) if solver is None else solver
    return IterativeAttack(lift(space), as_pytree(loss_from_spec(loss)), solver, num_steps, keep, random_start, unroll)


def default_step(num_steps: int) -> float:
    """2.5 radii in all, so that every point of the set can be reached from any other (Madry et al.'s heuristic)."""
    return min(1.0, 2.5 / num_steps)


def loss_from_spec(loss: Any) -> Loss:
    """A loss from its name, from `{"name": ..., options}`, or as it is."""
    if isinstance(loss, str):
        loss = {"name": loss}
    if not isinstance(loss, Mapping):
        if not callable(loss):
            raise ValueError(f"loss={loss!r} must be callable or one of {', '.join(losses.LOSSES)}")
        return loss
    options = dict(loss)
    name = options.pop("name", None)
    require_choice("loss", name, tuple(losses.LOSSES))
    try:
        return losses.LOSSES[name](**options)
    except TypeError as error:
        raise ValueError(f"loss={dict(loss)!r}: {error}") from error


# --- presets on noise -----------------------------------------------------------------------------------------------

_NORMS: Mapping[str, Callable[[Any], Space]] = {"linf": spaces.linf, "l2": spaces.l2, "l1": spaces.l1}


def noise_space(norm: str, radius: Scalar) -> Space:
    """The ball of noise of a norm by name."""
    require_choice("norm", norm, tuple(_NORMS))
    return _NORMS[norm](radius)


def fgsm(radius: Scalar, norm: str = "linf", loss: Any = "cross_entropy") -> IterativeAttack:
    """One full step along the gradient from the clean image (Goodfellow et al. 2015, section 4)."""
    return make_attack(noise_space(norm, radius), loss, projected_gradient(1.0), 1, random_start=False)


def pgd(
    radius: Scalar,
    num_steps: int = 10,
    step_size: Scalar | None = None,
    norm: str = "linf",
    loss: Any = "cross_entropy",
    random_start: bool = True,
    keep: Keep = "best",
    unroll: int | None = None,
) -> IterativeAttack:
    """Projected gradient descent (Madry et al. 2018, section 2.1).

    Args:
        radius: of the ball, on the [0, 1] scale.
        num_steps: gradient steps.
        step_size: in radii. Default: 2.5 / num_steps, the heuristic of Madry et al.
        norm: "linf", "l2" or "l1".
        random_start, keep, loss, unroll: as for `make_attack`.
    """
    require_count("num_steps", num_steps)
    solver = projected_gradient(default_step(num_steps) if step_size is None else step_size)
    space = noise_space(norm, radius)
    return make_attack(space, loss, solver, num_steps, keep=keep, random_start=random_start, unroll=unroll)


@functools.lru_cache
def _accumulate(decay: float) -> optax.GradientTransformation:
    def per_l1_norm(gradient: Any) -> Any:
        return jax.tree.map(lambda g: g / (jnp.sum(jnp.abs(g)) + 1e-12), gradient)

    return optax.chain(optax.stateless(lambda updates, params: per_l1_norm(updates)), optax.trace(decay))


def mi_fgsm(
    radius: Scalar,
    num_steps: int = 10,
    decay: float = 1.0,
    step_size: Scalar | None = None,
    loss: Any = "cross_entropy",
    keep: Keep = "best",
) -> IterativeAttack:
    """Momentum iterative FGSM (Dong et al. 2018, algorithm 1): accumulates gradients of unit L1 norm, steps by sign.

    Args:
        radius: of the l-infinity ball.
        num_steps: gradient steps; the paper uses 10.
        decay: of the accumulated gradient; 1.0 is the paper's.
        step_size: in radii. Default: 1 / num_steps, the paper's.
        loss, keep: as for `pgd`.
    """
    require_count("num_steps", num_steps)
    solver = projected_gradient(1 / num_steps if step_size is None else step_size, gradient_rule=_accumulate(decay))
    return make_attack(spaces.linf(radius), loss, solver, num_steps, keep=keep, random_start=False)


def apgd_ce(radius: Scalar, num_steps: int = 100, norm: str = "linf", unroll: int | None = None) -> IterativeAttack:
    """Auto-PGD on cross entropy (Croce & Hein 2020, algorithm 1); 100 steps as in AutoAttack."""
    return _apgd(radius, num_steps, norm, losses.cross_entropy, unroll)


def apgd_dlr(radius: Scalar, num_steps: int = 100, norm: str = "linf", unroll: int | None = None) -> IterativeAttack:
    """Auto-PGD on the DLR loss (Croce & Hein 2020, eq. 6); needs at least 3 classes."""
    return _apgd(radius, num_steps, norm, losses.dlr, unroll)


def _apgd(radius: Scalar, num_steps: int, norm: str, loss: Loss, unroll: int | None) -> IterativeAttack:
    return make_attack(noise_space(norm, radius), loss, apgd_solver(), num_steps, unroll=unroll)


def cw(
    radius: Scalar = math.inf,
    num_steps: int = 1000,
    search_steps: int = 9,
    initial_const: Scalar = 1e-3,
    learning_rate: Scalar = 0.01,
    confidence: Scalar = 0.0,
) -> CarliniWagner:
    """The L2 attack of Carlini & Wagner (2017, section VI.A): the smallest noise that fools, by a search of a constant.

    Args:
        radius: a success farther away than this in L2 is none. Default: any distance counts.
        num_steps: Adam steps for each constant.
        search_steps: binary search steps of the constant, per example.
        initial_const: first constant.
        learning_rate: of Adam, on the tanh variable.
        confidence: margin by which the victim must err, the paper's kappa.

    The defaults are those of the authors' code (with 1000 of its 10000 iterations, as in common re-implementations).

    Raises:
        ValueError: a number out of range.
    """
    require_count("num_steps", num_steps)
    require_count("search_steps", search_steps)
    return CarliniWagner(
        require_number("radius", radius, "0 or larger", lambda r: r >= 0),
        require_number("initial_const", initial_const, "larger than 0", lambda c: c > 0),
        require_number("learning_rate", learning_rate, "larger than 0", lambda r: r > 0),
        require_number("confidence", confidence, "0 or larger", lambda k: k >= 0),
        num_steps,
        search_steps,
    )


# --- presets on attributes ------------------------------------------------------------------------------------------


def noise_attack(
    radius: Scalar,
    noise: Callable[[Any], Space],
    method: str = "random",
    num_steps: int = 10,
    step_size: Scalar | None = None,
    loss: Any = "cross_entropy",
    keep: Keep = "best",
) -> IterativeAttack:
    """An attack by generated noise alone.

    Args:
        radius: of the noise, on the [0, 1] scale.
        noise: how the space of noise is made from its radius, as for `spa`.
        method: "random" (a fresh diversity variable each step, L2L-DA's own attack), or "gradient".
        num_steps: random draws (10 in L2L-DA's code), or gradient steps.
        step_size: in radii of the diversity variable, for "gradient". Default: 2.5 / num_steps.
        loss, keep: as for `pgd`.
    """
    require_count("num_steps", num_steps)
    require_choice("method", method, ("gradient", "random"))
    step = default_step(num_steps) if step_size is None else step_size
    solver: Solver = random_solver() if method == "random" else projected_gradient(step)
    return make_attack(noise(radius), loss, solver, num_steps, keep=keep)


def attribute_attack(
    edit: Any,
    low: Any = None,
    high: Any = None,
    method: str = "gradient",
    num_steps: int = 10,
    step_size: Scalar | None = None,
    loss: Any = "cross_entropy",
    keep: Keep = "best",
) -> IterativeAttack:
    """An attack by one attribute alone.

    Args:
        edit: a name of `spa_jax.EDITS`, or a function `(image, value) -> image` (then with `low` and `high`).
        low, high: range of the value. Default: the edit's documented range.
        method: "gradient" (sign steps from a random value), "random", or "grid" (evenly spaced, bounds included).
        num_steps: gradient steps, random draws, or grid points.
        step_size: in half ranges, for "gradient". Default: 2.5 / num_steps.
        loss, keep: as for `pgd`.
    """
    require_count("num_steps", num_steps)
    require_choice("method", method, ("gradient", "random", "grid"))
    step = default_step(num_steps) if step_size is None else step_size
    solvers: dict[str, Solver] = {
        "gradient": projected_gradient(step),
        "random": random_solver(),
        "grid": grid_solver(num_steps),
    }
    space = spaces.attribute(edit, low, high)
    return make_attack(space, loss, solvers[method], num_steps, keep=keep, random_start=method != "grid")
