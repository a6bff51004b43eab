"""The general attack: stages of solvers that climb a loss over a space."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from spa_jax import losses
from spa_jax.attacks.base import FINAL, JUDGE, START, STEP, PureAttack, part_of, stream
from spa_jax.errors import shown
from spa_jax.goals import misclassified
from spa_jax.solvers import Best, Problem, better, projected_gradient
from spa_jax.solvers.base import require_solver
from spa_jax.spaces.lift import Lifted, per_example
from spa_jax.trees import as_pytree, branch, pytree, static
from spa_jax.types import (
    Count,
    Evaluation,
    Example,
    Flags,
    Images,
    Keys,
    NonFinite,
    Predict,
    Result,
    SeenVictim,
    Solver,
    Space,
    Variables,
)
from spa_jax.validation import require_choice, require_count

Keep = Literal["best", "last"]


@pytree
class Stage:
    """A part of an attack: a solver and how long it works; see `stage`."""

    solver: Any
    num_steps: int = static()
    moves: tuple[str, ...] | None = static(default=None)
    draws: tuple[str, ...] = static(default=())


def stage(solver: Solver, num_steps: Count, moves: Sequence[str] | None = None, draws: Sequence[str] = ()) -> Stage:
    """A stage of an attack. It starts at the best point of the one before.

    Args:
        solver: how the variables climb.
        num_steps: its steps, at least 1.
        moves: names of the chained variables that it moves; None: all of them.
        draws: names of the chained variables that start at a random value instead.

    Raises:
        ValueError: `num_steps` below 1, or something that is not a solver.
    """
    require_solver(solver)
    return Stage(solver, require_count("num_steps", num_steps), None if moves is None else tuple(moves), tuple(draws))


class AttackState(NamedTuple):
    """The state of an attack between two steps; a pytree that can be saved, restored and continued from.

    Attributes:
        step: int32 [], how many steps were made.
        keys: [b] one for each example, or a single one where the variables are shared.
        variables: where the next step starts.
        solver: the state of each stage's solver.
        best: the strongest variables so far, with their loss and success, or None where the last ones are kept.
        prepared: what the space has computed of the images once for all steps.
        nonfinite: what was not finite so far.
    """

    step: Any
    keys: Any
    variables: Variables
    solver: tuple[Any, ...]
    best: Any
    prepared: Any
    nonfinite: NonFinite


@pytree
class IterativeAttack(PureAttack):
    """Solvers climbing a loss over a space, stage by stage; see `make_attack`."""

    space: Lifted
    loss: Any
    goal: Any
    stages: tuple[Stage, ...]
    keep: str = static()
    random_start: bool = static()
    without: tuple[str, ...] = static(default=())
    draws: int = static(default=1)

    @property
    def num_steps(self) -> int:
        """Steps in all."""
        return sum(stage.num_steps for stage in self.stages)

    @property
    def shared(self) -> bool:
        return self.space.shared

    @property
    def tells_broken(self) -> bool:
        return self.keep == "best"

    def broken(self, state: AttackState) -> Flags:
        return state.best.success

    def members(self) -> Mapping[str, Any]:
        return self.space.members()

    def check_classes(self, count: int) -> None:
        self.space.space.check_classes(count)

    # --- the pure functions

    def found(self, state: AttackState) -> Variables:
        """The variables that the attack would end with: the strongest so far, or the last ones."""
        return state.best.variables if self.keep == "best" else state.variables

    def begin(self, keys: Keys, predict: Predict, examples: Example) -> AttackState:
        clean, state = self.start(keys, predict, examples)
        return self.judge(clean, state, predict, examples) if self.keep == "best" else state

    def move(self, state: AttackState, predict: Predict, examples: Example) -> AttackState:
        if len(self.stages) == 1:
            return self.advance(state, predict, examples)
        lengths = [stage.num_steps for stage in self.stages]

        def enter(i: int, state: AttackState) -> AttackState:
            return self.enter(self.judge(state.variables, state, predict, examples), predict, examples, stage=i)

        def go(i: int, state: AttackState) -> AttackState:
            if i:
                begins = (state.step == sum(lengths[:i])).astype(jnp.int32)
                state = branch(begins, [lambda state: state, functools.partial(enter, i)], state)
            return self.advance(state, predict, examples, stage=i)

        return branch(part_of(state.step, lengths), [functools.partial(go, i) for i in range(len(self.stages))], state)

    def end(self, state: AttackState, predict: Predict, examples: Example) -> Result:
        v = state.variables
        if any(getattr(stage.solver, "leaves_space", False) for stage in self.stages):
            v = self.space.project(v, examples.replace(prepared=state.prepared))
        state = self.judge(v, state, predict, examples, replace=self.keep == "last")
        return self.finish(state, predict, examples)

    def run(self, driver: Any, keys: Keys, examples: Example) -> Result:
        clean, state = driver.call(self, "start", keys, examples)
        going = self._going
        if self.keep == "best":
            state = driver.call(going, "judge", clean, state, examples, replace=False)
        for i, own in enumerate(self.stages):
            if i:
                state = driver.call(going, "judge", state.variables, state, examples, replace=False)
                state = driver.call(going, "enter", state, examples, stage=i)
            state = driver.repeat(going, own.num_steps, state, examples, stage=i)
        state = driver.call(going, "judge", state.variables, state, examples, replace=self.keep == "last")
        return driver.call(going, "finish", state, examples)

    @property
    def _going(self) -> "IterativeAttack":
        """The attack without its start, and without lengths that no solver asks for: others share these programs."""

        def shortened(own: Stage) -> Stage:
            return own if getattr(own.solver, "counts_steps", True) else dataclasses.replace(own, num_steps=1)

        return dataclasses.replace(self, stages=tuple(map(shortened, self.stages)), random_start=True)

    # --- their parts; `judge` and `advance` show images to the victim, `finish` to a randomised one

    def start(self, keys: Keys, predict: Predict, examples: Example) -> tuple[Variables, AttackState]:
        """The variables of the clean images, and the state before anything is judged."""
        prepared = None if self.shared else jax.vmap(self.space.space.prepare)(self._bound(keys, predict, examples))
        problem = self._problem(0, keys, predict, examples.replace(prepared=prepared))
        clean = self.space.identity(problem.examples)
        v = self._drawn(problem, stream(keys, START)) if self.random_start else clean
        best = self._weakest(problem, v, keys) if self._tracks(0) else None
        solvers = tuple(stage.solver.init(problem, v) for stage in self.stages)
        zeros = jnp.zeros(len(examples.image), jnp.int32)
        nonfinite = self.space.count(NonFinite(zeros, zeros))
        return clean, AttackState(jnp.zeros((), jnp.int32), keys, v, solvers, best, prepared, nonfinite)

    def _drawn(self, problem: Problem, keys: Keys) -> Variables:
        """A random start: a point of the space, unless the first solver draws its own."""
        v = self.space.init(keys, problem.examples)
        solver = self.stages[0].solver
        return solver.draw_start(problem, v, keys) if hasattr(solver, "draw_start") else v

    def judge(
        self, v: Variables, state: AttackState, predict: Predict, examples: Example, replace: bool = False
    ) -> AttackState:
        """The state with `v` as a further candidate for the best point, or in its place."""
        problem = self._problem(0, state.keys, predict, examples.replace(prepared=state.prepared))
        evaluation = problem.evaluate(v, stream(state.keys, JUDGE, state.step))
        found = problem.candidate(v, evaluation)
        best = found if replace else better(state.best, found)
        return state._replace(best=best, nonfinite=self._counted(state, evaluation))

    def advance(self, state: AttackState, predict: Predict, examples: Example, stage: int = 0) -> AttackState:
        """One step of a stage."""
        problem = self._problem(stage, state.keys, predict, examples.replace(prepared=state.prepared))
        keys, own = stream(state.keys, STEP, state.step), state.solver[stage]
        moved, own, evaluation = self.stages[stage].solver.step(problem, state.variables, own, keys)
        best = state.best
        if self._tracks(stage):
            best = better(best, problem.candidate(state.variables, evaluation))
        solvers = (*state.solver[:stage], own, *state.solver[stage + 1 :])
        nonfinite = self._counted(state, evaluation)
        return AttackState(state.step + 1, state.keys, moved, solvers, best, state.prepared, nonfinite)

    def _counted(self, state: AttackState, evaluation: Evaluation) -> NonFinite:
        return jax.tree.map(jnp.add, state.nonfinite, self.space.count(evaluation.nonfinite))

    def follow(self, state: AttackState, examples: Example, evaluation: Evaluation, gradient: Variables) -> AttackState:
        """One step along a gradient that is known already, such as the one that a training step has computed."""
        problem = self._problem(0, state.keys, not_shown, examples.replace(prepared=state.prepared))
        problem = dataclasses.replace(problem, known=(evaluation, gradient))
        moved, own, _ = self.stages[0].solver.step(problem, state.variables, state.solver[0], state.keys)
        return state._replace(step=state.step + 1, variables=moved, solver=(own, *state.solver[1:]))

    def enter(self, state: AttackState, predict: Predict, examples: Example, stage: int = 0) -> AttackState:
        """From the best point of the stage before to the start of this one."""
        problem = self._problem(stage, state.keys, predict, examples.replace(prepared=state.prepared))
        v = state.best.variables
        if draws := self.stages[stage].draws:
            drawn = self.space.init(stream(state.keys, START, stage), problem.examples)
            v = self.space.project(v | {name: drawn[name] for name in draws}, problem.examples)
        solvers = (*state.solver[:stage], self.stages[stage].solver.init(problem, v), *state.solver[stage + 1 :])
        return state._replace(variables=v, solver=solvers)

    def finish(self, state: AttackState, predict: Predict, examples: Example) -> Result:
        """What has been found, with its images; a randomised victim judges it once more, with fresh keys."""
        examples = examples.replace(prepared=state.prepared)
        v, value, success = state.best
        without = {name: self.make(v, predict, examples, without=(name,)) for name in self.without}
        result = Result(self.make(v, predict, examples), v, value, success, without, state.nonfinite)
        if not self.shared:
            return self.conclude(state.keys, result, predict, examples)
        keys = self.space.example_keys(stream(state.keys, FINAL), len(examples.image))
        return self.judged(result, keys, predict, examples)

    def make(self, variables: Variables, predict: Predict, examples: Example, without: tuple[str, ...] = ()) -> Images:
        """The images of variables, some of them left at their identity."""
        space, bound = self.space, self._bound(None, predict, examples)
        if without:
            space = space.without(*without)
            variables = {name: own for name, own in variables.items() if name not in without}
        if next(iter(self.members())) in without:  # what was prepared is the first link's
            bound = bound.replace(prepared=None)
        if bound.prepared is None and not self.shared:
            bound = bound.replace(prepared=jax.vmap(space.space.prepare)(bound))
        return space.apply(variables, bound)

    def _bound(self, keys: Keys | None, predict: Predict, examples: Example) -> Example:
        """The examples as spaces see them: with the victim, and with a key of their own."""
        own = keys if keys is not None and keys.ndim else None
        return examples.replace(key=own, predict=SeenVictim(predict))

    def _problem(self, stage: int, keys: Keys, predict: Predict, examples: Example) -> Problem:
        own = self.stages[stage]
        bound = self._bound(keys, predict, examples)
        parts = (self.space, bound, predict, self.loss, self.goal)
        return Problem(*parts, own.num_steps, own.moves, draws=self.draws)

    def _tracks(self, stage: int) -> bool:
        """Whether the best point is kept: always, or as long as another stage will start there."""
        return self.keep == "best" or stage < len(self.stages) - 1

    def _weakest(self, problem: Problem, v: Variables, keys: Keys) -> Best:
        """A candidate that every other one beats."""
        shapes = jax.eval_shape(lambda v: problem.candidate(v, problem.evaluate(v, keys)), v)
        value = jnp.full(shapes.value.shape, -jnp.inf, shapes.value.dtype)
        return Best(v, value, jnp.zeros(shapes.success.shape, shapes.success.dtype))


def not_shown(keys: Keys, images: Images) -> Any:
    """In the place of a victim, for steps along a gradient that is known already.

    Raises:
        ValueError: when it is called.
    """
    raise ValueError("a step along a known gradient shows the victim no images: the solver must not ask it")


def make_attack(
    space: Space,
    loss: Any = losses.cross_entropy,
    solver: Solver | Sequence[Stage] | None = None,
    num_steps: Count = 10,
    *,
    goal: Any = misclassified,
    lift: Callable[[Space], Lifted] = per_example,
    keep: Keep = "best",
    random_start: bool = True,
    without: Sequence[str] = (),
) -> IterativeAttack:
    """An attack from its parts.

    Guarantees: the images are in [0, 1] and the variables in the space; with `keep="best"` no result is weaker than
    the clean image or any point of the space that the solvers visited (success counts before loss), unless the victim
    is randomised: then the result is judged once more, with fresh keys, and `value` and `success` are those; the same
    key gives the same result, and each example's result does not depend on the others in the batch.

    Args:
        space: what may change about one image.
        loss: what the attacker maximises: a loss, its name, or `{"name": ..., options}`.
        solver: how the variables climb: a solver, or stages of them (`stage`), each starting at the best point of the
            one before. Default: plain projected gradient with steps of 2.5 / num_steps radii.
        num_steps: steps of a single solver, at least 1; stages have numbers of their own. The default is our choice,
            see `pgd`.
        goal: what counts as success, `(logits, examples) -> flags [b]`.
        lift: `per_example`, or `universal` for one set of variables for all images.
        keep: "best", or "last" as in adversarial training (which saves two forward passes). Take "last" where the state
            of a universal attack is carried over batches: "best" would compare the means of different batches, of which
            some are easier.
        random_start: start at a random point of the space instead of at the clean image.
        without: names of chained variables; for each of them the result holds the images without it.

    Raises:
        ValueError: a broken rule, naming the value.
    """
    require_choice("keep", keep, ("best", "last"))
    if solver is None:
        solver = projected_gradient(default_step(num_steps))
    if isinstance(solver, str):
        require_solver(solver)
    stages = tuple(solver) if isinstance(solver, Sequence) else (stage(solver, num_steps),)
    if strange := [own for own in stages if not isinstance(own, Stage)]:
        raise ValueError(f"solver holds {shown(strange[0])}, must be stages: stage(solver, num_steps)")
    lifted = lift(space)
    named = {*without, *(name for own in stages for name in (*(own.moves or ()), *own.draws))}
    if unknown := sorted(named - set(space.members())):
        raise ValueError(f"variables {unknown} are not in the space; it has {', '.join(space.members())}")
    loss, goal = losses.loss_from_spec(loss), as_pytree(goal)
    return IterativeAttack(lifted, loss, goal, stages, keep, random_start, tuple(without))


def default_step(num_steps: Count) -> float:
    """2.5 radii in all, so that every point of the set can be reached from any other (Madry et al.'s heuristic).

    Raises:
        ValueError: `num_steps` below 1.
    """
    return min(1.0, 2.5 / require_count("num_steps", num_steps))
