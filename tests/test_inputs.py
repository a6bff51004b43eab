"""Attacks called wrongly, and victims without usable logits: each is one clear error with the value and the rule."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import attribute_attack, check_logits, cw, pgd, restarts, spa, worst_of
from spa_jax.inputs import checked_images, checked_keys, checked_labels, require_number
from tests.victims import images, labels, linear, linear_logits, weights

KEY = jax.random.key(0)
X, Y, VICTIM = images(), labels(), linear(weights())
ATTACK = pgd(0.1, 2, unroll=1)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X * 255, r"x\.max\(\)=255: pixels must lie in \[0, 1\].*normalisation into the victim"),
        (X - 0.5, r"x\.min\(\)=-0\.5, x\.max\(\)=0\.5: pixels must lie in \[0, 1\]"),
        ((X * 255).astype(jnp.uint8), r"x\.dtype=uint8 must be floating.*x / 255"),
        (X[0], r"x\.shape=\(4, 4, 1\) must have rank 4"),
        (X[..., 0], r"x\.shape=\(4, 4, 4\) must have rank 4, \[batch, height, width, channels\]"),
        (X[:0], r"x\.shape=\(0, 4, 4, 1\) must not be empty"),
        (X.at[1, 2, 3, 0].set(jnp.nan), r"x must not hold NaN"),
        (X.at[1, 2, 3, 0].set(jnp.inf), r"x\.max\(\)=inf"),
        (X.tolist(), r"x=list must be an array of images"),
    ],
)
def test_bad_images(x, message):
    with pytest.raises(ValueError, match=message):
        ATTACK(KEY, VICTIM, x, Y)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (Y.at[2].set(2), r"y\.max\(\)=2: labels must lie in \[0, 1\] for 2 classes"),
        (Y.at[2].set(-1), r"y\.min\(\)=-1.*labels must lie in \[0, 1\]"),
        (Y[:3], r"y\.shape=\(3,\) must be \(4,\), one label per image"),
        (jax.nn.one_hot(Y, 2), r"y\.dtype=float32 must be an integer dtype"),
        (jax.nn.one_hot(Y, 2, dtype=jnp.int32), r"y\.shape=\(4, 2\) must be \(4,\)"),
    ],
)
def test_bad_labels(y, message):
    with pytest.raises(ValueError, match=message):
        ATTACK(KEY, VICTIM, X, y)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, r"key=0 must be a key: make one with jax\.random\.key\(seed\)"),
        (None, r"key=None must be a key"),
        (jnp.zeros(3), r"must be a key"),
        (jax.random.split(KEY, 3), r"key\.shape=\(3,\) must be \(\) or \(4,\), one key per image"),
    ],
)
def test_bad_keys(key, message):
    with pytest.raises(ValueError, match=message):
        ATTACK(key, VICTIM, X, Y)


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (None, r"predict=None must be a function \(keys, images\) -> logits"),
        (jnp.zeros((4, 2)), r"must be a function \(keys, images\) -> logits"),
        (lambda keys, x: jnp.sum(x), r"predict\(keys, x\) has shape \(\), must be logits \[b, k\] with b=4"),
        (lambda keys, x: x, r"predict\(keys, x\) has shape \(4, 4, 4, 1\), must be logits"),
        (lambda keys, x: VICTIM(keys, x)[:2], r"predict\(keys, x\) has shape \(2, 2\)"),
        (lambda keys, x: (VICTIM(keys, x), x), r"must be logits \[b, k\]"),
        (lambda keys, x: VICTIM(keys, x).argmax(-1), r"predict\(keys, x\) has shape \(4,\)"),
        (lambda keys, x: VICTIM(keys, x).argmax(-1)[:, None], r"predict\(keys, x\) has dtype int32"),
    ],
)
def test_bad_victims(predict, message):
    with pytest.raises(ValueError, match=message):
        ATTACK(KEY, predict, X, Y)


@pytest.mark.parametrize("attack", [attribute_attack("hue"), spa(0.1, ["saturation"])], ids=["attribute", "spa"])
def test_a_hue_edit_of_a_grey_image(attack):
    with pytest.raises(ValueError, match=r"image\.shape=\(4, 4, 1\) must be \[h, w, 3\]"):
        attack(KEY, VICTIM, X, Y)


@pytest.mark.parametrize("attack", [cw(), restarts(ATTACK, 2), worst_of(ATTACK), spa(0.1)], ids=type)
def test_every_kind_of_attack_checks_its_input(attack):
    with pytest.raises(ValueError, match=r"pixels must lie in \[0, 1\]"):
        attack(KEY, VICTIM, X * 2, Y)


# --- what is accepted -----------------------------------------------------------------------------------------------


def test_rounding_errors_of_images_are_cut_off():
    x = X.at[0, 0, 0, 0].set(1 + 5e-7).at[0, 0, 1, 0].set(-5e-7)
    checked = checked_images(x)
    assert checked.min() == 0 and checked.max() == 1
    np.testing.assert_array_equal(checked_images(X), X)


def test_numpy_arrays_and_raw_keys_are_welcome():
    typed = ATTACK(KEY, VICTIM, X, Y)
    raw = ATTACK(jax.random.PRNGKey(0), VICTIM, np.asarray(X), np.asarray(Y, np.int64))
    np.testing.assert_array_equal(typed.x, raw.x)


def test_labels_may_have_any_integer_type():
    for dtype in (np.uint8, np.int32, np.int64):
        assert checked_labels(np.array([0, 1], dtype), 2).dtype == jnp.int32


def test_a_single_key_gives_every_example_its_own():
    keys = jax.random.key_data(checked_keys(KEY, 6))
    assert len({tuple(key) for key in np.asarray(keys)}) == 6
    given = jax.random.split(KEY, 6)
    assert checked_keys(given, 6) is given


def test_inputs_are_checked_inside_of_another_program_where_they_are_known():
    @jax.jit
    def inside(radius, scale):
        return pgd(radius, 2, unroll=1)(KEY, VICTIM, X * scale if scale is not None else bright, Y).value

    bright = X * 2
    with pytest.raises(ValueError, match=r"x\.max\(\)=2"):
        inside(0.1, None)
    assert inside(0.1, 0.5).shape == (4,)


@pytest.mark.parametrize("value", ["0.1", None, [0.1, 0.2], np.array([0.1, 0.2]), float("nan"), -1.0])
def test_a_number_must_be_a_number_that_keeps_the_rule(value):
    with pytest.raises(ValueError, match=r"radius=.*0 or larger"):
        require_number("radius", value, "0 or larger", lambda r: r >= 0)


def test_a_number_of_any_type_becomes_the_same_leaf():
    assert [type(require_number("r", r, "any", lambda r: True)) for r in (1, 1.0, np.float64(1))] == [float] * 3


def shaken(keys, x):
    """A stochastic victim: every image gets noise of its own before the linear one."""
    return VICTIM(None, x + jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys))


def test_good_logits_pass_silently():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_logits(VICTIM, None, X)
        check_logits(shaken, jax.random.split(KEY, 4), X)


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda keys, x: jax.nn.softmax(linear_logits(weights(), keys, x)), r"logits sum to 1.*remove its softmax"),
        (lambda keys, x: linear_logits(weights(), keys, x).at[1, 0].set(jnp.nan), r"logits must be finite"),
        (lambda keys, x: linear_logits(weights(), keys, x).at[1, 0].set(-jnp.inf), r"logits must be finite"),
        (lambda keys, x: linear_logits(weights(), keys, x)[:, 0], r"logits\.shape=\(4,\) must be \(b, k\) with b=4"),
        (lambda keys, x: linear_logits(weights(), keys, x)[1:], r"logits\.shape=\(3, 2\)"),
    ],
)
def test_unusable_logits_are_refused(predict, message):
    with pytest.raises(ValueError, match=message):
        check_logits(predict, None, X)


def test_saturated_logits_are_warned_of():
    with pytest.warns(UserWarning, match=r"saturated.*use dlr or margin"):
        check_logits(lambda keys, x: jnp.sign(linear_logits(weights(), keys, x)) * 60, None, X)
