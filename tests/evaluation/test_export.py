"""Exported attacks: what the file holds, and who judged it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import fgsm, pgd, randomized, spa, uap
from spa_jax.evaluation.export import export_attack, export_universal
from spa_jax.parallel import data_mesh

KEY = jax.random.key(7)
pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_an_export_holds_the_distances(linear_victim, split, tmp_path):
    joint = spa(0.02, {"brightness": {"low": -0.3, "high": 0.3}}, 2)
    found = export_attack(linear_victim, split, joint, tmp_path / "a.npz", key=KEY, batch_size=32)
    stored = np.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(stored["distance/linf_from_edited"], found["distance/linf_from_edited"])
    expected = np.abs(found["x"].astype(np.float64) - split.images).max(axis=(1, 2, 3))
    np.testing.assert_allclose(stored["distance/linf"], expected, rtol=1e-5)
    np.testing.assert_array_equal(stored["edited/x"], found["edited/x"])
    moved = np.abs(found["x"] - found["edited/x"]).max(axis=(1, 2, 3))
    np.testing.assert_allclose(moved, found["distance/linf_from_edited"], atol=1e-6)
    score = (found["edited/x"] - 0.5).reshape(101, -1) @ np.asarray(linear_victim.args[0]).reshape(-1)
    np.testing.assert_array_equal(found["edited/success"], (score > 0) != split.labels)
    assert 0 < found["edited/success"].sum() <= found["success"].sum()
    assert {name for name in stored if name.startswith("distance/")} == {
        "distance/linf_from_edited",
        "distance/linf",
        "distance/l2",
        "distance/ssim",
    }


def test_a_universal_perturbation_is_stored_once(linear_victim, split, tmp_path):
    attack, weights = uap(0.02, rel_step_size=0.5, classes=2), np.asarray(linear_victim.args[0])
    path = tmp_path / "made" / "u.npz"
    record = export_universal(linear_victim, split, split, attack, path, key=KEY, batch_size=32, num_epochs=2)
    stored = np.load(path)
    assert set(stored) == {"variables/noise", "label", "clean", "answer"}
    np.testing.assert_allclose(stored["variables/noise"], 0.02 * np.stack([np.sign(weights), -np.sign(weights)]))
    np.testing.assert_array_equal(stored["answer"] != stored["clean"], record.answers != record.clean)
    aimed = uap(0.02, loss="cross_entropy")
    export_universal(linear_victim, split, split, aimed, path, key=KEY, batch_size=32, target=1)
    assert np.load(path)["target"] == 1


def coin_logits(keys, images):
    """Heads or tails by a bit of each image's key."""
    return jax.nn.one_hot(jax.random.key_data(keys)[:, 0] & 1, 2) + 0 * jnp.mean(images, axis=(1, 2, 3))[:, None]


def test_an_export_judges_a_randomised_victim_with_fresh_keys(split, tmp_path):
    """In ten steps an attack of radius 0 meets a wrong draw; half of the judge's draws are right."""
    found = export_attack(randomized(coin_logits), split, pgd(0.0, 10), tmp_path / "a.npz", key=KEY, batch_size=101)
    assert 0.3 < found["success"].mean() < 0.7


def test_an_export_shows_a_victim_of_a_fixed_batch_size_no_other(linear_victim, split, tmp_path):
    def logits(images):
        assert images.shape == (16, 4, 4, 1)
        return linear_victim.func(linear_victim.args[0], images)

    options = {"key": KEY, "batch_size": 16, "mesh": data_mesh(jax.devices()[:1])}
    found = export_attack(logits, split.subset(np.arange(5)), fgsm(0.005), tmp_path / "a.npz", **options)
    expected = np.argmax(linear_victim(jnp.asarray(found["x"])), axis=1) != split.labels[:5]
    np.testing.assert_array_equal(found["success"], expected)


def test_an_export_can_hold_what_an_8_bit_file_holds(linear_victim, split, tmp_path):
    options = {"key": KEY, "batch_size": 101}
    found = export_attack(linear_victim, split, fgsm(0.005), tmp_path / "a.npz", levels=255, **options)
    levels = found["x"].astype(np.float64) * 255
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
    expected = np.argmax(linear_victim(jnp.asarray(found["x"])), axis=1) != split.labels
    np.testing.assert_array_equal(found["success"], expected)
    moved = np.abs(found["x"].astype(np.float64) - split.images).max(axis=(1, 2, 3))
    np.testing.assert_allclose(found["distance/linf"], moved, rtol=1e-4)
