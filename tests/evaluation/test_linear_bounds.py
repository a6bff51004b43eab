"""Margins by lines: no sampled image is below them, and they are exact where a network is linear."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import classifier
from spa_jax.evaluation.bands import Band, output_bounds
from spa_jax.evaluation.linear_bounds import lowest_margins
from spa_jax.models import SmallCNN
from tests.analytic_victims import images, linear, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZE, CLASSES = (8, 8, 2), 3


class Pooled(nn.Module):
    """Convolution, ReLU and maxima or sums of windows, then a dense layer."""

    pool: str = "max"
    stride: int = 2

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        start, join = (-jnp.inf, jax.lax.max) if self.pool == "max" else (0.0, jax.lax.add)
        x = nn.pooling.pool(x, start, join, (2, 2), (self.stride, self.stride), "VALID")
        return nn.Dense(CLASSES)(x.reshape(len(x), -1))


class Mixed(nn.Module):
    """What has lines beside what has intervals only, branches that meet again, and entries that move twice."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(3, (3, 3), strides=2)(x)
        x = jnp.maximum(x + nn.tanh(x), jnp.minimum(x * x, 0.5)) - jnp.concatenate([x, x], -1)[..., 1:4]
        x = jnp.concatenate([x.max((1, 2)), x.mean((1, 2)), nn.sigmoid(x).sum((1, 2))], -1)
        return nn.Dense(CLASSES)(x) / 2


NETWORKS = {
    "maxima": Pooled(),
    "overlapping maxima": Pooled(stride=1),
    "sums": Pooled("sum"),
    "mixed": Mixed(),
    "small_cnn": SmallCNN(num_classes=CLASSES, width=3, hidden=6, convs_per_stage=1),
}


def victim(name):
    model = NETWORKS[name]
    return classifier(model, model.init(jax.random.key(3), jnp.zeros((1, *SIZE))), 0.4, 0.3)


def along(network, band, labels):
    one = jax.vmap(lambda own, label: lowest_margins(lambda image: network(image[None])[0], own, label))
    return jax.jit(one)(band, labels)


def bounds(network, low, high, labels):
    return along(network, Band.between(low, high), labels)


def margins(network, x, labels):
    logits = network(x)
    return jnp.take_along_axis(logits, labels[:, None], -1) - logits


def others(labels):
    return np.arange(CLASSES)[None] != np.asarray(labels)[:, None]


@pytest.mark.parametrize("width", [0.0, 0.002, 0.05, 0.6])
@pytest.mark.parametrize("name", NETWORKS)
def test_no_image_of_a_box_is_below_its_bound(name, width):
    network, rng = victim(name), np.random.default_rng(0)
    low = images(2, 6, size=SIZE, low=0.0, high=0.4)
    labels = jnp.arange(6) % CLASSES
    lowest, keep = np.asarray(bounds(network, low, low + width, labels)), others(labels)
    assert np.all(lowest[~keep] == np.inf) and np.isfinite(lowest[keep]).all()
    least = np.full(lowest.shape, np.inf)
    for corners in ([0.0, 1.0], [0.0, 0.5, 1.0]):
        for _ in range(60):
            share = jnp.asarray(rng.choice(corners, low.shape), jnp.float32)
            least = np.minimum(least, margins(network, low + share * width, labels))
    assert np.all(least[keep] >= lowest[keep] - 1e-5)
    if width == 0:
        np.testing.assert_allclose(lowest[keep], least[keep], atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_image_of_a_band_is_below_its_bound_and_no_logit_leaves_its_lines(name):
    network, rng, spread = victim(name), np.random.default_rng(1), 1e-3
    x, labels = images(2, 6, size=SIZE, low=0.3, high=0.7), jnp.arange(6) % CLASSES
    slope = jnp.asarray(rng.normal(size=x.shape) * 0.03, jnp.float32)
    band = Band.around(x, slope, spread)
    lowest, keep = np.asarray(along(network, band, labels)), others(labels)
    lines = jax.jit(lambda *own: output_bounds(network, Band(*own)))(*band)
    for t in np.linspace(-1, 1, 41, dtype=np.float32):
        moved = x + t * slope + spread * jnp.asarray(rng.choice([-1.0, 1.0], x.shape), jnp.float32)
        assert np.all((margins(network, moved, labels) >= lowest - 1e-5)[keep])
        logits = network(moved) - t * lines.slope
        assert np.all(logits >= lines.below - 1e-5) and np.all(logits <= lines.above + 1e-5)
    plain = np.asarray(along(network, Band.between(band.low, band.high), labels))
    clean = np.asarray(margins(network, x, labels))
    assert np.mean((clean - lowest)[keep]) < 0.7 * np.mean((clean - plain)[keep]), "what moves together adds up"


@pytest.mark.parametrize("name", ["maxima", "sums", "small_cnn"])
def test_where_a_network_is_linear_the_least_margin_is_found(name):
    """A linear function is least by the sizes of its slopes times the half widths below the middle of a box."""
    network, radius = victim(name), 2e-5
    x, labels = images(5, 6, size=SIZE), jnp.arange(6) % CLASSES
    slopes = jax.jacobian(lambda x: margins(network, x, labels).sum(0))(x)
    exact = margins(network, x, labels) - radius * jnp.abs(slopes).sum((-3, -2, -1)).T
    found = bounds(network, x - radius, x + radius, labels)
    keep = others(labels)
    near = np.isclose(found[keep], exact[keep], atol=3e-6)
    assert near.mean() > 0.6 and np.all(np.asarray(found)[keep] < np.asarray(exact)[keep] + 3e-6)


def test_bounds_of_one_layer_are_reached():
    w = weights()
    found = bounds(linear(w), jnp.zeros((1, *w.shape)), jnp.ones((1, *w.shape)), jnp.array([1]))
    logits = linear(w)(jnp.full((1, *w.shape), 0.5))[0]
    slope = jax.grad(lambda x: linear(w)(x)[0, 1] - linear(w)(x)[0, 0])(jnp.zeros((1, *w.shape)))
    np.testing.assert_allclose(found[0, 0], logits[1] - logits[0] - jnp.abs(slope).sum() / 2, rtol=1e-5)


def test_lines_prove_where_intervals_do_not():
    network, radius = victim("small_cnn"), 1e-3
    x = images(5, 20, size=SIZE)
    labels = jnp.argmax(network(x), -1)
    boxes = output_bounds(network, Band.between(x - radius, x + radius))
    by_intervals = jnp.take_along_axis(boxes.low, labels[:, None], -1) - boxes.high
    by_lines, keep = bounds(network, x - radius, x + radius, labels), others(labels)
    lost = [np.asarray(margins(network, x, labels) - own)[keep] for own in (by_lines, by_intervals)]
    assert np.all(lost[0] <= lost[1] + 1e-6) and lost[0].mean() < 0.8 * lost[1].mean()


@pytest.mark.parametrize("stride", [1, 2])
def test_an_entry_that_is_largest_in_one_window_counts_in_the_others(stride):
    """max(a, b) - a with a in [0.5, 3.5] and b in [-0.5, 2.5] is at most 2, at (0.5, 2.5)."""

    def function(image):
        largest = nn.pooling.pool(image, -jnp.inf, jax.lax.max, (1, 2), (1, stride), "VALID")[0, 0, 0]
        return jnp.stack([image[0, 0, 0], largest])

    middle = jnp.array([2.0, 1.0, 0.9])[None, :, None]
    found = lowest_margins(function, Band.between(middle - 1.5, middle + 1.5), jnp.array(0))
    assert -3.0 <= found[1] <= -2.0


def test_whole_numbers_on_the_way_count_with_their_interval():
    def function(image):
        return jnp.stack([image.sum(), (4 * image).astype(jnp.int32).astype(jnp.float32).sum()])

    found = lowest_margins(function, Band.between(jnp.array([0.3, 0.8]), jnp.array([0.4, 0.9])), jnp.array(0))
    np.testing.assert_allclose(found, [np.inf, 1.1 - (1 + 3)], rtol=1e-5)


def test_logits_that_do_not_move_have_their_own_margins():
    found = lowest_margins(
        lambda image: jnp.array([1.0, 3.0, 0.5]), Band.between(jnp.zeros(4), jnp.ones(4)), jnp.array(1)
    )
    np.testing.assert_allclose(found, [2.0, np.inf, 2.5])
