"""Universal perturbations beside those of other libraries: the peers themselves, and the two tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax.benchmarks.universal import (
    check_universal,
    check_universal_speed,
    compare_universal,
    time_universal,
    universal_cell,
    universal_task,
)
from spa_jax.benchmarks.universal_peers import UNIVERSAL_PEERS, UNIVERSAL_REQUIREMENTS, make_universal_peer
from spa_jax.errors import ConfigError
from spa_jax.losses import cross_entropy
from spa_jax.models import create_model, init_variables
from spa_jax.types import Example

pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]

SHAPE, RADIUS = (8, 8, 1), 0.2
MODEL = {"name": "small_cnn", "width": 4, "hidden": 8, "convs_per_stage": 1}
SECTION = {
    "model": MODEL,
    "batch_size": 64,
    "learning_rate": 3e-3,
    "victims": {"standard": {"recipe": {"name": "standard"}, "num_epochs": 2.0, "radius": RADIUS}},
    "crafting_images": 40,
    "crafting_batch": 10,
    "num_epochs": 2,
    "num_images": 60,
    "seeds": (0, 1),
    "attacks": {
        "uap": {"attack": {"name": "uap"}, "peers": ()},
        "sequential": {"attack": {"name": "deepfool_uap"}, "peers": (), "target": 3},
    },
}
SPEED = {
    "networks": {"tiny": {"model": MODEL, "input_shape": SHAPE}},
    "num_classes": 3,
    "batch_size": 8,
    "num_images": 24,
    "repeats": 1,
    "devices": (1,),
    "attack": {"name": "uap", "radius": RADIUS},
    "peers": (),
}


def task(images, batch_size, num_epochs, **spec):
    model = create_model(num_classes=3, input_shape=SHAPE, **MODEL)
    spec = {"name": "uap", "radius": RADIUS, **spec}
    variables = init_variables(model, jax.random.key(0), SHAPE)
    return universal_task(spec, model, variables, images, batch_size, num_epochs, seed=0)


def logits_of(task, images):
    return task.model.apply(task.variables, jnp.asarray(images), train=False)


@pytest.mark.parametrize("name", UNIVERSAL_PEERS)
def test_peers_stay_in_the_ball_and_raise_the_loss(name):
    for library in UNIVERSAL_REQUIREMENTS[name]:
        pytest.importorskip(library, reason=f"{library} is not installed (extra `bench`)")
    x = np.random.default_rng(0).uniform(0.3, 0.7, (12, *SHAPE)).astype(np.float32)
    asked = task(x, 4, 3)
    y = np.asarray(logits_of(asked, x)).argmax(-1)
    found = make_universal_peer(name, asked)(x, y)
    assert found.noise.shape == SHAPE and np.abs(found.noise).max() <= RADIUS + 1e-6
    before, after = (cross_entropy(logits_of(asked, images), Example(x, y)).mean() for images in (x, x + found.noise))
    assert after > before + 0.01
    assert found.passes == 36 if name == "torch_loop_uap" else found.passes > 12


def test_the_loop_steps_along_the_sign_of_the_mean_gradient():
    pytest.importorskip("torch", reason="torch is not installed (extra `bench`)")
    x = np.random.default_rng(0).uniform(0.3, 0.7, (6, *SHAPE)).astype(np.float32)
    asked = task(x, 6, 1, rel_step_size=0.5)
    y = np.array([0, 1, 2, 0, 1, 2])
    found = make_universal_peer("torch_loop_uap", asked)(x, y)
    loss = lambda noise: cross_entropy(logits_of(asked, x + noise[None]), Example(x, y)).mean()  # noqa: E731
    np.testing.assert_allclose(found.noise, 0.5 * RADIUS * np.sign(jax.grad(loss)(jnp.zeros(SHAPE))), atol=1e-6)


def test_rows_of_strength():
    uap, sequential = compare_universal(SECTION, {"name": "digits"}, 0)
    assert (uap["library"], uap["attack"], sequential["target"]) == ("spa_jax", "uap", 3)
    assert uap["passes"] == 80 and sequential["passes"] > 40 and uap["ours_minus_theirs"] == 0
    assert uap["accuracy"] == pytest.approx(np.mean(uap["by_seed"])) and len(uap["by_seed"]) == 2
    assert uap["accuracy"] < uap["clean_accuracy"] and uap["fooling_ratio"] > 0 and uap["target_share"] is None
    assert 0 <= sequential["target_share"] <= 1


def test_an_epoch_is_as_many_steps_as_floor_passes():
    facts, functions = universal_cell(SPEED, "tiny", SPEED["attack"], 0)
    assert facts["passes"] == {"gradients": (3, 3), "forwards": (0, 0)}
    assert functions["run"]().step == 3


@pytest.mark.slow
def test_rows_of_speed():
    (row,) = time_universal(SPEED, 0)
    assert (row["network"], row["library"], row["devices"], row["slowdown"]) == ("tiny", "spa_jax", 1, 1.0)
    assert row["multiple_of_floor"] > 0 and row["examples_per_s"] == pytest.approx(24 / row["seconds"])


@pytest.mark.parametrize(
    ("check", "section", "message"),
    [
        (check_universal, SECTION | {"num_epochs": 0}, "num_epochs=0 must be an integer of at least 1"),
        (check_universal, SECTION | {"crafting": 3}, "config.universal.crafting is unknown"),
        (check_universal, SECTION | {"attacks": {"pgd": {"attack": {"name": "pgd"}, "peers": ()}}}, "for each image"),
        (
            check_universal,
            SECTION | {"attacks": {"uap": {"attack": {"name": "uap"}, "peers": ("art_pgd",)}}},
            "peer='art_pgd' is unknown",
        ),
        (check_universal_speed, SPEED | {"num_images": 20}, "num_images=20 must be a multiple of batch_size=8"),
        (check_universal_speed, SPEED | {"peers": ("torch_uap",)}, "did you mean 'torch_loop_uap'"),
    ],
)
def test_wrong_sections_are_named(check, section, message):
    with pytest.raises((ConfigError, ValueError), match=message):
        check(section)


def test_every_peer_has_requirements():
    assert set(UNIVERSAL_PEERS) == set(UNIVERSAL_REQUIREMENTS)
