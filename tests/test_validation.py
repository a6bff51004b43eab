"""Attacks called wrongly, and victims without usable logits: each is one clear error with the value and the rule."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from spa_jax import apgd_ce, attribute_attack, check_logits, cw, fgsm, in_chunks, pgd, restarts, spa, worst_of
from spa_jax.spaces import linf
from spa_jax.validation import checked_examples, checked_keys, require_number
from tests.analytic_victims import images, labels, linear, linear_logits, weights

KEY = jax.random.key(0)
X, Y, VICTIM = images(), labels(), linear(weights())
ATTACK = pgd(0.1, 2)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X * 255, r"images\.max\(\)=255: pixels must lie in \[0, 1\].*normalisation into the victim"),
        (X - 0.5, r"images\.min\(\)=-0\.5, images\.max\(\)=0\.5: pixels must lie in \[0, 1\]"),
        (X * 2 - 1, r"these look like -1\.\.1: take \(x \+ 1\) / 2"),
        ((X * 255).astype(jnp.uint8), r"images\.dtype=uint8 must be floating.*images / 255"),
        (X[0], r"images\.shape=\(4, 4, 1\) must have rank 4"),
        (X[..., 0], r"images\.shape=\(4, 4, 4\) must have rank 4, \[batch, height, width, channels\]"),
        (X[:0], r"images\.shape=\(0, 4, 4, 1\) must not be empty"),
        (X.at[1, 2, 3, 0].set(jnp.nan), r"images must not hold NaN"),
        (X.at[1, 2, 3, 0].set(jnp.inf), r"images\.max\(\)=inf"),
        (X.tolist(), r"images=list must be an array of images"),
        (jnp.zeros((2, 3, 8, 8)), r"images\.shape=\(2, 3, 8, 8\) looks like .*channels, height, width.*moveaxis"),
        (jnp.zeros((2, 1, 28, 28)), r"images\.shape=\(2, 1, 28, 28\) looks like"),
    ],
)
def test_bad_images(x, message):
    with pytest.raises(ValueError, match=message):
        ATTACK(KEY, VICTIM, x, Y)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (Y.at[2].set(2), r"\.max\(\)=2: classes must lie in \[0, 1\] for 2 classes"),
        (Y.at[2].set(-1), r"\.min\(\)=-1.*classes must lie in \[0, 1\]"),
        (np.array([0, 1, 0, 2**32]), r"\.max\(\)=4294967296: classes"),
        (np.array([0, 1, 0, 2**32 + 1], np.uint64), r"\.max\(\)=4294967297: classes"),
        (np.array([0, 1, 0, -1], np.int64), r"\.min\(\)=-1"),
        (Y[:3], r"\.shape=\(3,\) must be \(4,\), one class for each image"),
        (jax.nn.one_hot(Y, 2), r"\.dtype=float32 must be an integer dtype"),
        (jax.nn.one_hot(Y, 2, dtype=jnp.int32), r"\.shape=\(4, 2\) must be \(4,\)"),
        (Y.astype(bool), r"\.dtype=bool must be an integer dtype"),
        (["cat", "dog", "cat", "dog"], r"\.dtype=<U3 must be an integer dtype of class indices"),
        (np.array(["cat", "dog", "cat", None]), r"\.dtype=object must be an integer dtype"),
    ],
)
@pytest.mark.parametrize("name", ["labels", "target"])
def test_bad_labels_and_targets(name, y, message):
    with pytest.raises(ValueError, match=f"{name}{message}"):
        ATTACK(KEY, VICTIM, X, **{"labels": Y, name: y})


def test_labels_may_be_missing_in_no_attack():
    with pytest.raises(ValueError, match=r"labels=None must be"):
        ATTACK(KEY, VICTIM, X, None)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"weight": jnp.ones(3)}, r"weight\.shape=\(3,\) must be \(4,\), one number for each image"),
        ({"weight": 1.0}, r"weight\.shape=\(\) must be \(4,\)"),
        ({"weight": jnp.ones((4, 1))}, r"weight\.shape=\(4, 1\) must be \(4,\)"),
        ({"weight": -jnp.ones(4)}, r"weight\.min\(\)=-1, weight\.max\(\)=-1: weights must be 0 or larger"),
        ({"weight": jnp.full(4, jnp.nan)}, r"weight\.min\(\)=nan"),
        ({"weight": jnp.full(4, jnp.inf)}, r"weight\.max\(\)=inf"),
        ({"reference": jnp.zeros((3, 2))}, r"reference\.shape=\(3, 2\) must be \(4, k\), logits for each image"),
        ({"reference": jnp.zeros(4)}, r"reference\.shape=\(4,\) must be \(4, k\)"),
        ({"reference": 0.0}, r"reference\.shape=\(\) must be \(4, k\)"),
        ({"wieght": jnp.ones(4)}, r"wieght"),
    ],
)
def test_bad_weights_and_references(extra, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ATTACK(KEY, VICTIM, X, Y, **extra)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (0, r"key=0 must be a key: make one with jax\.random\.key\(seed\)"),
        (None, r"key=None must be a key"),
        (jnp.zeros(3), r"must be a key"),
        (jax.random.split(KEY, 3), r"key\.shape=\(3,\) must be \(\) or \(4,\), one key for each image"),
    ],
)
def test_bad_keys(key, message):
    with pytest.raises(ValueError, match=message):
        ATTACK(key, VICTIM, X, Y)


@pytest.mark.parametrize(
    ("victim", "message"),
    [
        (lambda x: jnp.sum(x), r"victim\(images\) has shape \(\), must be logits \[b, k\] with b=4"),
        (lambda x: x, r"victim\(images\) has shape \(4, 4, 4, 1\), must be logits"),
        (lambda x: VICTIM(x)[:2], r"victim\(images\) has shape \(2, 2\)"),
        (lambda x: (VICTIM(x), x), r"must be logits \[b, k\]"),
        (lambda x: VICTIM(x).argmax(-1), r"victim\(images\) has shape \(4,\)"),
        (
            lambda x: VICTIM(x)[:, :1],
            r"victim\(images\) has shape \(4, 1\), must have a logit for each class.*concatenate",
        ),
        (lambda x: VICTIM(x).argmax(-1)[:, None], r"victim\(images\) has dtype int32"),
        (lambda keys, x: VICTIM(x), r"must be a function from images to logits.*randomized"),
    ],
)
def test_bad_victims(victim, message):
    with pytest.raises(ValueError, match=message):
        ATTACK(KEY, victim, X, Y)


@pytest.mark.parametrize("attack", [attribute_attack("hue"), spa(0.1, ["saturation"])], ids=["attribute", "spa"])
def test_a_hue_edit_of_a_grey_image(attack):
    with pytest.raises(ValueError, match=r"image\.shape=\(4, 4, 1\) must be \[h, w, 3\]"):
        attack(KEY, VICTIM, X, Y)


@pytest.mark.parametrize(
    "attack", [cw(), restarts(ATTACK, 2), worst_of(ATTACK), in_chunks(ATTACK, 2), spa(0.1)], ids=type
)
def test_every_kind_of_attack_checks_its_input(attack):
    with pytest.raises(ValueError, match=r"pixels must lie in \[0, 1\]"):
        attack(KEY, VICTIM, X * 2, Y)
    with pytest.raises(ValueError, match=r"pixels must lie in \[0, 1\]"):
        attack.init(KEY, VICTIM, X * 2, Y)


def test_steps_check_the_forms_of_their_input():
    state = ATTACK.init(KEY, VICTIM, X, Y)
    for method in (ATTACK.step, ATTACK.result):
        with pytest.raises(ValueError, match=r"labels\.shape=\(3,\) must be \(4,\)"):
            method(state, VICTIM, X, Y[:3])
        with pytest.raises(ValueError, match=r"images\.shape=\(4, 4, 1\) must have rank 4"):
            method(state, VICTIM, X[0], Y)


@pytest.mark.parametrize("victim", [None, jnp.zeros((4, 2)), "resnet"], ids=["none", "logits", "name"])
def test_a_victim_must_be_a_function(victim):
    """Beside our own error, the annotation says so in these tests."""
    with pytest.raises((ValueError, TypeError), match="victim"):
        ATTACK(KEY, victim, X, Y)


# --- what is accepted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 4, 4, 3), (4, 3, 4, 4), (4, 1, 1, 16), (4, 3, 16, 1), (4, 16, 8, 16)])
def test_shapes_that_may_be_channels_last_are_accepted(shape):
    assert checked_examples(jnp.zeros(shape), Y).image.shape == shape


def test_rounding_errors_of_images_are_cut_off():
    x = X.at[0, 0, 0, 0].set(1 + 5e-7).at[0, 0, 1, 0].set(-5e-7)
    still = ATTACK.scaled(0.0)(KEY, VICTIM, x, Y).x
    np.testing.assert_array_equal(still, jnp.clip(x, 0, 1))
    with pytest.raises(ValueError, match=r"images\.max\(\)=1\.00001"):
        ATTACK(KEY, VICTIM, x.at[0, 0, 0, 0].set(1.00001), Y)


def test_numpy_arrays_and_raw_keys_are_welcome():
    typed = ATTACK(KEY, VICTIM, X, Y)
    raw = ATTACK(jax.random.PRNGKey(0), VICTIM, np.asarray(X), np.asarray(Y, np.int64))
    np.testing.assert_array_equal(typed.x, raw.x)


def test_labels_may_have_any_integer_type():
    for dtype in (np.uint8, np.int32, np.int64):
        examples = checked_examples(X, Y.astype(jnp.uint8), np.asarray(Y, dtype))
        assert examples.label.dtype == examples.target.dtype == jnp.int32


def test_a_single_key_gives_every_example_its_own():
    keys = jax.random.key_data(checked_keys(KEY, 6))
    assert len({tuple(key) for key in np.asarray(keys)}) == 6
    given = jax.random.split(KEY, 6)
    assert checked_keys(given, 6) is given


def test_inputs_are_checked_inside_of_another_program_where_they_are_known():
    @jax.jit
    def inside(radius, scale):
        return pgd(radius, 2)(KEY, VICTIM, X * scale if scale is not None else bright, Y).value

    bright = X * 2
    with pytest.raises(ValueError, match=r"images\.max\(\)=2"):
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
    return VICTIM(x + jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys))


def test_good_logits_pass_silently():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_logits(VICTIM, X)
        check_logits(shaken, X, jax.random.split(KEY, 4))


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda x: jax.nn.softmax(linear_logits(weights(), x)), r"logits sum to 1.*remove its softmax"),
        (lambda x: linear_logits(weights(), x).at[1, 0].set(jnp.nan), r"logits must be finite"),
        (lambda x: linear_logits(weights(), x).at[1, 0].set(-jnp.inf), r"logits must be finite"),
        (lambda x: linear_logits(weights(), x)[:, 0], r"logits\.shape=\(4,\) must be \(b, k\) with b=4"),
        (lambda x: linear_logits(weights(), x)[1:], r"logits\.shape=\(3, 2\)"),
    ],
)
def test_unusable_logits_are_refused(predict, message):
    with pytest.raises(ValueError, match=message):
        check_logits(predict, X)


def test_saturated_logits_are_warned_of():
    with pytest.warns(UserWarning, match=r"saturated.*use dlr or margin"):
        check_logits(lambda x: jnp.sign(linear_logits(weights(), x)) * 60, X)


# --- 64-bit labels of JAX, and probabilities -----------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [2**32, 2**33 + 1, -(2**32), -(2**40) + 1])
@pytest.mark.parametrize("name", ["labels", "target"])
def test_wide_labels_of_jax_are_out_of_range_before_they_are_cast(name, wrong):
    with jax.enable_x64(True):
        wide = jnp.asarray([0, 1, 0, wrong], jnp.int64)
        with pytest.raises(ValueError, match=rf"{name}\.min\(\)=.*classes must lie in \[0, 1\]"):
            ATTACK(KEY, VICTIM, X, **{"labels": Y, name: wide})


def test_unsigned_labels_are_out_of_range_before_they_are_cast():
    with pytest.raises(ValueError, match=r"labels\.max\(\)=.*classes must lie in \[0, 1\]"):
        ATTACK(KEY, VICTIM, X, jnp.asarray([0, 1, 0, 2**32 - 1], jnp.uint32))


PROBABILITIES = {
    "softmax": lambda x: jax.nn.softmax(VICTIM(x)),
    "in jit": jax.jit(lambda x: jax.nn.softmax(VICTIM(x))),
    "half": lambda x: jax.nn.softmax(VICTIM(x).astype(jnp.bfloat16)).astype(jnp.float32),
    "sigmoid": lambda x: jax.nn.sigmoid(VICTIM(x)),
    "by hand": lambda x: jnp.exp(VICTIM(x)) / jnp.sum(jnp.exp(VICTIM(x)), axis=-1, keepdims=True),
    "pytree": Partial(lambda w, x: jax.nn.softmax(linear_logits(w, x)), weights()),
}


@pytest.mark.parametrize("victim", PROBABILITIES.values(), ids=PROBABILITIES)
def test_probabilities_are_warned_of_once_for_a_call(victim):
    with pytest.warns(UserWarning, match="ends in a softmax or sigmoid.*must return logits") as caught:
        ATTACK(KEY, victim, X, Y)
    assert len(caught) == 1


def test_probabilities_are_warned_of_while_a_program_is_traced_and_not_when_it_runs():
    run = jax.jit(lambda x: ATTACK(KEY, PROBABILITIES["softmax"], x, Y).success)
    with pytest.warns(UserWarning, match="ends in a softmax") as caught:
        for _ in range(3):
            run(X)
    assert len(caught) == 1


@pytest.mark.parametrize(
    "victim",
    [
        lambda x: jax.nn.log_softmax(VICTIM(x)),
        lambda x: 10 * jax.nn.softmax(VICTIM(x)),
        lambda x: VICTIM(jax.nn.softmax(x)),
        lambda x: VICTIM(x) / 7,
        lambda x: jnp.tanh(VICTIM(x)),
    ],
)
def test_what_is_not_a_probability_is_not_warned_of(victim):
    ATTACK(KEY, victim, X, Y)


@pytest.mark.parametrize("make", [fgsm, pgd, linf, spa, lambda radius: apgd_ce(radius, norm="linf")])
def test_a_radius_beyond_the_range_of_pixels_is_warned_of(make):
    with pytest.warns(
        UserWarning, match=r"radius=8 is larger than the range of pixels, \[0, 1\]: did you mean 8/255\?"
    ):
        make(8)
    make(1.0)


def test_a_radius_of_another_norm_or_without_a_value_is_not_warned_of():
    pgd(8.0, norm="l2")
    jax.jit(lambda radius: linf(radius).radius)(8.0)
