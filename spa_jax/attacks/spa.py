"""The semantic-preserving adversarial attack, which moves attributes and noise together, and attacks by one of them."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import optax

from spa_jax.attacks.gradient import relative_step
from spa_jax.attacks.iterative import IterativeAttack, Keep, Stage, default_step, make_attack, stage
from spa_jax.errors import shown
from spa_jax.solvers import apgd, climbed, grid, projected_gradient, random_search, rule, steepest, take_turns
from spa_jax.spaces.attribute import attribute
from spa_jax.spaces.base import require_space
from spa_jax.spaces.chain import chain
from spa_jax.spaces.noise import noise_ball
from spa_jax.spaces.ordered import ORDER, Ordered, ordered
from spa_jax.types import Count, Scalar, Solver, Space
from spa_jax.validation import require_choice, require_count

Search = Literal["joint", "alternating", "noise"]
Start = Literal["grid", "random", "draws", "none"]
Order = Literal["fixed", "random", "scheduled"]
StepSchedule = Literal["constant", "linear"]

_AFTER_A_START = 0.1
_APGD_STEP = 2.0
_MOST_GRID_POINTS = 64
_ATTRIBUTES = (
    'names of edits, as ("rotation", "scale"), or a mapping of names to ranges or spaces, as {"rotation": (-20, 20)}'
)


def spa(
    radius: Scalar,
    attributes: Any = ("rotation",),
    num_steps: Count = 40,
    *,
    norm: str = "linf",
    noise: Callable[[Any], Space] | None = None,
    search: Search = "joint",
    start: Start | None = None,
    start_points: Count | None = None,
    start_steps: Count | None = None,
    solver: str | Solver = "apgd",
    step_size: Scalar | None = None,
    rel_step_size: Scalar | None = None,
    attribute_step_size: Scalar | None = None,
    step_schedule: StepSchedule = "constant",
    order: Order = "fixed",
    loss: Any = "cross_entropy",
    keep: Keep = "best",
) -> IterativeAttack:
    """The semantic-preserving adversarial attack: attributes and bounded noise together.

    The image becomes clip(A(x, a) + d) with every attribute value `a` in its box and |d| <= radius around the *edited*
    image. In the direct form `d` is searched pixel by pixel; in the generated form a trained generator makes it,
    d = G(A(x, a), z), and its diversity variable `z` is searched. One backward pass moves all of them (SPA, IJCNN 2023;
    the abstract fixes the joint optimisation, all numbers here are our choice). The result's `without["noise"]` holds
    the edited images A(x, a).

    It is an ordinary attack of two stages: a start at several points, then gradient steps from the best of them. By
    default noise climbs for some passes at every point of a grid over the attributes before the best is chosen, because
    attribute values that look best without noise are often not those where noise gains most. With one attribute the
    default takes 211 passes forward and backward, and leaves within a point of what an exhaustive search with 5,106
    leaves (`configs/bench_optimum.py`). Together the stages are, by `start` and `search`:

    | `start` | `search` | what happens |
    |---|---|---|
    | "grid", "random" | "joint" | attribute values on a grid or at random, then steps on everything |
    | "grid", "random" | "noise" | the same, then steps on the noise alone |
    | "draws" | "joint" | random attribute values and noise, then steps on everything from the best draw |
    | any | "alternating" | steps on attributes and noise in turns |
    | "none" | any | steps from one random start |

    Args:
        radius: of the noise, on the [0, 1] scale.
        attributes: names of edits in the order of application; or a mapping of names to ranges,
            `{"rotation": (-20, 20)}`, or to `spa_jax.attribute` spaces, of a learned manipulator too; or a sequence of
            `{"name": "rotation", "low": -20, "high": 20}`.
        num_steps: gradient steps, one forward and one backward pass each.
        norm: of direct noise, "linf", "l2" or "l1".
        noise: how the space of noise is made from its radius, for noise that is generated:
            `functools.partial(spa_jax.generated_noise, model, variables)`. Default: direct noise of that norm.
        search: what the gradient steps move: "joint", "alternating" (attributes and noise in turns) or "noise".
        start: where they start, see the table. Default: "grid" while that takes at most 64 points, else "draws".
        start_points: grid points an attribute, or random points. Default: 17 for one attribute, 3 for two, 2 for more;
            9 random ones.
        start_steps: passes forward and backward by which the noise climbs at each of these points before the best is
            chosen (`spa_jax.solvers.climbed`), all but the last of them a step; the gradient steps then go on from that
            noise. With 1 the points are judged as they are, at one forward pass each. Default: on a grid with "apgd" a
            quarter of `num_steps`, or fewer, so that all points together take at most 5 * `num_steps`; else 1.
        solver: of the gradient steps, "apgd", "projected_gradient" or "random_search" (a random point each step), or a
            solver object.
        step_size: of the noise by the projected gradient, in the units of the radius.
        rel_step_size: the same as a fraction of the radius. Default: 2.5 / num_steps; of the linear schedule's first
            step, twice that and at least 0.5.
        attribute_step_size: of the attributes by the projected gradient, in half ranges. Default: as the noise's
            fraction; a tenth of it, with "apgd" too, after a start on the attributes, because longer steps would
            leave the values found there (our choice, the strongest of those tried).
        step_schedule: "constant", or "linear": the steps of the projected gradient shrink towards 0, so that the noise
            converges for the final attribute values.
        order: in which attributes and noise are applied, "fixed" as given, noise last. Else every image has an order of
            its own (`spa_jax.spaces.ordered`), drawn with its random start, which "random" keeps and the steps of
            "scheduled" move with everything else; the default `start` is then "draws".
        loss, keep: as for `make_attack`.

    Raises:
        ValueError: a broken rule, naming the value; options that the chosen search would ignore.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import spa
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> attack = spa(radius=0.015, attributes={"brightness": {"low": -0.01, "high": 0.01}}, num_steps=5)
        >>> result = attack(jax.random.key(0), model, images, labels)  # neither 0.015 nor 0.01 suffices alone
        >>> print(result.success, result.variables["brightness"].round(3), f"{result.x.max():.3f}")
        [ True  True] [-0.01 -0.01] 0.475
        >>> print(f"{result.without['noise'].max():.3f}")  # the edited images, without noise
        0.490
    """
    num_steps = require_count("num_steps", num_steps)
    require_choice("search", search, ("joint", "alternating", "noise"))
    require_choice("step_schedule", step_schedule, ("constant", "linear"))
    require_choice("order", order, ("fixed", "random", "scheduled"))
    members = attribute_spaces(attributes)
    edits = chain(**members)
    links = members | {"noise": (functools.partial(noise_ball, norm) if noise is None else noise)(radius)}
    space = chain(**links) if order == "fixed" else ordered(**links)
    begins, points = _start_of(start, start_points, edits.grid_axes, order)
    _refuse_unread(search, solver, step_size, rel_step_size, attribute_step_size, step_schedule)
    climbs = _climbs(start_steps, num_steps, begins, points**edits.grid_axes, solver)
    first = _start_stage(begins, points, climbs, edits, tuple(members))
    share = _AFTER_A_START if begins in ("grid", "random") else 1.0
    if solver == "projected_gradient":
        shrinks = step_schedule == "linear"
        default = min(1.0, max(0.5, 2 * default_step(num_steps))) if shrinks else default_step(num_steps)
        step = relative_step(radius, num_steps, step_size, rel_step_size, default)
        attribute_step = share * step if attribute_step_size is None else attribute_step_size
        sizes = _sizes(space, attribute_step, step)
        turns = tuple(name for name in sizes if name != "noise")
        solver = projected_gradient(sizes, rule(_rule, search, turns, num_steps if shrinks else None))
    elif solver == "apgd":
        solver = apgd(_sizes(space, share * _APGD_STEP, _APGD_STEP))
    moves = ("noise",) if search == "noise" else tuple(links) if order == "random" else None
    draws = ("noise",) if begins in ("grid", "random") and climbs == 1 else ()
    climb = stage(random_search() if isinstance(solver, str) else solver, num_steps, moves, draws)
    random_start = begins in ("draws", "none")
    return make_attack(space, loss, (*first, climb), keep=keep, random_start=random_start, without=("noise",))


def _sizes(space: Any, of_attributes: Any, of_others: Any) -> dict[str, Any]:
    """Step sizes in radii: of the attributes, and of the noise and the order."""
    sizes = {name: of_others if name == "noise" else of_attributes for name in space.names}
    return sizes | ({ORDER: of_others} if isinstance(space, Ordered) else {})


def _start_of(start: str | None, points: Count | None, axes: int, order: str) -> tuple[str, int]:
    """How the attack starts, and from how many points."""
    points = None if points is None else require_count("start_points", points)
    a_grid = points or {1: 17, 2: 3}.get(axes, 2)
    if start is None:
        start = "grid" if order == "fixed" and a_grid**axes <= _MOST_GRID_POINTS else "draws"
    require_choice("start", start, ("grid", "random", "draws", "none"))
    if order != "fixed" and start in ("grid", "random"):
        raise ValueError(f"start={start!r} with order={order!r}: it searches attributes alone; take 'draws' or 'none'")
    return start, a_grid if start == "grid" else points or 9


def _climbs(start_steps: Count | None, num_steps: int, start: str, starts: int, solver: Any) -> int:
    """By how many passes the noise climbs at each of so many starts."""
    if start_steps is None:
        return max(1, min(num_steps // 4, 5 * num_steps // starts)) if start == "grid" and solver == "apgd" else 1
    climbs = require_count("start_steps", start_steps)
    if start == "none":
        raise ValueError(f"start_steps={climbs} with start='none': there are no points to climb from")
    return climbs


def _start_stage(start: str, points: int, climbs: int, edits: Any, names: tuple[str, ...]) -> tuple[Stage, ...]:
    if climbs > 1:
        noise, is_grid = projected_gradient(default_step(climbs)), start == "grid"
        starts = climbed(noise, climbs, points if is_grid else None, ("noise",))
        return (stage(starts, starts.num_steps(grid(points).num_steps(edits) if is_grid else points)),)
    if start == "grid":
        solver = grid(points)
        return (stage(solver, solver.num_steps(edits), names),)
    if start == "random":
        return (stage(random_search(), points, names),)
    return (stage(random_search(), points - 1),) if start == "draws" and points > 1 else ()


def _refuse_unread(search: str, solver: Any, *options: Any) -> None:
    """Refuse options that the chosen search would ignore."""
    if isinstance(solver, str):
        require_choice("solver", solver, ("projected_gradient", "apgd", "random_search"))
    if solver == "projected_gradient":
        return
    if search == "alternating":
        raise ValueError(f"search={search!r} with solver={solver!r}: only 'projected_gradient' takes turns")
    names = ("step_size", "rel_step_size", "attribute_step_size", "step_schedule")
    given = {name: value for name, value in zip(names, options, strict=True) if value not in (None, "constant")}
    if given:
        listed = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise ValueError(f"{listed} with solver={solver!r}: only 'projected_gradient' takes these steps")


def _rule(search: str, names: tuple[str, ...], shrink_over: int | None) -> optax.GradientTransformation:
    """What a search moves, and how its steps shrink."""
    rules = [take_turns(names, ("noise",))] if search == "alternating" else []
    if shrink_over is not None:
        rules.append(optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, shrink_over)))
    return optax.chain(*rules, steepest) if rules else steepest


def attribute_spaces(attributes: Any) -> dict[str, Space]:
    """Attribute spaces by name, from what `spa` takes as `attributes`.

    Raises:
        ValueError: none, an unknown edit, or a name that stands twice.
    """
    if isinstance(attributes, str) or not isinstance(attributes, Iterable):
        raise ValueError(f"attributes={shown(attributes)} must be {_ATTRIBUTES}")
    entries = attributes.items() if isinstance(attributes, Mapping) else [(None, entry) for entry in attributes]
    named = [_named_attribute(name, entry) for name, entry in entries]
    names = [name for name, _ in named]
    if not named or "noise" in names or len(set(names)) < len(names):
        raise ValueError(f"attributes={shown(attributes)} must name at least one edit, none of them twice or 'noise'")
    return dict(named)


def _named_attribute(name: str | None, entry: Any) -> tuple[str, Space]:
    """A named attribute space from a name, a range, `{"name": ..., "low": ..., "high": ...}`, or as it is."""
    if isinstance(entry, str):
        entry = {"name": entry}
    if name is not None and isinstance(entry, tuple | list) and len(entry) == 2:
        entry = dict(zip(("low", "high"), entry, strict=True))
    if not isinstance(entry, Mapping):
        try:
            require_space(entry)
        except ValueError:
            raise ValueError(f"attributes hold {shown(entry)}; they must be {_ATTRIBUTES}") from None
        if name is None:
            raise ValueError(f"attributes hold {shown(entry)} without a name: pass a mapping of names to spaces")
        return name, entry
    options = {"name": name} | dict(entry)
    edit = options.pop("name")
    unknown = set(options) - {"low", "high"}
    if unknown or not isinstance(edit, str):
        raise ValueError(f"attributes hold {shown(dict(entry))}: the valid keys are name, low, high")
    return edit, attribute(edit, options.get("low"), options.get("high"))


# --- one part alone -------------------------------------------------------------------------------------------------


def noise_attack(
    radius: Scalar,
    noise: Callable[[Any], Space],
    method: str = "random",
    num_steps: Count = 10,
    rel_step_size: Scalar | None = None,
    loss: Any = "cross_entropy",
    keep: Keep = "best",
) -> IterativeAttack:
    """An attack by generated noise alone.

    Args:
        radius: of the noise, on the [0, 1] scale.
        noise: how the space of noise is made from its radius, as for `spa`.
        method: "random" (a new diversity variable each step, L2L-DA's own attack), or "gradient".
        num_steps: random draws (10 in L2L-DA's code), or gradient steps.
        rel_step_size: in radii of the diversity variable, for "gradient". Default: 2.5 / num_steps.
        loss, keep: as for `make_attack`.

    Raises:
        ValueError: a number out of range, or an unknown method.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import noise_attack, spaces
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> attack = noise_attack(0.03, spaces.linf, method="gradient")  # any function from a radius to a space
        >>> print(attack(jax.random.key(0), model, images, labels).success)
        [ True  True]
    """
    require_choice("method", method, ("gradient", "random"))
    step = default_step(num_steps) if rel_step_size is None else rel_step_size
    solver: Solver = random_search() if method == "random" else projected_gradient(step)
    return make_attack(noise(radius), loss, solver, num_steps, keep=keep)


def attribute_attack(
    edit: Any,
    low: Any = None,
    high: Any = None,
    method: str = "gradient",
    num_steps: Count = 10,
    rel_step_size: Scalar | None = None,
    loss: Any = "cross_entropy",
    keep: Keep = "best",
) -> IterativeAttack:
    """An attack by one attribute alone.

    Args:
        edit: a name of `spa_jax.EDITS`, or a function `(image, value) -> image` (then with `low` and `high`).
        low, high: range of the value. Default: the edit's documented range.
        method: "gradient" (sign steps from a random value), "random", or "grid" (evenly spaced, bounds included).
        num_steps: gradient steps, random draws, or grid points; the default is our choice.
        rel_step_size: in half ranges, for "gradient". Default: 2.5 / num_steps.
        loss, keep: as for `make_attack`.

    Raises:
        ValueError: a number out of range, an unknown edit or method.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> from spa_jax import attribute_attack
        >>> images, labels = jnp.full((2, 4, 4, 1), 0.5), jnp.array([1, 1])
        >>> light = lambda images: images.mean((1, 2, 3)) - 0.48
        >>> model = lambda images: jnp.stack([-light(images), light(images)], axis=-1)  # class 1: a bright image
        >>> attack = attribute_attack("brightness", low=-0.05, high=0.05, method="grid", num_steps=5)
        >>> result = attack(jax.random.key(0), model, images, labels)
        >>> print(result.success, result.variables)
        [ True  True] [-0.05 -0.05]
    """
    require_choice("method", method, ("gradient", "random", "grid"))
    step = default_step(num_steps) if rel_step_size is None else rel_step_size
    solvers: dict[str, Callable[[], Solver]] = {
        "gradient": lambda: projected_gradient(step),
        "random": random_search,
        "grid": lambda: grid(num_steps),
    }
    space = attribute(edit, low, high)
    return make_attack(space, loss, solvers[method](), num_steps, keep=keep, random_start=method != "grid")
