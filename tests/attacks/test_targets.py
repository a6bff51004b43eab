"""A targeted attack at several classes against every class tried by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from spa_jax import apgd_ce, apgd_t, multi_targeted, pgd, randomized, restarts, universal
from spa_jax.attacks.base import RUN, Hosted, stream
from spa_jax.attacks.iterative import make_attack
from spa_jax.losses import dlr, margin
from spa_jax.spaces import linf
from spa_jax.validation import checked_keys
from tests.analytic_victims import SIZE, images, mlp, strongest
from tests.attack_cases import KEY, assert_consistent, judged

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCH, CLASSES, RADIUS = 40, 5, 0.06
X = images(batch=BATCH)
PLANES = jnp.asarray(np.random.default_rng(5).normal(size=(CLASSES, *SIZE)), jnp.float32)


def planes(w, x):
    return jnp.tensordot(x - 0.5, w, axes=((1, 2, 3), (1, 2, 3)))


VICTIM = Partial(planes, PLANES)
Y = jnp.argmax(VICTIM(X), -1)
KEYS = checked_keys(KEY, BATCH)


def breakable(x=X, y=Y, radius=RADIUS):
    """For every class, whether some noise makes a linear victim prefer it to the label, [classes, b]."""
    w = np.asarray(PLANES, np.float64)
    found = []
    for target in range(CLASSES):
        g = w[target] - w[np.asarray(y)]
        at = strongest("linf", g, x, radius)
        found.append(np.sum(g * (at - 0.5), axis=(1, 2, 3)) > 0)
    return np.array(found)


def test_every_image_falls_that_some_class_can_break():
    expected = breakable().any(axis=0)
    assert 0.3 < expected.mean() < 0.9
    found = multi_targeted(pgd(RADIUS, 20, loss="margin"), CLASSES - 1)(KEY, VICTIM, X, Y)
    np.testing.assert_array_equal(found.success, expected)
    assert_consistent(found, VICTIM, Y, margin)
    np.testing.assert_array_equal(apgd_t(RADIUS, 20)(KEY, VICTIM, X, Y).success, expected)
    one = multi_targeted(pgd(RADIUS, 20, loss="margin"), 1)(KEY, VICTIM, X, Y).success
    assert np.all(one <= expected) and one.sum() < expected.sum()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_apgd_t_is_at_least_as_strong_as_apgd(norm):
    victim, radius = mlp(classes=6), {"linf": 0.1, "l2": 0.35, "l1": 0.9}[norm]
    y = jnp.argmax(victim(X), -1)
    found = apgd_t(radius, 20, norm)(KEY, victim, X, y)
    assert_consistent(found, victim, y, dlr)
    alone = np.asarray(apgd_ce(radius, 20, norm)(KEY, victim, X, y).success)
    assert np.asarray(found.success).sum() >= alone.sum() > 0.2 * BATCH


def test_targets_are_the_likeliest_other_classes_in_turn():
    attack = multi_targeted(pgd(RADIUS, 3), 3)
    targets = np.asarray(attack.init(KEY, VICTIM, X, Y).targets)
    logits = np.asarray(VICTIM(X), np.float64)
    logits[np.arange(BATCH), Y] = -np.inf
    np.testing.assert_array_equal(targets, np.argsort(-logits, axis=-1)[:, :3])


def test_another_wrong_class_than_the_target_is_a_success():
    """Class 3 is never reached, but on the way to it every image is taken for class 2."""

    def victim(x):
        light = 4 * (x.mean((1, 2, 3)) - 0.5)
        return jnp.stack([-light, light - 1, light, light - 0.1], axis=-1)

    x, y = jnp.full((4, *SIZE), 0.45, jnp.float32), jnp.zeros(4, jnp.int32)
    aim = jnp.full(4, 3, jnp.int32)
    assert not pgd(0.1)(KEY, victim, x, y, aim).success.any()
    assert pgd(0.1).aimed()(KEY, victim, x, y, aim).success.all()
    assert multi_targeted(pgd(0.1), 1)(KEY, victim, x, y).success.all()


@pytest.mark.parametrize("k", [2, 9])
def test_called_compiled_and_stepped_it_finds_the_same(k):
    attack = multi_targeted(restarts(pgd(RADIUS, 4), 2), k)
    called = attack(KEYS, VICTIM, X, Y)
    state = attack.init(KEYS, VICTIM, X, Y)
    for _ in range(attack.num_steps):
        state = attack.step(state, VICTIM, X, Y)
    for found in (jax.jit(attack)(KEYS, VICTIM, X, Y), attack.result(state, VICTIM, X, Y)):
        np.testing.assert_array_equal(found.success, called.success)
        np.testing.assert_allclose(found.x, called.x, atol=1e-6)
        np.testing.assert_allclose(found.value, called.value, rtol=1e-4, atol=1e-5)


def test_what_has_fallen_is_not_attacked_at_the_next_target(monkeypatch):
    attack, sizes = multi_targeted(pgd(RADIUS, 4, loss="margin"), CLASSES - 1), []
    standing = []
    for i in range(CLASSES - 1):
        before = multi_targeted(pgd(RADIUS, 4, loss="margin"), i + 1)(KEYS, VICTIM, X, Y)
        standing.append(int(np.sum(~before.success)))
    call = Hosted.call

    def counted(self, attack, method, *arguments, **options):
        sizes.extend([len(arguments[-1].image)] if method == "advance" else [])
        return call(self, attack, method, *arguments, **options)

    monkeypatch.setattr(Hosted, "call", counted)
    attack(KEYS, VICTIM, X, Y)
    expected = [BATCH, *(16 if count <= 16 else 32 if count <= 32 else BATCH for count in standing[:-1])]
    assert sizes[::4] == expected and expected[-1] < BATCH


def test_an_image_does_not_depend_on_its_batch():
    attack = multi_targeted(pgd(RADIUS, 4), 3)
    whole = attack(KEYS, VICTIM, X, Y)
    part = attack(KEYS[10:14], VICTIM, X[10:14], Y[10:14])
    np.testing.assert_allclose(part.x, whole.x[10:14], atol=1e-6)
    np.testing.assert_array_equal(part.success, whole.success[10:14])


def test_a_victim_that_draws_is_attacked_at_every_target():
    """A success may be luck there: the strongest of all targets counts, and is judged with fresh draws."""

    def noisy(keys, x):
        noise = jax.vmap(lambda key, image: jax.random.normal(key, image.shape))(keys, x)
        return planes(PLANES, x + 0.02 * noise)

    victim, attack = randomized(noisy), pgd(RADIUS, 4, loss="margin")
    found = multi_targeted(attack, 3)(KEYS, victim, X, Y)
    logits = np.asarray(VICTIM(X), np.float64)
    logits[np.arange(BATCH), Y] = -np.inf
    likely = np.argsort(-logits, axis=-1)
    runs = [attack.aimed()(stream(KEYS, RUN, i), victim, X, Y, jnp.asarray(likely[:, i])) for i in range(3)]
    best = np.max([judged(run.x, VICTIM, Y, loss=margin).value for run in runs], axis=0)
    reached = np.asarray(judged(found.x, VICTIM, Y, loss=margin).value)
    assert np.mean(np.abs(reached - best) < 0.5) > 0.9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: multi_targeted(pgd(0.1), 0), "k=0"),
        (lambda: multi_targeted(make_attack(linf(0.1), lift=universal)), "multi_targeted picks per example"),
        (lambda: multi_targeted(pgd(0.1, 2))(KEY, VICTIM, X, Y, Y), "call it without `target`"),
        (lambda: apgd_t(0.1, 2)(KEY, mlp(), X, Y % 3), "classes=3: the loss targeted dlr needs at least 4"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
