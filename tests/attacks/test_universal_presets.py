"""UAP, CB-UAP and the accumulation of DeepFool's vectors, against victims whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from spa_jax import attack_from_config, cb_uap, deepfool_uap, uap
from tests.analytic_victims import images, labels, linear, linear_logits, margins, mlp, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, W = jax.random.key(0), weights()
X, ZEROS = images(batch=8, low=0.3, high=0.7), jnp.zeros(8, jnp.int32)


@pytest.mark.parametrize("rule", ["sign", "momentum", "adam"])
def test_every_rule_reaches_the_optimum_of_a_linear_victim(rule):
    """All images have one label, so the best noise is the radius along the sign of their gradient."""
    found = uap(0.1, 20, rule=rule)(KEY, linear(W), X, ZEROS)
    np.testing.assert_allclose(found.variables, 0.1 * np.sign(W), atol=1e-6)


def test_l2_and_targets():
    found = uap(0.5, 20, norm="l2", loss="cross_entropy")(KEY, linear(W), X, ZEROS, jnp.ones_like(ZEROS))
    np.testing.assert_allclose(found.variables, 0.5 * W / np.linalg.norm(W), atol=1e-4)
    with pytest.raises(ValueError, match="takes no target"):
        cb_uap(0.1)(KEY, linear(W), X, ZEROS, jnp.ones_like(ZEROS))


def test_one_brightness_for_all_images():
    found = uap(attributes={"brightness": {"low": -0.1, "high": 0.1}})(KEY, linear(W), X, ZEROS)
    np.testing.assert_allclose(found.variables["brightness"], 0.1 * np.sign(np.sum(W)), atol=1e-6)
    both = uap(0.05, attributes=("brightness",), rule="adam")(KEY, linear(W), X, ZEROS)
    assert set(both.variables) == {"brightness", "noise"}
    assert np.abs(both.variables["noise"]).max() <= 0.05


def test_class_wise_perturbations():
    found = uap(0.1, 20, classes=2)(KEY, linear(W), X, labels(8))
    np.testing.assert_allclose(found.variables, 0.1 * np.stack([np.sign(W), -np.sign(W)]), atol=1e-6)
    balanced = cb_uap(0.1, 20, classes=2)(KEY, linear(W), X, labels(8))
    np.testing.assert_allclose(balanced.variables, found.variables, atol=1e-6)


def test_with_two_classes_and_one_label_class_balanced_noise_is_the_plain_optimum():
    found = cb_uap(0.1, 20, cap=9.0)(KEY, linear(W), X, ZEROS)
    np.testing.assert_allclose(found.variables, 0.1 * np.sign(W), atol=1e-6)


# --- class-balanced ---------------------------------------------------------------------------------------------------

CLASSES = 5


def cyclic_logits(scale, x):
    """Permuted copies: each block of pixels votes for its class and, the brighter the last pixel, for the next one."""
    flat = x.reshape(x.shape[0], -1)
    blocks, gate = flat[:, :15].reshape(-1, CLASSES, 3).mean(-1), flat[:, 15:]
    return scale * (blocks * (1 - gate) + jnp.roll(blocks, 1, axis=1) * gate)


def cyclic_images():
    y = np.arange(100) % CLASSES
    flat = 0.2 + np.random.default_rng(0).uniform(-0.05, 0.05, (100, 16))
    flat[:, :15] += 0.6 * np.repeat(np.eye(CLASSES)[y], 3, axis=1)
    flat[:, 15] = 0.3
    return jnp.asarray(flat.reshape(100, 4, 4, 1), jnp.float32), jnp.asarray(y, jnp.int32)


def test_class_balanced_noise_spreads_where_plain_noise_leads_to_one_class():
    """Noise on the blocks makes one class win; only the gate pixel sends every class to another one."""
    x, y = cyclic_images()
    victim = Partial(cyclic_logits, 20.0)
    np.testing.assert_array_equal(jnp.argmax(victim(x), -1), y)

    def answers(attack, seed):
        return np.argmax(victim(attack(jax.random.key(seed), victim, x, y).x), -1)

    def top_share(found):
        return np.bincount(found, minlength=CLASSES).max() / len(x)

    plain = [answers(uap(0.35, 60, random_start=True), seed) for seed in range(4)]
    balanced = [answers(cb_uap(0.35, 60, random_start=True), seed) for seed in range(4)]
    assert min(map(top_share, plain)) > 0.75
    np.testing.assert_array_equal(np.bincount(balanced[0]), [20] * CLASSES)
    assert np.mean([*map(top_share, balanced)]) < 0.6 * np.mean([*map(top_share, plain)])
    assert np.mean([found != y for found in balanced]) >= np.mean([found != y for found in plain])


# --- accumulated DeepFool vectors ----------------------------------------------------------------------------------


def test_one_image_needs_the_distance_to_the_boundary():
    """On a linear victim DeepFool's vector is exact: margin / ||w||, and a little more to be across."""
    for norm, dual in (("linf", np.abs(W).sum()), ("l2", np.linalg.norm(W))):
        x = X[1:2]
        needed = -margins(W, x, [0])[0] / dual
        assert needed > 0
        found = deepfool_uap(1.0 if norm == "linf" else 5.0, norm=norm)(KEY, linear(W), x, ZEROS[:1])
        size = np.abs(found.variables).max() if norm == "linf" else np.linalg.norm(found.variables)
        assert found.success.all()
        np.testing.assert_allclose(size, 1.02 * needed, rtol=1e-2)


def test_it_fools_what_the_radius_allows_and_stops_at_the_share_asked_for():
    x, y = images(seed=2, batch=8, low=0.4, high=0.6), ZEROS
    x = jnp.asarray(np.where(margins(W, x, y)[:, None, None, None] < 0, x, 1 - x))
    assert (margins(W, x, y) < 0).all()
    attack = deepfool_uap(0.3, num_passes=3, success_share=0.6)
    state = attack.init(KEY, linear(W), x, y)
    state = attack.step(state, linear(W), x, y)
    assert state.rate >= 0.6
    again = attack.step(state, linear(W), x, y)
    np.testing.assert_array_equal(again.variables, state.variables)
    assert attack.result(again, linear(W), x, y).success.mean() >= 0.6
    assert np.abs(state.variables).max() <= 0.3 + 1e-6
    everything = deepfool_uap(0.3, success_share=1.0)(KEY, linear(W), x, y)
    assert everything.success.all()


@pytest.mark.parametrize("target", [None, jnp.ones_like(ZEROS)], ids=["untargeted", "targeted"])
def test_evaluations_are_counted(target):
    """On a linear victim DeepFool needs one step: a look, and for an image that is not fooled yet one step more."""
    x = jnp.where(margins(W, X, ZEROS)[:, None, None, None] < 0, X, 1 - X)
    attack = deepfool_uap(1.0, 1, success_share=1.0)
    state = attack.init(KEY, linear(W), x, ZEROS, target)
    state = attack.step(state, linear(W), x, ZEROS, target)
    looks, judged, step = 8, 8, 1 + 1
    steps = (int(state.evaluations) - looks - judged) / step
    assert steps == int(steps) and 1 <= steps <= 8 and state.rate == 1
    again = attack.step(state, linear(W), x, ZEROS, target)
    assert again.evaluations == state.evaluations


def test_targeted_vectors_lead_to_the_target():
    victim = mlp()
    x = images(batch=16)
    y = jnp.argmax(victim(x), -1).astype(jnp.int32)
    found = deepfool_uap(0.5, success_share=0.9)(KEY, victim, x, y, jnp.ones_like(y))
    assert np.mean(np.argmax(victim(found.x), -1) == 1) >= 0.9


def test_padding_is_not_accumulated():
    weight = jnp.array([1.0, 1, 1, 0, 0, 0, 0, 0])
    other = X.at[3:].set(images(seed=9, batch=5))
    runs = [deepfool_uap(0.2, 2).init(KEY, linear(W), x, ZEROS, weight=weight) for x in (X, other)]
    runs = [
        deepfool_uap(0.2, 2).step(run, linear(W), x, ZEROS, weight=weight)
        for run, x in zip(runs, (X, other), strict=True)
    ]
    np.testing.assert_allclose(runs[0].variables, runs[1].variables, atol=1e-6)


# --- by name, and what cannot be ------------------------------------------------------------------------------------


def test_configs_name_them():
    for name in ("uap", "cb_uap", "deepfool_uap"):
        assert attack_from_config({"name": name, "radius": 0.1}).shared


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uap(), r"radius=None, attributes=\(\): a universal perturbation needs noise or attributes"),
        (lambda: uap(0.1, rule="lion"), "rule='lion' must be one of sign, momentum, adam"),
        (lambda: uap(attributes=("rotation",), step_size=0.1), "step_size=0.1 is in the units of the radius"),
        (lambda: cb_uap(0.1, penalty=-1.0), "penalty=-1.0 must be 0 or larger"),
        (lambda: deepfool_uap(0.1, norm="l1"), "norm='l1' must be one of linf, l2"),
        (lambda: deepfool_uap(0.1, success_share=2.0), r"success_share=2.0 must be in \[0, 1\]"),
        (
            lambda: uap(0.1, classes=3)(KEY, Partial(linear_logits, W), X, ZEROS),
            "size=3 by 'label': the victim has 2 classes",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
