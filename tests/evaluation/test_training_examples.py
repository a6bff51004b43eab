"""Whether a judge still reads training examples, which pixels they use, and the report on it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from spa_jax import pgd
from spa_jax.data import Split
from spa_jax.evaluation import measure_training_examples, sharedness, write_training_examples_report
from spa_jax.evaluation.records import Mean
from spa_jax.evaluation.training_examples import TrainingExamplesRecord, class_gradients
from tests.analytic_victims import images

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
W = np.random.default_rng(5).normal(size=(4, 4, 1, 3))


def linear(w, x):
    return jnp.tensordot(x - 0.5, w, 3)


def brightness(images):
    """A judge that answers class 1 for bright images, class 0 for dark ones, and knows how sure it is."""
    z = 8 * (jnp.mean(images, axis=(1, 2, 3)) - 0.5)
    return jnp.stack([-z, z, jnp.full_like(z, -30.0)], axis=-1)


def by_hand(gradients, weight):
    """The mean over pairs of classes of the cosine of their weighted magnitudes, for one image."""
    rows = [(own * weight).ravel() for own in gradients]
    rows = [row / np.linalg.norm(row) for row in rows if np.linalg.norm(row) > 0]
    pairs = [rows[i] @ rows[j] for i in range(len(rows)) for j in range(i)]
    return np.mean(pairs) if pairs else 0.0


def test_gradients_of_log_probabilities_are_the_analytic_ones():
    x = images(low=0.3, high=0.7)
    victim = Partial(linear, jnp.asarray(W, jnp.float32))
    p = np.asarray(jax.nn.softmax(victim(x)), np.float64)
    expected = np.abs(np.moveaxis(W, -1, 0)[:, None] - np.einsum("hwck,bk->bhwc", W, p)[None])
    found = class_gradients(lambda keys, x: victim(x), KEY, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_sharedness_is_the_mean_pairwise_cosine():
    rng = np.random.default_rng(0)
    gradients = rng.exponential(size=(5, 4, 3, 3, 2)) * 10.0 ** rng.uniform(-30, 3, (5, 1, 1, 1, 1))
    weight = rng.uniform(size=(4, 3, 3, 2)) * (rng.uniform(size=(4, 3, 3, 2)) < 0.5)
    gradients[1, 2] = 0  # a class without gradient is left out
    gradients[1:, 3] = 0  # and a single class is no pair
    found = sharedness(jnp.asarray(gradients, jnp.float32), jnp.asarray(weight, jnp.float32))
    expected = [by_hand(gradients[:, i], weight[i]) for i in range(4)]
    assert expected[3] == 0
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_sharedness_is_1_for_one_pattern_and_0_for_patterns_apart():
    pattern = np.random.default_rng(1).exponential(size=(1, 1, 2, 2, 1))
    alike = pattern * np.array([1.0, 5.0, 0.1]).reshape(3, 1, 1, 1, 1)
    apart = np.eye(4).reshape(4, 1, 2, 2, 1)
    ones = jnp.ones((1, 2, 2, 1))
    np.testing.assert_allclose(sharedness(jnp.asarray(alike, jnp.float32), ones), 1, rtol=1e-5)
    np.testing.assert_allclose(sharedness(jnp.asarray(apart, jnp.float32), ones), 0, atol=1e-6)


def test_records_are_what_judge_and_victim_see():
    split = Split(np.full((6, 4, 4, 1), 153, np.uint8), np.array([1, 1, 1, 0, 0, 0], np.int32))
    darker = Partial(linear, jnp.asarray(np.stack([-(W[..., 0] ** 2), W[..., 0] ** 2, 0 * W[..., 0]], -1), jnp.float32))
    found = measure_training_examples(
        darker, brightness, split, {"PGD": pgd(0.2, 5, keep="last")}, key=KEY, batch_size=4
    )
    assert list(found) == ["clean", "PGD"]
    assert found["clean"].judged.tolist() == [True] * 3 + [False] * 3
    assert found["PGD"].judged.tolist() == [False] * 6  # class 1 is darkened below one half, class 0 brightened
    assert found["PGD"].correct.tolist() == [False] * 6 and found["clean"].correct.tolist() == [True] * 3 + [False] * 3
    p = 1 / (1 + np.exp(-16 * (153 / 255 - 0.5)))
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    np.testing.assert_allclose(found["clean"].entropy, entropy, rtol=1e-4)
    np.testing.assert_array_equal(found["clean"].shared, 0)
    assert np.all(found["PGD"].shared > 0)
    np.testing.assert_array_equal(found["PGD"].shared_everywhere, found["clean"].shared_everywhere)


def test_the_images_as_they_are_have_a_name_of_their_own():
    split = Split(np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="attacks hold the name 'clean'"):
        measure_training_examples(brightness, brightness, split, {"clean": pgd(0.1)}, key=KEY, batch_size=2)


def test_a_mean_has_the_interval_of_the_normal_approximation():
    found = Mean.of(np.array([1.0, 2.0, 3.0, 4.0]))
    assert (found.value, found.half_width) == (2.5, pytest.approx(1.959964 * 1.290994 / 2, rel=1e-5))
    assert str(Mean(0.4118, 0.0204)) == "0.412 +- 0.020" and Mean.of(np.array([3.0])).half_width == 0


def test_the_report_has_a_row_for_each_model_and_its_examples(tmp_path):
    def record(judged):
        flags = np.arange(20) < judged
        return TrainingExamplesRecord(
            flags, np.full(20, 0.5), flags, np.full(20, 0.25), np.full(20, 0.75), {"type": "x"}
        )

    models = {"pgd": {"clean": record(20), "own": record(10)}, "spat|": {"own": record(15)}}
    options = {"title": "toy", "dataset": "toy, training split", "seed": 0, "config": {}}
    assert "50.0 % [29.9, 70.1]" in write_training_examples_report(models, tmp_path, **options)
    text = (tmp_path / "training_examples.md").read_text()
    assert "| pgd | own | 50.0 % [29.9, 70.1] | 0.500 +- 0.000 | 0.250 +- 0.000 | 0.750 +- 0.000 | 50.0 %" in text
    assert "| spat\\| | own | 75.0 %" in text
    content = json.loads((tmp_path / "training_examples.json").read_text())
    assert content["models"]["spat|"]["own"]["judge_accuracy"]["correct"] == 15
    assert content["models"]["pgd"]["own"]["entropy"] == {"value": 0.5, "half_width": 0.0}
    with pytest.raises(ValueError, match="no record of training examples"):
        write_training_examples_report({}, tmp_path, **options)
