"""Attacks on the expectation over a randomised victim's draws, one draw after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import apgd_ce, attack_from_config, cw, pgd, randomized, restarts, uap, worst_of
from spa_jax.attacks.base import JUDGE, STEP, Inline, stream
from spa_jax.losses import cross_entropy
from spa_jax.types import Example
from tests.analytic_victims import SIZE, images, linear, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCH, DRAWS = 5, 4
KEY = jax.random.key(3)
X, Y, W = images(low=0.3, high=0.7, batch=BATCH), jnp.arange(BATCH) % 2, weights()


@randomized
def torn(keys, x):
    """A victim whose logits bend, and which meets other noise in each draw."""
    noise = jax.vmap(lambda key: jax.random.normal(key, SIZE))(keys)
    return jnp.sin(3 * linear(W)(x + 0.3 * noise))


def folded(keys, i):
    return jax.vmap(jax.random.fold_in, (0, None))(keys, i)


def problem(attack):
    return attack._problem(0, jax.random.split(KEY, BATCH), Inline(torn).predict, Example(X, Y))


def test_value_logits_and_gradient_are_means_over_the_draws():
    attack, keys = pgd(0.1, 1).averaged(DRAWS), stream(jax.random.split(KEY, BATCH), STEP)
    v = 0.05 * jnp.sign(images(low=-1, high=1, batch=BATCH))
    evaluation, gradient = problem(attack).climb(v, keys)

    def loss(v, i):
        logits = torn(folded(keys, i), jnp.clip(X + v, 0, 1))
        return jnp.sum(cross_entropy(logits, Example(X, Y))), logits

    each = [jax.value_and_grad(loss, has_aux=True)(v, i) for i in range(DRAWS)]
    np.testing.assert_allclose(gradient, np.mean([own for _, own in each], axis=0), rtol=1e-4, atol=1e-5)
    logits = np.mean([logits for (_, logits), _ in each], axis=0)
    np.testing.assert_allclose(evaluation.logits, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jnp.sum(evaluation.value), np.mean([total for (total, _), _ in each]), rtol=1e-4)
    np.testing.assert_array_equal(evaluation.success, np.argmax(logits, axis=-1) != Y)
    judged = problem(attack).evaluate(v, keys)
    np.testing.assert_allclose(judged.value, evaluation.value, rtol=1e-5)


def test_what_is_not_finite_is_counted_over_all_draws_and_is_no_success():
    @randomized
    def sometimes(keys, x):
        lost = jax.vmap(lambda key: jax.random.uniform(key) < 0.5)(keys)
        return jnp.where(lost[:, None], jnp.nan, torn(keys, x))

    attack, keys = pgd(0.1, 1).averaged(8), stream(jax.random.split(KEY, BATCH), JUDGE)
    inner = attack._problem(0, keys, sometimes, Example(X, Y))
    evaluation = inner.evaluate(jnp.zeros_like(X), keys)
    lost = sum(np.isnan(sometimes(folded(keys, i), X)[:, 0]).astype(int) for i in range(8))
    np.testing.assert_array_equal(evaluation.nonfinite.answers, lost)
    assert lost.any()
    assert not np.any(np.asarray(evaluation.success)[lost > 0])


@pytest.mark.parametrize("attack", [pgd(0.1, 3), apgd_ce(0.1, 4), restarts(pgd(0.1, 2), 2)])
def test_a_victim_that_draws_nothing_is_attacked_as_ever(attack):
    plain = attack(KEY, linear(W), X, Y)
    np.testing.assert_array_equal(attack.averaged(DRAWS)(KEY, linear(W), X, Y).x, plain.x)


def test_from_python_and_inside_a_compiled_program_it_is_the_same():
    attack = pgd(0.1, 3).averaged(DRAWS)
    hosted = attack(KEY, torn, X, Y)
    compiled = jax.jit(lambda x: attack(KEY, torn, x, Y).x)(X)
    np.testing.assert_allclose(compiled, hosted.x, atol=1e-6)
    assert float(jnp.max(jnp.abs(hosted.x - X))) <= 0.1 + 1e-6


def test_more_draws_find_what_single_draws_miss():
    """The waves of single draws cancel in the expectation, which is linear."""

    @randomized
    def wavy(keys, x):
        logits = linear(W)(x + jax.vmap(lambda key: jax.random.normal(key, SIZE))(keys))
        return logits + jnp.sin(6 * logits)

    def reached(attack):
        found = attack(KEY, wavy, X, Y).x - X
        away = jnp.where(Y == 0, 1.0, -1.0)[:, None, None, None] * W[None]
        return float(jnp.mean(jnp.sign(found) == jnp.sign(away)))

    attack = pgd(0.05, 3, random_start=False, keep="last", loss="margin")
    assert reached(attack.averaged(200)) > 0.95 > 0.8 > reached(attack)


def test_the_gradient_of_many_draws_takes_the_memory_of_one():
    wide = jax.random.normal(jax.random.key(3), (SIZE[0] * SIZE[1], 6400))

    @randomized
    def deep(keys, x):
        seen = (x + jax.vmap(lambda key: jax.random.normal(key, SIZE))(keys)).reshape(len(x), -1)
        return jnp.tanh(seen @ wide)[:, :3] ** 2 + jnp.sum(jnp.sin(seen @ wide), axis=1, keepdims=True)

    def temporary(draws):
        attack = pgd(0.1, 1, keep="last").averaged(draws)
        step = jax.jit(lambda x: attack(KEY, deep, x, Y).x)
        return step.lower(X).compile().memory_analysis().temp_size_in_bytes

    assert temporary(16) < 1.3 * temporary(2)


def test_shared_variables_and_combined_attacks_are_averaged_too():
    shared = uap(0.1).averaged(DRAWS)(KEY, torn, X, Y)
    assert shared.variables.shape == X.shape[1:]
    both = worst_of(pgd(0.1, 2), apgd_ce(0.1, 3)).averaged(DRAWS)
    assert [attack.draws for attack in both.attacks] == [DRAWS, DRAWS]


def test_configs_ask_for_draws():
    assert attack_from_config({"name": "pgd", "radius": 0.1, "draws": 20}).draws == 20
    assert attack_from_config({"name": "pgd", "radius": 0.1, "draws": 20, "restarts": 2}).attack.draws == 20


@pytest.mark.parametrize(
    ("attack", "draws", "message"),
    [(pgd(0.1), 0, "draws=0 must be an integer of at least 1"), (cw(), 2, "MinimalNorm has no draws")],
)
def test_what_cannot_be_averaged_is_refused(attack, draws, message):
    with pytest.raises(ValueError, match=message):
        attack.averaged(draws)
