"""The semantic-preserving adversarial attack: attributes and bounded noise, direct or generated, moved together."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax

from spa_jax import spaces
from spa_jax.attacks import (
    IterativeAttack,
    Keep,
    as_result,
    default_step,
    loss_from_spec,
    noise_space,
    start_at_random,
)
from spa_jax.engine import PureAttack, make_problem, merge
from spa_jax.inputs import require_choice, require_count
from spa_jax.solvers import Best, better, fold_in, projected_gradient, solve, steepest, take_turns
from spa_jax.solvers import apgd as apgd_solver
from spa_jax.solvers import grid as grid_solver
from spa_jax.solvers import random_search as random_solver
from spa_jax.spaces import Lifted, per_example
from spa_jax.trees import as_pytree, pytree, static
from spa_jax.types import Evaluation, Example, Keys, Predict, Problem, Result, Scalar, Solver, Space, Variables

Search = Literal["joint", "alternating", "random", "grid"]
StartSearch = Literal["none", "random", "grid"]
StepSchedule = Literal["constant", "linear"]

_AFTER_A_SEARCH = 0.1


class SpaResult(NamedTuple):
    """A `Result`, and with it the attribute-only optimum.

    Attributes:
        x, variables, value, success: as in `Result`; `variables` holds each attribute's value and the `noise`.
        edited: the strongest image by attributes alone: A(x, a*) of the joint optimum or, for the searches that treat
            the attribute first, the optimum of that search.
    """

    x: Any
    variables: Variables
    value: Any
    success: Any
    edited: Result


@pytree
class Spa(PureAttack):
    """The semantic-preserving adversarial attack; see `spa`."""

    space: Lifted
    loss: Any
    solver: Any
    num_steps: int = static()
    mode: str = static()
    candidates: int = static()
    start_candidates: int = static()
    keep: str = static()
    unroll: int | None = static()
    is_targeted: bool = static(default=False)

    def search(self, keys: Keys, predict: Predict, x: Any, y: Any) -> SpaResult:
        problem = make_problem(self, predict, x, y, keys)
        clean = problem.space.identity(problem.examples)
        best = Best(clean, problem.value(clean, fold_in(keys, self.num_steps + 1))) if self.keep == "best" else None
        start = start_at_random(problem, keys)
        if self.start_candidates > 1:
            drawn = self._best_draw(problem, start, keys)
            start, best = drawn.variables, best if best is None else better(problem, best, drawn)
        edited = None
        if self.mode in ("random", "grid"):
            edited = self._search_attributes(predict, x, y, keys)
            start = start | edited.variables
            start = problem.space.project(start, problem.examples)
        found = solve(problem, self.solver, start, keys, best, self.unroll)
        return self._with_candidates(problem, found, edited, keys)

    def _best_draw(self, problem: Problem, start: Variables, keys: Keys) -> Best:
        """The strongest of `start_candidates` random points, `start` among them, at one forward pass each."""
        weakest = Evaluation(jnp.full(len(keys), -jnp.inf), jnp.zeros(len(keys), bool))
        draws = problem._replace(num_steps=self.start_candidates - 1)
        return solve(draws, random_solver(), start, fold_in(keys, self.num_steps + 4), Best(start, weakest))

    def edit(self, variables: Variables, x: Any) -> Any:
        """The attribute-only image A(x, a) of joint variables."""
        attributes = {name: value for name, value in variables.items() if name != "noise"}
        return self.attributes().apply(attributes, Example(x))

    def attributes(self) -> Lifted:
        """The space of the attributes alone."""
        named = self.space.space.items()
        return per_example(spaces.chain(**{name: space for name, space in named if name != "noise"}))

    def _search_attributes(self, predict: Predict, x: Any, y: Any, keys: Keys) -> Result:
        space = self.attributes()
        solver: Any = random_solver()
        num_steps = self.candidates
        if self.mode == "grid":
            solver = grid_solver(self.candidates)
            num_steps = solver.num_steps(space.space)
        attack = IterativeAttack(
            space, self.loss, solver, num_steps, "best", self.mode == "random", 1, self.is_targeted
        )
        return attack.search(keys, predict, x, y)

    def _with_candidates(self, problem: Problem, found: Best, edited: Result | None, keys: Keys) -> SpaResult:
        """Add the attribute-only and, for `keep="best"`, the noise-only candidate to what was found."""
        joint = as_result(problem, found)
        clean = problem.space.identity(problem.examples)
        alone = found.variables | {"noise": clean["noise"]}
        if edited is None:
            edited = self._judged(problem, alone, keys)
        else:
            edited = edited._replace(variables=edited.variables | {"noise": clean["noise"]})
        if self.keep == "last":
            return SpaResult(*joint, edited)
        noise_only = problem.space.project(clean | {"noise": found.variables["noise"]}, problem.examples)
        best = functools.reduce(merge, (joint, edited, self._judged(problem, noise_only, keys)))
        return SpaResult(*best, edited)

    def _judged(self, problem: Problem, variables: Variables, keys: Keys) -> Result:
        return as_result(problem, Best(variables, problem.value(variables, fold_in(keys, self.num_steps + 2))))


def spa(
    radius: Scalar,
    attributes: Any = ("rotation",),
    num_steps: int = 10,
    step_size: Scalar | None = None,
    attribute_step_size: Scalar | None = None,
    step_schedule: StepSchedule = "constant",
    norm: str = "linf",
    noise: Callable[[Any], Space] | None = None,
    search: Search = "joint",
    start_search: StartSearch = "none",
    candidates: int = 9,
    start_candidates: int = 1,
    loss: Any = "cross_entropy",
    solver: str | Solver = "projected_gradient",
    keep: Keep = "best",
    unroll: int | None = None,
) -> Spa:
    """The semantic-preserving adversarial attack: attributes and bounded noise together.

    The image becomes clip(A(x, a) + d) with every attribute value `a` in its box and |d| <= radius around the *edited*
    image. In the direct form `d` is searched pixel by pixel; in the generated form a trained generator makes it,
    d = G(A(x, a), z), and its diversity variable `z` is searched. One backward pass moves
    all of them (SPA, IJCNN 2023; the abstract fixes the joint optimisation, all numbers here are our choice). With
    `keep="best"` the result is never weaker than the clean image, the attribute-only image and the noise-only image
    that the attack evaluated, nor than any point on its way.

    Args:
        radius: of the noise, on the [0, 1] scale.
        attributes: names of edits in the order of application; or a mapping or sequence of `{"name": "rotation",
            "low": -20, "high": 20}`; or a mapping of names to `spa_jax.attribute` spaces, of a learned manipulator too.
        num_steps: gradient steps, k forward and backward passes.
        step_size: of the noise, in radii. Default: 2.5 / num_steps; of the linear schedule's first step, twice that
            and at least 0.5 (our choice, the strongest of those tried with 17 steps).
        attribute_step_size: of the attributes, in half ranges. Default: as `step_size`; a tenth of it after a
            `start_search`, whose values long steps would leave again (our choice, the strongest of those tried).
        step_schedule: "constant", or "linear": steps shrink towards 0, so that the noise comes to rest on the
            attribute value it was made for. In any search by the projected gradient; other solvers have lengths of
            their own and refuse this, `step_size` and `attribute_step_size`.
        norm: of direct noise, "linf", "l2" or "l1".
        noise: how the space of noise is made from its radius, for noise that is generated:
            `functools.partial(spa_jax.generated_noise, model, variables)`. Default: direct noise of that norm.
        search: "joint"; "alternating" moves attributes and noise in turns; "random" and "grid" first pick attribute
            values by forward passes alone, then climb the noise there.
        start_search: "random" or "grid": joint and alternating steps start at attribute values that are picked so, by
            forward passes alone, and move on from there (the other two searches refuse it).
        candidates: random draws, or grid points an attribute, for those of either kind.
        start_candidates: random points, of attributes and noise, out of which the gradient steps start at the
            strongest, at one forward pass each: the loss over an angle has several maxima. 1 is a plain random start.
        loss: as for `pgd`.
        solver: "projected_gradient", "apgd" or "random_search" (a fresh draw of all variables each step, no gradient),
            or a solver object.
        keep: "best" or "last".
        unroll: as for `make_attack`.

    Raises:
        ValueError: a broken rule, naming the value.
    """
    require_count("num_steps", num_steps)
    require_count("candidates", candidates)
    require_count("start_candidates", start_candidates)
    require_choice("search", search, ("joint", "alternating", "random", "grid"))
    require_choice("start_search", start_search, ("none", "random", "grid"))
    require_choice("step_schedule", step_schedule, ("constant", "linear"))
    require_choice("keep", keep, ("best", "last"))
    members = _attribute_spaces(attributes)
    noise = functools.partial(noise_space, norm) if noise is None else noise
    space = per_example(spaces.chain(**members, noise=noise(radius)))
    shrinks = step_schedule == "linear"
    first = min(1.0, max(0.5, 2 * default_step(num_steps))) if shrinks else default_step(num_steps)
    noise_step = first if step_size is None else step_size
    default_attribute_step = noise_step if start_search == "none" else _AFTER_A_SEARCH * noise_step
    attribute_step = default_attribute_step if attribute_step_size is None else attribute_step_size
    step_sizes = dict.fromkeys(members, attribute_step)
    climb = _spa_solver(solver, search, step_sizes | {"noise": noise_step}, num_steps if shrinks else None)
    _require_read(search, start_search, solver, step_schedule, step_size, attribute_step_size)
    picks_first = search if start_search == "none" else start_search
    counts = (num_steps, picks_first, candidates, start_candidates)
    return Spa(space, as_pytree(loss_from_spec(loss)), climb, *counts, keep, unroll)


def _require_read(
    search: str, start_search: str, solver: Any, step_schedule: str, step_size: Any, attribute_step_size: Any
) -> None:
    """No option is given that this attack would not read."""
    if start_search != "none" and search not in ("joint", "alternating"):
        raise ValueError(f"start_search={start_search!r} with search={search!r}: it picks its attributes itself")
    if solver == "projected_gradient":
        return
    given = {"step_size": step_size, "attribute_step_size": attribute_step_size}
    unread = [f"{name}={value!r}" for name, value in given.items() if value is not None]
    unread += [f"{step_schedule=}"] if step_schedule != "constant" else []
    if unread:
        raise ValueError(f"{', '.join(unread)} with {solver=}: only 'projected_gradient' takes these steps")


def _attribute_spaces(attributes: Any) -> dict[str, Space]:
    if isinstance(attributes, Mapping):
        named = [_named_attribute(name, entry) for name, entry in attributes.items()]
    else:
        named = [_named_attribute(None, entry) for entry in attributes]
    if not named or any(name == "noise" for name, _ in named):
        raise ValueError(f"attributes={attributes!r} must name at least one edit, and none of them 'noise'")
    return dict(named)


def _named_attribute(name: str | None, entry: Any) -> tuple[str, Space]:
    """A named attribute space from a name, from `{"name": ..., "low": ..., "high": ...}`, or as it is."""
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, Mapping):
        if name is None:
            raise ValueError(f"attributes hold {entry!r} without a name: pass a mapping of names to spaces")
        return name, entry
    options = {"name": name} | dict(entry)
    edit = options.pop("name")
    unknown = set(options) - {"low", "high"}
    if unknown or not isinstance(edit, str):
        raise ValueError(f"attributes hold {dict(entry)!r}: the valid keys are name, low, high")
    return edit, spaces.attribute(edit, options.get("low"), options.get("high"))


@functools.lru_cache
def _rule(search: str, names: tuple[str, ...], shrink_over: int | None) -> optax.GradientTransformation:
    """What a search moves, and how the length of its steps shrinks; cached, for equal rules share a compilation."""
    rules = []
    if search == "alternating":
        rules.append(take_turns(names, ("noise",)))
    elif search != "joint":
        rules.append(_hold_still(names))
    if shrink_over is not None:
        rules.append(optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, shrink_over)))
    return optax.chain(*rules, steepest)


def _hold_still(names: tuple[str, ...]) -> optax.GradientTransformation:
    def labels(variables: Mapping[str, Any]) -> dict[str, str]:
        return {name: "still" if name in names else "move" for name in variables}

    return optax.partition({"still": optax.set_to_zero(), "move": optax.identity()}, labels)


def _spa_solver(solver: Any, search: str, step_sizes: Mapping[str, Scalar], shrink_over: int | None) -> Solver:
    if not isinstance(solver, str):
        return solver
    whole: dict[str, Callable[[], Solver]] = {"apgd": apgd_solver, "random_search": random_solver}
    require_choice("solver", solver, ("projected_gradient", *whole))
    if solver in whole:
        if search != "joint":
            raise ValueError(f"search={search!r} with solver={solver!r}: it moves all variables jointly")
        return whole[solver]()
    attributes = tuple(name for name in step_sizes if name != "noise")
    return projected_gradient(step_sizes, _rule(search, attributes, shrink_over))
