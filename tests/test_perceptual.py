"""Distances of features against LPIPS's formula in NumPy, and noise that is bounded in them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from spa_jax import Example, make_attack, pgd, universal
from spa_jax.data.types import Split
from spa_jax.errors import ConfigError
from spa_jax.evaluation import evaluate, write_report
from spa_jax.losses import margin
from spa_jax.models import SmallCNN
from spa_jax.perceptual import captured_features, perceptual_attack, perceptual_ball, perceptual_distance
from spa_jax.runs.experiment import check_config
from spa_jax.runs.loop import train_and_evaluate
from tests.analytic_victims import images, linear, margins, weights
from tests.training.conftest import tiny_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY, W, BATCH = jax.random.key(0), weights(), 6
X, Y = images(low=0.35, high=0.65, batch=BATCH), jnp.arange(BATCH) % 2
MIX = [np.random.default_rng(seed).normal(size=(1, 3 + seed)).astype(np.float32) for seed in range(2)]
CHANNELS = [np.random.default_rng(9).uniform(size=3 + seed).astype(np.float32) for seed in range(2)]


def features(mix, x):
    """Two layers of channels, of the pixels and of their squares."""
    return [jnp.tanh((x - 0.4) @ mix[0]) + 0.1, (x**2) @ mix[1]]


FEATURES = Partial(features, MIX)


def lpips(x, y, channels):
    """The formula of Zhang et al., layer by layer, in float64."""
    total = np.zeros(len(x))
    for a, b, own in zip(features(MIX, x), features(MIX, y), channels, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        a, b = (layer / np.sqrt(np.sum(layer**2, axis=-1, keepdims=True)) for layer in (a, b))
        total += np.sum(own * (a - b) ** 2, axis=-1).mean((1, 2))
    return total


@pytest.mark.parametrize("channels", [None, CHANNELS], ids=["plain", "weighted"])
def test_the_distance_is_that_of_the_formula(channels):
    other = images(3, BATCH, low=0.1, high=0.9)
    expected = lpips(X, other, [1.0, 1.0] if channels is None else channels)
    found = perceptual_distance(FEATURES, channels)(X, other)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    np.testing.assert_array_equal(perceptual_distance(FEATURES, channels)(X, X), 0)


def test_features_of_zero_have_a_finite_gradient():
    distance = perceptual_distance(lambda x: [jnp.tile(x, (1, 1, 1, 3))])
    gradient = jax.grad(lambda x: jnp.sum(distance(x, jnp.full_like(x, 0.5))))(jnp.zeros((1, 2, 2, 1)))
    assert np.isfinite(gradient).all()


def test_features_without_pixels_are_refused():
    with pytest.raises(ValueError, match=r"features.shape=\(6, 16\) must be \[b, h, w, c\]"):
        perceptual_distance(lambda x: [x.reshape(len(x), -1)])(X, X)


# --- features of a network ------------------------------------------------------------------------------------------


def test_captured_features_are_the_outputs_of_the_layers():
    network = SmallCNN(width=2, hidden=4, convs_per_stage=1)
    x = jax.random.uniform(KEY, (3, 8, 8, 1))
    variables = network.init(jax.random.key(1), x)
    seen = captured_features(network, variables, mean=0.5, std=0.25)(x)
    assert [layer.shape for layer in seen] == [(3, 8, 8, 2), (3, 4, 4, 4)]
    kernel = next(iter(variables["params"].values()))
    assert set(kernel) == {"kernel", "bias"}
    first = jax.lax.conv_general_dilated(
        (x - 0.5) / 0.25, kernel["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(seen[0], first + kernel["bias"][None, None, None], atol=1e-5)


def test_layers_are_chosen_by_name():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Conv(3, (3, 3))(nn.relu(nn.Conv(2, (3, 3))(x)))

    model = Net()
    variables = model.init(KEY, X)
    (chosen,) = captured_features(model, variables, ["Conv_0"])(X)
    np.testing.assert_allclose(chosen, model.apply(variables, X), atol=1e-6)
    with pytest.raises(ValueError, match="layers=\\['Conv_9'\\] are not in the network; it has"):
        captured_features(model, variables, ["Conv_9"])(X)


# --- noise within a distance ----------------------------------------------------------------------------------------

CURVED = perceptual_distance(lambda x: [jnp.concatenate([x, 1 - x], axis=-1)])
"""It grows along every line from an image, pixel by pixel."""


def project(space, v):
    return jax.jit(jax.vmap(space.project))(v, Example(X))


def test_projected_noise_is_within_the_bound_and_as_far_as_it_may():
    space = perceptual_ball(CURVED, 0.02, bisections=15)
    far = jax.random.uniform(KEY, X.shape, minval=-0.3, maxval=0.3)
    moved = X + project(space, far)
    distances = np.asarray(CURVED(moved, X))
    assert np.all(distances <= 0.02) and np.all(distances >= 0.02 * (1 - 1e-3))
    share = np.asarray((moved - X) / far)
    np.testing.assert_allclose(share.reshape(BATCH, -1).std(1), 0, atol=1e-3)
    once = project(space, far)
    np.testing.assert_allclose(project(space, once), once, atol=1e-6)


def test_noise_within_the_bound_stays_as_it_is():
    near = jax.random.uniform(KEY, X.shape, minval=-0.01, maxval=0.01)
    near = (X + near) - X  # as an image holds it
    assert np.all(CURVED(X + near, X) < 0.02)
    np.testing.assert_allclose(project(perceptual_ball(CURVED, 0.02), near), near, atol=1e-7)


def test_images_on_a_grid_are_within_the_bound_too():
    x = jnp.round(X * 32) / 32
    result = perceptual_attack(CURVED, 0.02, 10).on_grid(32)(KEY, linear(W), x, Y)
    np.testing.assert_allclose(result.x * 32, jnp.round(result.x * 32), atol=1e-4)
    assert np.all(CURVED(result.x, x) <= 0.02) and np.all(result.value > margins(W, x, Y) + 0.1)


def test_the_attack_stays_within_its_bound_and_gains_with_it():
    clean, gains = margins(W, X, Y), []
    for bound in (0.0, 0.005, 0.02):
        result = perceptual_attack(CURVED, bound, 30)(KEY, linear(W), X, Y)
        assert np.all(CURVED(result.x, X) <= bound * (1 + 1e-5) + 1e-7)
        gains.append(np.asarray(result.value) - clean)
    np.testing.assert_allclose(gains[0], 0, atol=1e-5)
    assert np.all(gains[1] > 0.1) and np.all(gains[2] > 1.5 * gains[1])


def test_the_best_image_on_a_circle_is_found():
    """On a plain grey image the distance is that of an l2 ball, of which the optimum is known, for small bounds."""
    grey = jnp.full((2, 4, 4, 1), 0.5)
    bound = 1e-3
    # (x, 1 - x) of unit length turns by 2 d for a change d of 0.5: d * 2 sqrt(2) / sqrt(2); squared and averaged.
    radius = np.sqrt(bound * 16) / 2
    best = margins(W, grey, jnp.arange(2)) + radius * np.linalg.norm(W)
    result = perceptual_attack(CURVED, bound, 200, radius=0.02)(KEY, linear(W), grey, jnp.arange(2))
    reached = np.asarray(result.value) / best
    assert np.all(reached <= 1.02) and np.all(reached >= 0.7), reached


@pytest.mark.parametrize("options", [{"bound": -1.0}, {"bound": 0.1, "radius": 0.0}, {"bound": 0.1, "bisections": 0}])
def test_bad_numbers_are_refused(options):
    with pytest.raises(ValueError, match=next(reversed(options))):
        perceptual_ball(CURVED, **options)


def test_it_is_around_an_image():
    attack = make_attack(perceptual_ball(CURVED, 0.1), margin, num_steps=1, lift=universal)
    with pytest.raises(ValueError, match="it takes no shared variables"):
        attack(KEY, linear(W), X, Y)


# --- in a report ----------------------------------------------------------------------------------------------------


def test_a_report_tells_how_far_images_were_moved_in_it(tmp_path):
    split = Split(np.asarray(X), np.asarray(Y, np.int32))
    attacks = {"PGD": pgd(0.3, 5)}
    options = {"key": KEY, "batch_size": 8, "sanity": False}
    report = evaluate(linear(W), split, attacks, perceptual=perceptual_distance(FEATURES), **options)
    plain = evaluate(linear(W), split, attacks, **options)
    told = report.attacks["PGD"].distances
    assert set(told) - set(plain.attacks["PGD"].distances) == {"perceptual"}
    assert 0 < told["perceptual"].mean <= told["perceptual"].worst
    for judged, stands in ((report, True), (plain, False)):
        write_report({"tiny": judged}, tmp_path, title="", dataset="", seed=0, config={})
        for name in ("report.md", "report.html"):
            assert ("perceptual from x" in (tmp_path / name).read_text()) == stands


def test_the_mean_and_the_worst_distance_are_those_of_the_fooled_images():
    split = Split(np.asarray(X), np.asarray(Y, np.int32))
    from_zero = perceptual_distance(lambda x: [jnp.concatenate([x, jnp.ones_like(x)], axis=-1)])
    report = evaluate(linear(W), split, {"PGD": pgd(0.3, 5)}, key=KEY, batch_size=8, sanity=False, perceptual=from_zero)
    fooled = report.attacks["PGD"].attacked - report.attacks["PGD"].correct.sum()
    assert fooled > 0
    # A pixel within 0.3 of x turns the vector (x, 1) by at most the angle between the ends of the range.
    ends = np.arctan(1.0) - np.arctan(0.05)
    assert 0 < report.attacks["PGD"].distances["perceptual"].worst < 2 - 2 * np.cos(ends)


@pytest.mark.slow
def test_a_run_measures_in_the_features_of_one_of_its_models(tmp_path):
    config = tiny_config(baselines=({"name": "judge", "recipe": "standard"},))
    config["evaluation"] = config["evaluation"] | {
        "perceptual": "judge",
        "attacks": {"PGD": {"name": "pgd", "radius": 0.3}},
    }
    config["training"] = config["training"] | {"num_epochs": 1.0}
    train_and_evaluate(config, tmp_path)
    assert "perceptual from x" in (tmp_path / "report" / "report.md").read_text()


def test_a_config_names_one_of_its_classifiers():
    config = tiny_config(baselines=({"name": "judge", "recipe": "standard"},))
    with pytest.raises(ConfigError, match=r"evaluation.perceptual='jugde' must be a classifier of the config"):
        check_config(config | {"evaluation": config["evaluation"] | {"perceptual": "jugde"}})
