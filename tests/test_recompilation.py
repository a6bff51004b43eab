"""One compiled program serves all numbers, weights and fresh functions; its size does not grow with steps."""

import gc
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from spa_jax import (
    apgd_ce,
    attribute,
    attribute_attack,
    classifier,
    cw,
    fab,
    fmn,
    make_attack,
    normalize,
    pgd,
    restarts,
    spa,
    worst_of,
)
from spa_jax.attacks.base import _compiled, _whole
from spa_jax.losses import capped_cross_entropy
from spa_jax.solvers import projected_gradient, rule
from spa_jax.spaces import linf
from spa_jax.validation import checked_examples, checked_keys
from spa_jax.victims import as_victim
from tests.analytic_victims import images, labels, linear, linear_logits, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, X, Y, W = jax.random.key(0), images(), labels(), weights()
PGD = pgd(0.1, 2)


def light(low, high, size):
    return attribute_attack("brightness", low, high, num_steps=2, rel_step_size=size)


def joint(radius, low, high, size, num_steps=2):
    edits = [{"name": "brightness", "low": low, "high": high}]
    return spa(radius, edits, num_steps, solver="projected_gradient", rel_step_size=size, start_points=2)


BUILDERS = {
    "pgd": (
        lambda: pgd(0.1, 2),
        lambda: pgd(0.3, 2, step_size=0.2),
        lambda: pgd(np.float64(0.3), 2),
        lambda: pgd(1, 2, rel_step_size=1),
    ),
    "apgd": (lambda: apgd_ce(0.1, 6), lambda: apgd_ce(0.5, 6)),
    "attribute": (lambda: light(-0.1, 0.2, 0.5), lambda: light(-1, 1, 0.7)),
    "spa": (lambda: joint(0.1, -0.1, 0.1, 0.5), lambda: joint(0.3, -0.3, 0.2, 0.6)),
    "cw": (lambda: cw(num_steps=3, search_steps=2), lambda: cw(0.5, 3, 2, 0.1, 0.02, 1)),
    "fmn": (lambda: fmn(num_steps=3), lambda: fmn("l2", 0.5, 3, 0.7, 0.1)),
    "fab": (lambda: fab(num_steps=3), lambda: fab("linf", 0.5, 3, 0.2, 1.1, 0.8)),
    "loss": (lambda: pgd(0.1, 2, loss=capped_cross_entropy(1.0)), lambda: pgd(0.1, 2, loss=capped_cross_entropy(2.0))),
    "combined": (
        lambda: restarts(worst_of(PGD, light(-0.1, 0.1, 0.5)), 2),
        lambda: restarts(worst_of(pgd(0.2, 2), light(-0.3, 0.2, 0.6)), 2),
    ),
}


def programs():
    """How many compiled programs the engine holds."""
    return _compiled._cache_size() + _whole._cache_size()


@pytest.mark.parametrize("name", BUILDERS)
def test_new_numbers_and_new_keys_do_not_recompile(name):
    first, *others = BUILDERS[name]
    first()(KEY, linear(W), X, Y)
    once = programs()
    results = [build()(jax.random.key(seed), linear(W), X * 0.9, 1 - Y) for seed, build in enumerate(others)]
    assert programs() == once
    assert not any(np.any(np.isnan(result.value)) for result in results)


# --- victims --------------------------------------------------------------------------------------------------------


def test_new_weights_do_not_recompile():
    traces = []

    def counted(w, x):
        traces.append(x.shape)
        return linear_logits(w, x)

    for seed in range(3):
        PGD(KEY, normalize(Partial(counted, weights(seed)), mean=seed / 10, std=1.0), X, Y)
        if seed == 0:
            once, traced = programs(), len(traces)
    assert programs() == once and len(traces) == traced > 0


class Model:
    """Weights that are trained in place, seen by a bound method and by a closure."""

    def __init__(self):
        self.w = W

    def predict(self, x):
        return linear_logits(self.w, x)


MODEL = Model()


@pytest.mark.parametrize("function", [MODEL.predict, lambda x: MODEL.predict(x)], ids=["method", "closure"])
def test_changed_weights_are_seen_by_the_same_function_and_do_not_recompile(function):
    MODEL.w = W
    before = PGD(KEY, function, X, Y)
    once = programs()
    MODEL.w = -W
    after = PGD(KEY, function, X, Y)
    assert programs() == once
    for result, w in ((before, W), (after, -W)):
        expected = PGD(KEY, linear(w), X, Y)
        np.testing.assert_allclose(result.value, expected.value, rtol=1e-5)
    assert np.any(np.asarray(before.value) != np.asarray(after.value))


def kept():
    """How many objects there are, without the functions that the shape checks of tests make anew and keep."""
    gc.collect()
    return sum(type(o) not in (types.FunctionType, dict) for o in gc.get_objects())


def test_two_hundred_fresh_functions_take_one_compilation_and_leave_nothing_behind():
    def fresh(w):
        return lambda x: linear_logits(w, x)

    PGD(KEY, fresh(W), X, Y)
    once, objects = programs(), None
    for i in range(200):
        state = PGD.init(KEY, fresh(W * (1 + i / 1000)), X, Y)
        if i == 20:
            objects = kept()
    assert programs() <= once + 1, "`init` is one program more"
    assert kept() < objects + 500
    assert state.step == 0
    last = PGD(KEY, fresh(-W), X, Y)
    np.testing.assert_allclose(last.value, PGD(KEY, linear(-W), X, Y).value, rtol=1e-5)


def test_another_function_over_the_same_arrays_is_another_program():
    one, other = (lambda x: linear_logits(W, x)), (lambda x: -linear_logits(W, x))
    values = [PGD(KEY, function, X, Y).value for function in (one, other)]
    np.testing.assert_allclose(values[1], PGD(KEY, linear(-W), X, Y).value, rtol=1e-5)
    assert np.any(np.asarray(values[0]) != np.asarray(values[1]))


def test_a_flax_model_takes_its_weights_as_arguments_or_closes_over_them():
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(x.reshape(len(x), -1))

    model = Net()
    variables = [model.init(jax.random.key(seed), X) for seed in range(2)]
    arguments = [PGD(KEY, classifier(model, v), X, Y).value for v in variables]
    once = programs()
    closures = [PGD(KEY, lambda x, v=v: model.apply(v, x), X, Y).value for v in variables]
    assert np.any(np.asarray(closures[0]) != np.asarray(closures[1]))
    np.testing.assert_allclose(arguments, closures, rtol=1e-5)
    first = programs() - once
    PGD(KEY, lambda x: model.apply(variables[1], x), X, Y)
    PGD(KEY, classifier(Net(), variables[1]), X, Y)
    assert programs() == once + first


# --- many numbers in one call ---------------------------------------------------------------------------------------


def test_five_radii_in_one_call_equal_five_calls():
    def attack(radius):
        return pgd(radius, 4)(KEY, linear(W), X, Y)

    radii = jnp.array([0.0, 0.05, 0.1, 0.2, 0.4])
    together = jax.vmap(attack)(radii)
    once = None
    for i, radius in enumerate(radii):
        alone = attack(float(radius))
        np.testing.assert_allclose(together.x[i], alone.x, atol=1e-6)
        np.testing.assert_allclose(together.value[i], alone.value, rtol=1e-5)
        once = programs() if once is None else once
    assert programs() == once
    assert np.all(np.diff(together.value, axis=0) > 0)


def test_five_ranges_in_one_call_equal_five_calls():
    def attack(high):
        space = attribute("brightness", -0.1, high)
        return make_attack(space, num_steps=3)(KEY, linear(W), X, Y).value

    highs = jnp.array([0.0, 0.1, 0.2, 0.3, 0.4])
    together = jax.jit(jax.vmap(attack))(highs)
    np.testing.assert_allclose(together, jnp.stack([attack(float(high)) for high in highs]), rtol=1e-5)


# --- no unrolling ---------------------------------------------------------------------------------------------------

GROWING = {
    "pgd": lambda n: pgd(0.1, n),
    "apgd": lambda n: apgd_ce(0.1, n),
    "spa": lambda n: joint(0.1, -0.1, 0.1, 1.0, n),
    "cw": lambda n: cw(num_steps=n, search_steps=2),
    "fab": lambda n: fab(num_steps=n),
}


def lowered(attack, victim, x, y):
    predict = as_victim(victim, x, inline=False)
    return _whole.lower(attack, predict, checked_keys(KEY, len(x)), checked_examples(x, y), kinds=0)


@pytest.mark.parametrize("name", GROWING)
def test_programs_do_not_grow_with_the_number_of_steps(name):
    lengths = [len(lowered(GROWING[name](n), linear(W), X, Y).as_text()) for n in (10, 100)]
    assert abs(lengths[1] - lengths[0]) < 2000


def test_the_host_compiles_a_step_once_and_repeats_it():
    predict = Partial(linear_logits, W)
    for num_steps in (3, 30):
        before = _compiled._cache_size()
        pgd(0.123, num_steps, rel_step_size=0.5)(KEY, predict, X, Y)
        assert _compiled._cache_size() - before <= 4, "start, judge, a step, finish"
    assert _whole._cache_size() == WHOLE_BEFORE


@pytest.mark.parametrize(
    ("make", "compiled"),
    [
        (lambda num_steps: pgd(0.124, num_steps), 1),
        (lambda num_steps: pgd(0.124, num_steps, random_start=num_steps == 5, loss="margin"), 1),
        (lambda num_steps: apgd_ce(0.124, num_steps), 4),
    ],
)
def test_the_start_alone_is_compiled_for_another_length_unless_the_solver_counts_steps(make, compiled):
    predict = Partial(linear_logits, W)
    make(3)(KEY, predict, X, Y)
    before = _compiled._cache_size()
    make(5)(KEY, predict, X, Y)
    assert _compiled._cache_size() - before == compiled


WHOLE_BEFORE = _whole._cache_size()


def test_a_step_is_one_program_for_all_stages():
    attack = joint(0.2, -0.2, 0.1, 0.5)
    state = attack.step(attack.init(KEY, linear(W), X, Y), linear(W), X, Y)
    once = programs()
    for _ in range(1, attack.num_steps):
        state = attack.step(state, linear(W), X, Y)
    assert programs() == once and state.step == attack.num_steps


@pytest.mark.parametrize("name", ["pgd", "apgd", "spa"])
def test_memory_does_not_grow_with_the_number_of_steps(name):
    x, y = images(batch=32, size=(8, 8, 3)), labels(32)
    victim = linear(weights(size=(8, 8, 3)))

    def temporary_bytes(num_steps):
        compiled = lowered(GROWING[name](num_steps), victim, x, y).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporary_bytes(10), temporary_bytes(100)
    assert short > x.nbytes, "the measure should see the attack's images"
    assert long <= short + 4096


def test_rules_that_were_made_alike_are_one_structure():
    def structure(radius, *made):
        return jax.tree.structure(make_attack(linf(radius), solver=projected_gradient(radius, rule(*made))))

    assert structure(0.1, optax.adam, 0.1) == structure(0.2, optax.adam, 0.1) != structure(0.1, optax.adam, 0.2)


PROGRAM = """
import sys
for name in ("flax", "orbax", "tensorflow_datasets", "grain", "matplotlib", "sklearn", "tensorflow", "ml_collections"):
    sys.modules[name] = None
import jax, jax.numpy as jnp
import spa_jax
predict = lambda x: jnp.stack([jnp.sum(x, (1, 2, 3)), -jnp.sum(x, (1, 2, 3))], -1)
result = spa_jax.pgd(0.1, 2)(jax.random.key(0), predict, jnp.full((2, 4, 4, 1), 0.5), jnp.array([0, 1]))
assert result.x.shape == (2, 4, 4, 1) and abs(float(result.x[0].max()) - 0.4) < 1e-6
print("attacked", *sorted(name for name in sys.modules if name.split(".")[0] in ("flax", "orbax")))
"""


def test_the_core_imports_and_attacks_without_any_of_the_heavy_packages():
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["attacked", "flax", "orbax"]
