"""Attacks: space x loss x solver, the combinators over attacks, and the presets by name.

Every attack is a pure function `attack(key, predict, x, y) -> Result` and a frozen pytree: its numbers (radius, ranges,
step sizes) are leaves, so one compiled program serves them all; its structure (steps, names, order) is static.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from spa_jax import losses, spaces
from spa_jax.attributes import EDITS
from spa_jax.carlini_wagner import CarliniWagner
from spa_jax.engine import PureAttack, judge, make_problem, merge
from spa_jax.inputs import require_count, require_number
from spa_jax.losses import margin, targeted_form
from spa_jax.solvers import Best, fold_in, projected_gradient, solve, steepest, take_turns
from spa_jax.solvers import apgd as apgd_solver
from spa_jax.solvers import grid as grid_solver
from spa_jax.solvers import random_search as random_solver
from spa_jax.spaces import Lifted, per_example
from spa_jax.trees import as_pytree, pytree, static
from spa_jax.types import Example, Keys, Loss, Predict, Problem, Result, Scalar, Solver, Space, Variables

Keep = Literal["best", "last"]
Search = Literal["joint", "alternating", "random", "grid"]
AttackT = TypeVar("AttackT", bound=PureAttack)


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
        return _as_result(problem, found)

    def _candidates(self, problem: Problem, keys: Keys) -> tuple[Variables, Best | None]:
        """Where to start, and the clean image as the first candidate for the best."""
        clean = problem.space.identity(problem.examples)
        start = _random_start(problem, keys) if self.random_start else clean
        if self.keep == "last":
            return start, None
        return start, Best(clean, problem.value(clean, fold_in(keys, self.num_steps + 1)))


def _random_start(problem: Problem, keys: Keys) -> Variables:
    """A start from keys that the victim never sees: a key's splits are its folds, which judge the steps."""
    return problem.space.init(fold_in(keys, problem.num_steps + 3), problem.examples)


def _as_result(problem: Problem, found: Best) -> Result:
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
    _check_choice("keep", keep, ("best", "last"))
    solver = projected_gradient(_default_step(num_steps)) if solver is None else solver
    return IterativeAttack(lift(space), as_pytree(_loss(loss)), solver, num_steps, keep, random_start, unroll)


def _default_step(num_steps: int) -> float:
    """2.5 radii in all, so that every point of the set can be reached from any other (Madry et al.'s heuristic)."""
    return min(1.0, 2.5 / num_steps)


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(choices)}")


# --- combinators ----------------------------------------------------------------------------------------------------


@pytree
class Restarts(PureAttack):
    """An attack repeated; see `restarts`."""

    attack: Any
    n: int = static()
    at_once: int = static()

    @property
    def is_targeted(self) -> bool:
        return self.attack.is_targeted

    def search(self, keys: Keys, predict: Predict, x: Any, y: Any) -> Any:
        def run(i: Any) -> Any:
            return self.attack.search(fold_in(keys, i), predict, x, y)

        results = jax.lax.map(run, jnp.arange(self.n), batch_size=self.at_once if self.at_once > 1 else None)
        return functools.reduce(merge, [jax.tree.map(lambda leaf, i=i: leaf[i], results) for i in range(self.n)])


def restarts(attack: PureAttack, n: int, at_once: int = 1) -> PureAttack:
    """The strongest of `n` runs from different starts, per example.

    Args:
        attack: with per-example variables.
        n: number of runs.
        at_once: how many runs are held in memory together (vmapped); the others follow one after the other.

    Raises:
        ValueError: `n` or `at_once` below 1, or an attack with shared variables.
    """
    require_count("n", n)
    require_count("at_once", at_once)
    _inside(attack, _refuse_shared)
    return attack if n == 1 else Restarts(attack, n, min(at_once, n))


def _refuse_shared(attack: AttackT) -> AttackT:
    if getattr(getattr(attack, "space", None), "shared", False):
        raise ValueError("restarts picks per example: it needs attacks with per-example variables, not universal ones")
    return attack


@pytree
class WorstOf(PureAttack):
    """Several attacks, the strongest per example; see `worst_of`."""

    attacks: tuple[Any, ...]

    @property
    def is_targeted(self) -> bool:
        return self.attacks[0].is_targeted

    def search(self, keys: Keys, predict: Predict, x: Any, y: Any) -> Result:
        loss = targeted_form(margin) if self.is_targeted else margin
        judge_keys = fold_in(keys, len(self.attacks))
        results = [attack.search(fold_in(keys, i), predict, x, y) for i, attack in enumerate(self.attacks)]
        candidates = []
        for i, result in enumerate(results):
            evaluation = judge(loss, predict(judge_keys, result.x), y, self.is_targeted)
            candidates.append(Result(result.x, jnp.full(y.shape, i, jnp.int32), *evaluation))
        winner = functools.reduce(merge, candidates)
        found = tuple(result.variables for result in results)
        return winner._replace(variables={"winner": winner.variables, "found": found})


def worst_of(*attacks: Any) -> WorstOf:
    """Per example the strongest of several attacks: fooled first, then the larger margin, judged anew for all alike.

    The result's `value` is the margin, its `variables` are `{"winner": index [b], "found": each attack's variables}`.

    Raises:
        ValueError: no attack was given, or targeted and untargeted ones together.
    """
    if not attacks:
        raise ValueError("worst_of() needs at least one attack")
    if len({attack.is_targeted for attack in attacks}) > 1:
        raise ValueError(f"is_targeted={[attack.is_targeted for attack in attacks]} must be the same for all attacks")
    return WorstOf(tuple(attacks))


def with_fields(attack: AttackT, **changes: Any) -> AttackT:
    """The attack with fields replaced, in every attack that a combinator holds.

    Raises:
        ValueError: an attack in it has no such field.
    """

    def change(attack: AttackT) -> AttackT:
        own = {field.name for field in dataclasses.fields(attack)}
        for name, value in changes.items():
            if name not in own:
                raise ValueError(f"{name}={value!r}: {type(attack).__name__} has the fields {', '.join(sorted(own))}")
        return dataclasses.replace(attack, **changes)

    return _inside(attack, change)


def _inside(attack: AttackT, change: Callable[[Any], Any]) -> AttackT:
    """The attack with `change` made to it, or to every attack that it combines."""
    if isinstance(attack, Restarts):
        return dataclasses.replace(attack, attack=_inside(attack.attack, change))
    if isinstance(attack, WorstOf):
        return dataclasses.replace(attack, attacks=tuple(_inside(member, change) for member in attack.attacks))
    return change(attack)


def shrunk(attack: AttackT, share: Any) -> AttackT:
    """The attack in a smaller space: `share` of every radius and of every range about its identity.

    Raises:
        ValueError: the attack has no space whose size is known.
    """

    def change(attack: Any) -> Any:
        if not hasattr(attack, "space"):
            raise ValueError(f"attack={type(attack).__name__} has no space to shrink")
        smaller = spaces.shrink(attack.space.space, share)
        return dataclasses.replace(attack, space=dataclasses.replace(attack.space, space=smaller))

    return _inside(attack, change)


def targeted(attack: AttackT, loss: Loss | None = None) -> AttackT:
    """The attack that wants one answer: call the result with target classes in place of the labels.

    Success means prediction == target. The loss becomes its targeted form.

    Args:
        attack: any untargeted attack of this library.
        loss: a targeted loss to use instead.

    Raises:
        ValueError: the attack's loss has no targeted form, or the attack is targeted already.
    """

    def aim(attack: Any) -> Any:
        if attack.is_targeted:
            raise ValueError(f"attack={type(attack).__name__} is targeted already")
        if not hasattr(attack, "loss"):
            return dataclasses.replace(attack, is_targeted=True)
        chosen = targeted_form(attack.loss) if loss is None else loss
        return dataclasses.replace(attack, loss=as_pytree(chosen), is_targeted=True)

    return _inside(attack, aim)


# --- presets on noise -----------------------------------------------------------------------------------------------

_NORMS: Mapping[str, Callable[[Any], Space]] = {"linf": spaces.linf, "l2": spaces.l2, "l1": spaces.l1}


def _noise_space(norm: str, radius: Scalar) -> Space:
    _check_choice("norm", norm, tuple(_NORMS))
    return _NORMS[norm](radius)


def _loss(loss: Any) -> Loss:
    """A loss from its name, from `{"name": ..., options}`, or as it is."""
    if isinstance(loss, str):
        loss = {"name": loss}
    if not isinstance(loss, Mapping):
        if not callable(loss):
            raise ValueError(f"loss={loss!r} must be callable or one of {', '.join(losses.LOSSES)}")
        return loss
    options = dict(loss)
    name = options.pop("name", None)
    _check_choice("loss", name, tuple(losses.LOSSES))
    try:
        return losses.LOSSES[name](**options)
    except TypeError as error:
        raise ValueError(f"loss={dict(loss)!r}: {error}") from error


def fgsm(radius: Scalar, norm: str = "linf", loss: Any = "cross_entropy") -> IterativeAttack:
    """One full step along the gradient from the clean image (Goodfellow et al. 2015, section 4)."""
    return make_attack(_noise_space(norm, radius), loss, projected_gradient(1.0), 1, random_start=False)


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
    solver = projected_gradient(_default_step(num_steps) if step_size is None else step_size)
    space = _noise_space(norm, radius)
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
    return make_attack(_noise_space(norm, radius), loss, apgd_solver(), num_steps, unroll=unroll)


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


def attribute_attack(
    edit: Any,
    low: Scalar | None = None,
    high: Scalar | None = None,
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
    _check_choice("method", method, ("gradient", "random", "grid"))
    step = _default_step(num_steps) if step_size is None else step_size
    solvers: dict[str, Solver] = {
        "gradient": projected_gradient(step),
        "random": random_solver(),
        "grid": grid_solver(num_steps),
    }
    space = spaces.attribute(edit, low, high)
    return make_attack(space, loss, solvers[method], num_steps, keep=keep, random_start=method != "grid")


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
    """The semantic-preserving adversarial attack in its direct form; see `spa`."""

    space: Lifted
    loss: Any
    solver: Any
    num_steps: int = static()
    mode: str = static()
    candidates: int = static()
    keep: str = static()
    unroll: int | None = static()
    is_targeted: bool = static(default=False)

    def search(self, keys: Keys, predict: Predict, x: Any, y: Any) -> SpaResult:
        problem = make_problem(self, predict, x, y, keys)
        clean = problem.space.identity(problem.examples)
        best = Best(clean, problem.value(clean, fold_in(keys, self.num_steps + 1))) if self.keep == "best" else None
        start = _random_start(problem, keys)
        edited = None
        if self.mode in ("random", "grid"):
            edited = self._search_attributes(predict, x, y, keys)
            start = start | edited.variables
            start = problem.space.project(start, problem.examples)
        found = solve(problem, self.solver, start, keys, best, self.unroll)
        return self._with_candidates(problem, found, edited, keys)

    def edit(self, variables: Variables, x: Any) -> Any:
        """The attribute-only image A(x, a) of joint variables."""
        attributes = {name: value for name, value in variables.items() if name != "noise"}
        return self._attributes().apply(attributes, Example(x))

    def _attributes(self) -> Lifted:
        named = self.space.space.items()
        return per_example(spaces.chain(**{name: space for name, space in named if name != "noise"}))

    def _search_attributes(self, predict: Predict, x: Any, y: Any, keys: Keys) -> Result:
        space = self._attributes()
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
        joint = _as_result(problem, found)
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
        return _as_result(problem, Best(variables, problem.value(variables, fold_in(keys, self.num_steps + 2))))


def spa(
    radius: Scalar,
    attributes: Any = ("rotation",),
    num_steps: int = 10,
    step_size: Scalar | None = None,
    attribute_step_size: Scalar | None = None,
    norm: str = "linf",
    search: Search = "joint",
    candidates: int = 9,
    loss: Any = "cross_entropy",
    solver: str | Solver = "projected_gradient",
    keep: Keep = "best",
    unroll: int | None = None,
) -> Spa:
    """The semantic-preserving adversarial attack in its direct form: attributes and bounded noise together.

    The image becomes clip(A(x, a) + d) with every attribute value `a` in its box and |d| <= radius around the *edited*
    image. One backward pass moves all of them (SPA, IJCNN 2023; the abstract fixes the joint optimisation, all numbers
    here are our choice). With `keep="best"` the result is never weaker than the clean image, the attribute-only image
    and the noise-only image that the attack evaluated, nor than any point on its way.

    Args:
        radius: of the noise, on the [0, 1] scale.
        attributes: names of edits in the order of application; or a mapping or sequence of `{"name": "rotation",
            "low": -20, "high": 20}`; or a mapping of names to `spa_jax.attribute` spaces.
        num_steps: gradient steps, k forward and backward passes.
        step_size: of the noise, in radii. Default: 2.5 / num_steps.
        attribute_step_size: of the attributes, in half ranges. Default: as `step_size`.
        norm: of the noise, "linf", "l2" or "l1".
        search: "joint"; "alternating" moves attributes and noise in turns; "random" and "grid" first pick attribute
            values by forward passes alone, then climb the noise there.
        candidates: random draws, or grid points an attribute, for those two.
        loss: as for `pgd`.
        solver: "projected_gradient" or "apgd", or a solver object.
        keep: "best" or "last".
        unroll: as for `make_attack`.

    Raises:
        ValueError: a broken rule, naming the value.
    """
    require_count("num_steps", num_steps)
    require_count("candidates", candidates)
    _check_choice("search", search, ("joint", "alternating", "random", "grid"))
    _check_choice("keep", keep, ("best", "last"))
    members = _attribute_spaces(attributes)
    space = per_example(spaces.chain(**members, noise=_noise_space(norm, radius)))
    noise_step = _default_step(num_steps) if step_size is None else step_size
    attribute_step = noise_step if attribute_step_size is None else attribute_step_size
    climb = _spa_solver(solver, search, tuple(members), noise_step, attribute_step)
    return Spa(space, as_pytree(_loss(loss)), climb, num_steps, search, candidates, keep, unroll)


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
def _hold_still(names: tuple[str, ...]) -> optax.GradientTransformation:
    def labels(variables: Mapping[str, Any]) -> dict[str, str]:
        return {name: "still" if name in names else "move" for name in variables}

    return optax.partition({"still": optax.set_to_zero(), "move": steepest}, labels)


@functools.lru_cache
def _alternate(names: tuple[str, ...]) -> optax.GradientTransformation:
    return optax.chain(take_turns(names, ("noise",)), steepest)


def _spa_solver(
    solver: Any, search: str, attributes: tuple[str, ...], noise_step: Scalar, attribute_step: Scalar
) -> Solver:
    if not isinstance(solver, str):
        return solver
    _check_choice("solver", solver, ("projected_gradient", "apgd"))
    if solver == "apgd":
        if search != "joint":
            raise ValueError(f"search={search!r} with solver='apgd': auto-PGD moves all variables jointly")
        return apgd_solver()
    step_sizes = {name: attribute_step for name in attributes} | {"noise": noise_step}
    if search == "joint":
        return projected_gradient(step_sizes)
    return projected_gradient(
        step_sizes, _alternate(attributes) if search == "alternating" else _hold_still(attributes)
    )


def named_attributes(attack: PureAttack) -> dict[str, spaces.Attribute]:
    """The attributes that an attack moves by a named edit, inside combinators too."""
    names = {edit.function: name for name, edit in EDITS.items()}
    found: dict[str, spaces.Attribute] = {}

    def look(attack: Any) -> Any:
        lifted = getattr(attack, "space", None)
        space = lifted.space if lifted else None
        members = space.spaces if isinstance(space, spaces.Chain) else (space,)
        attributes = [member for member in members if isinstance(member, spaces.Attribute)]
        found.update({names[member.edit]: member for member in attributes if member.edit in names})
        return attack

    _inside(attack, look)
    return found


# --- by name --------------------------------------------------------------------------------------------------------

ATTACKS: Mapping[str, Callable[..., PureAttack]] = {
    "fgsm": fgsm,
    "pgd": pgd,
    "mi_fgsm": mi_fgsm,
    "apgd_ce": apgd_ce,
    "apgd_dlr": apgd_dlr,
    "cw": cw,
    "attribute": attribute_attack,
    "spa": spa,
}
"""The presets that a config may name: `{"name": "pgd", "radius": 8/255, "num_steps": 10, "restarts": 5}`."""


def attack_from_config(spec: Mapping[str, Any]) -> PureAttack:
    """An attack from plain data: a preset's name and arguments, and for every preset `restarts` and `at_once`.

    Attacks built here run on networks of `spa_jax.models`, whose convolutions are fast in a loop: nothing is unrolled.

    Raises:
        ConfigError: an unknown name or key, or a wrong type, named with the valid ones.
        ValueError: a number out of range.
    """
    from spa_jax.configuration import build

    options = dict(spec)
    repeats, at_once = options.pop("restarts", 1), options.pop("at_once", 1)
    attack = build(ATTACKS, options, "attack")
    if any(field.name == "unroll" for field in dataclasses.fields(attack)):
        attack = with_fields(attack, unroll=1)
    return restarts(attack, repeats, at_once)
