"""One compiled program serves all numbers; its memory does not grow with steps; the core needs jax and optax alone."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from spa_jax import (
    apgd_ce,
    attribute,
    attribute_attack,
    cw,
    linf,
    make_attack,
    pgd,
    projected_gradient,
    restarts,
    spa,
    victim,
    with_fields,
    worst_of,
)
from spa_jax.engine import _run
from spa_jax.inputs import checked_keys
from tests.victims import images, labels, linear, linear_logits, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

X, Y, W = images(), labels(), weights()


def light(low, high, steps):
    return with_fields(attribute_attack("brightness", low, high, num_steps=2, step_size=steps), unroll=1)


def joint(radius, low, high, step_size):
    return spa(radius, [{"name": "brightness", "low": low, "high": high}], 2, step_size, unroll=1)


BUILDERS = {
    "pgd": (
        lambda: pgd(0.1, 2, unroll=1),
        lambda: pgd(0.3, 2, step_size=0.2, unroll=1),
        lambda: pgd(np.float64(0.3), 2, unroll=1),
        lambda: pgd(1, 2, step_size=1, unroll=1),
    ),
    "apgd": (lambda: apgd_ce(0.1, 6, unroll=1), lambda: apgd_ce(0.5, 6, unroll=1)),
    "attribute": (lambda: light(-0.1, 0.2, 0.5), lambda: light(-1, 1, 0.3)),
    "spa": (lambda: joint(0.1, -0.1, 0.1, 0.5), lambda: joint(0.3, -0.3, 0.2, 0.1)),
    "cw": (lambda: cw(num_steps=3, search_steps=2), lambda: cw(0.5, 3, 2, 0.1, 0.02, 1)),
    "combined": (
        lambda: restarts(worst_of(pgd(0.1, 2, unroll=1), light(-0.1, 0.1, 0.5)), 2),
        lambda: restarts(worst_of(pgd(0.2, 2, unroll=1), light(-0.3, 0.2, 0.1)), 2),
    ),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_new_numbers_and_new_keys_do_not_recompile(name):
    traces = []

    def counted(keys, x):
        traces.append(x.shape)
        return linear_logits(W, keys, x)

    first, *others = BUILDERS[name]
    first()(jax.random.key(0), counted, X, Y)
    once = len(traces)
    results = [build()(jax.random.key(seed), counted, X * 0.9, 1 - Y) for seed, build in enumerate(others)]
    assert len(traces) == once > 0
    assert all(np.all(np.isfinite(result.value)) for result in results)


def test_new_weights_do_not_recompile():
    traces = []

    def counted(w, x):
        traces.append(x.shape)
        return linear_logits(w, None, x)

    attack = pgd(0.1, 2, unroll=1)
    for seed in range(3):
        attack(jax.random.key(0), victim(counted, weights(seed), mean=seed / 10), X, Y)
        if seed == 0:
            once = len(traces)
    assert len(traces) == once


def test_five_radii_in_one_call_equal_five_calls():
    traces = []

    def counted(keys, x):
        traces.append(x.shape)
        return linear_logits(W, keys, x)

    def attack(radius):
        return pgd(radius, 4, unroll=1)(jax.random.key(0), counted, X, Y)

    radii = jnp.array([0.0, 0.05, 0.1, 0.2, 0.4])
    together = jax.vmap(attack)(radii)
    count = len(traces)
    for i, radius in enumerate(radii):
        alone = attack(float(radius))
        np.testing.assert_allclose(together.x[i], alone.x, atol=1e-6)
        np.testing.assert_allclose(together.value[i], alone.value, rtol=1e-5)
    assert len(traces) <= 2 * count
    assert np.all(np.diff(together.value, axis=0) > 0)


def test_five_ranges_in_one_call_equal_five_calls():
    def attack(high):
        space = attribute("brightness", -0.1, high)
        return make_attack(space, num_steps=3, unroll=1)(jax.random.key(0), linear(W), X, Y).value

    highs = jnp.array([0.0, 0.1, 0.2, 0.3, 0.4])
    together = jax.jit(jax.vmap(attack))(highs)
    np.testing.assert_allclose(together, jnp.stack([attack(float(high)) for high in highs]), rtol=1e-5)


@pytest.mark.parametrize(
    "build",
    [lambda n: pgd(0.1, n, unroll=1), lambda n: apgd_ce(0.1, n, unroll=1), lambda n: joint(0.1, -0.1, 0.1, 0.1)],
    ids=["pgd", "apgd", "spa"],
)
def test_memory_does_not_grow_with_the_number_of_steps(build):
    x, y = images(batch=32, size=(8, 8, 3)), labels(32)
    predict = Partial(linear_logits, weights(size=(8, 8, 3)))

    def temporary_bytes(num_steps):
        attack = with_fields(build(num_steps), num_steps=num_steps)
        compiled = _run.lower(attack, checked_keys(jax.random.key(0), 32), predict, x, y).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporary_bytes(10), temporary_bytes(100)
    assert short > x.nbytes, "the measure should see the attack's images"
    assert long <= short + 4096


def test_a_rule_may_be_new_as_long_as_the_object_is_the_same():
    """Optax rules are structure: reuse the object, not a fresh one of the same form."""
    assert hash(jax.tree.structure(make_attack(linf(0.1), solver=projected_gradient(0.1)))) == hash(
        jax.tree.structure(make_attack(linf(0.2), solver=projected_gradient(0.2)))
    )


PROGRAM = """
import sys
for name in ("flax", "orbax", "tensorflow_datasets", "grain", "matplotlib", "sklearn", "tensorflow", "ml_collections"):
    sys.modules[name] = None
import jax, jax.numpy as jnp
import spa_jax
predict = lambda keys, x: jnp.stack([jnp.sum(x, (1, 2, 3)), -jnp.sum(x, (1, 2, 3))], -1)
result = spa_jax.pgd(0.1, 2)(jax.random.key(0), predict, jnp.full((2, 4, 4, 1), 0.5), jnp.array([0, 1]))
assert result.x.shape == (2, 4, 4, 1) and abs(float(result.x[0].max()) - 0.4) < 1e-6
print("attacked", *sorted(name for name in sys.modules if name.split(".")[0] in ("flax", "orbax")))
"""


def test_the_core_imports_and_attacks_without_any_of_the_heavy_packages():
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["attacked", "flax", "orbax"]
