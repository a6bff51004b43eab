"""Every finding fires on the victim it is made for, and an honest victim raises none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax.data.types import Split
from spa_jax.evaluation import evenly_spaced, sanity_checks
from spa_jax.parallel import data_mesh
from spa_jax.trees import pytree

KEY = jax.random.key(3)
pytestmark = pytest.mark.usefixtures("quick_compilation")


def as_it_is(keys, images):
    return images


def quantised(keys, images):
    return jnp.round(images * 255) / 255


def turned_round(keys, images):
    """The gradient is right at clean images alone, whose pixels are thousandths: one step is good, many go astray."""
    thousandths = jnp.round(images * 1000) / 1000
    is_clean = jnp.all(jnp.abs(images - thousandths) < 1e-6, axis=(1, 2, 3), keepdims=True)
    return jnp.where(is_clean, images, 2 * jax.lax.stop_gradient(images) - images)


def honest(keys, logits):
    return logits


def noisy(keys, logits):
    bits = jax.random.key_data(keys)[:, :1] >> 8
    return logits + 0.01 * bits.astype(jnp.float32) / 2**24 * jnp.asarray([[1.0, -1.0]])


def softmaxed(keys, logits):
    return jax.nn.softmax(logits)


def saturated(keys, logits):
    return 1e5 * logits


def broken(keys, logits):
    return logits * jnp.nan


BEFORE, AFTER = (as_it_is, quantised, turned_round), (honest, noisy, softmaxed, saturated, broken)


@pytree
class Masked:
    """The linear victim behind something that hides its gradient; which, is a leaf, so that all share one program."""

    victim: object
    before: int
    after: int

    is_randomized = True

    def __call__(self, keys, images):
        images = jax.lax.switch(self.before, BEFORE, keys, images)
        return jax.lax.switch(self.after, AFTER, keys, self.victim(images))


def masked(victim, before=as_it_is, after=honest):
    return Masked(victim, BEFORE.index(before), AFTER.index(after))


def findings(victim, split):
    mesh = data_mesh(jax.devices()[:1])
    checks = sanity_checks(victim, split, radius=0.01, key=KEY, num_steps=5, mesh=mesh)
    assert [check.name for check in checks] == [
        "usable_logits",
        "deterministic",
        "gradients",
        "many_steps",
        "large_radius",
    ]
    return {check.name: check for check in checks if not check.passed}


def test_an_honest_victim_raises_nothing(linear_victim, split):
    assert findings(masked(linear_victim), split) == {}


@pytest.fixture
def distant_split(linear_victim):
    """101 images 0.3 away from the boundary: random noise of 0.5 hardly fools them."""
    side = np.sign(np.asarray(linear_victim.args[0]))
    labels = np.arange(101, dtype=np.int32) % 2
    return Split((0.5 + 0.3 * side * (2 * labels - 1)[:, None, None, None]).astype(np.float32), labels)


def test_quantised_inputs_have_no_gradient(linear_victim, split):
    found = findings(masked(linear_victim, before=quantised), split)
    assert found["gradients"].numbers == {"zero_cross_entropy_gradients": 1.0, "zero_margin_gradients": 1.0}
    assert "straight_through" in found["gradients"].advice


def test_accuracy_that_no_classifier_can_have_is_noticed(linear_victim, distant_split):
    found = findings(masked(linear_victim, before=quantised), distant_split)
    assert found["large_radius"].numbers == pytest.approx({"accuracy": 1, "possible": 51 / 101}, abs=0.1)
    assert findings(masked(linear_victim), distant_split) == {}


def test_a_randomised_victim_is_noticed(linear_victim, split):
    found = findings(masked(linear_victim, after=noisy), split)
    assert found["deterministic"].numbers["logits_differ"] == 1.0
    assert "eot" in found["deterministic"].advice


def test_probabilities_are_noticed(linear_victim, split):
    found = findings(masked(linear_victim, after=softmaxed), split)
    assert set(found) == {"usable_logits"}
    assert "sum to 1" in found["usable_logits"].message


def test_saturated_logits_have_a_margin_but_no_cross_entropy_gradient(linear_victim, split):
    found = findings(masked(linear_victim, after=saturated), split)
    assert set(found) == {"usable_logits", "gradients"}
    assert found["gradients"].numbers["zero_cross_entropy_gradients"] > 0.5
    assert found["gradients"].numbers["zero_margin_gradients"] == 0
    assert "margin or DLR" in found["gradients"].advice


def test_nan_logits_are_noticed(linear_victim, split):
    found = findings(masked(linear_victim, after=broken), split)
    assert "finite" in found["usable_logits"].message


def test_a_surface_that_misleads_many_steps_is_noticed(linear_victim, split):
    images = np.round(split.images * 1000).astype(np.float32) / np.float32(1000)
    found = findings(masked(linear_victim, before=turned_round), Split(images, split.labels))
    assert found["many_steps"].numbers["one_step"] < found["many_steps"].numbers["many_steps"]


def test_a_part_of_the_split_is_evenly_spaced(split):
    labels = evenly_spaced(split, 4).labels
    np.testing.assert_array_equal(labels, split.labels[[0, 25, 50, 75]])
    assert len(evenly_spaced(split, 1000)) == 101
    with pytest.raises(ValueError, match="count=0 must be at least 1"):
        evenly_spaced(split, 0)


def test_radius_is_checked(linear_victim, split):
    with pytest.raises(ValueError, match="radius=0 must be larger than 0"):
        sanity_checks(linear_victim, split, key=KEY, radius=0)
