import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax.benchmarks import peers
from spa_jax.errors import ConfigError
from spa_jax.models import SmallCNN, init_variables

SHAPE, RADIUS = (8, 8, 1), 0.1

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def task():
    model = SmallCNN(width=4, hidden=8, convs_per_stage=1)
    return peers.Task(model, init_variables(model, jax.random.key(0), SHAPE), SHAPE, RADIUS, 0.25 * RADIUS, 5, seed=3)


def log_probabilities(task, images):
    return np.asarray(jax.nn.log_softmax(task.model.apply(task.variables, jnp.asarray(images), train=False)))


def mean_loss(task, images, labels):
    return -log_probabilities(task, images)[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("name", [name for name in peers.PEERS if name != "torch_compile_pgd"])
def test_peers_stay_in_the_ball_and_raise_the_loss(name, task):
    for library in peers.REQUIREMENTS[name]:
        pytest.importorskip(library, reason=f"{library} is not installed (extra `bench`)")
    x = np.random.default_rng(0).uniform(size=(6, *SHAPE)).astype(np.float32)
    y = log_probabilities(task, x).argmax(-1)
    before = x.copy()
    adversarial = peers.make_peer(name, task)(x, y)
    assert adversarial.shape == x.shape
    assert np.abs(adversarial - x).max() <= RADIUS + 1e-6
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert mean_loss(task, adversarial, y) > mean_loss(task, x, y) + 0.01
    np.testing.assert_array_equal(x, before)


def test_a_training_step_lowers_the_loss_it_is_trained_on(task):
    pytest.importorskip("torch", reason="torch is not installed (extra `bench`)")
    x = np.random.default_rng(0).uniform(size=(6, *SHAPE)).astype(np.float32)
    y = np.arange(6) % 3
    step = peers.make_training_peer("torch_loop_training", task, 0.05, 0.9)
    losses = [step(x, y) for _ in range(20)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(("step", "size"), [({}, 0.05), ({"rel_step_size": 0.25}, 0.025), ({"step_size": 0.01}, 0.01)])
def test_peers_make_the_steps_of_our_attack(step, size, task):
    asked = peers.task_of({"name": "pgd", "radius": 0.1, "num_steps": 5, **step}, task.model, {}, SHAPE, 0)
    assert (asked.radius, asked.step_size, asked.num_steps) == (0.1, pytest.approx(size), 5)


def test_unknown_peer(task):
    with pytest.raises(ConfigError, match=r"peer='torchattack_pgd' is unknown.*did you mean 'torchattacks_pgd'"):
        peers.make_peer("torchattack_pgd", task)


def test_missing_libraries_are_named(monkeypatch):
    monkeypatch.setattr(peers, "_is_installed", lambda library: library == "torch")
    with pytest.raises(ConfigError, match=r"need art, foolbox: see `bench` in the README"):
        peers.check_peers(["art_pgd", "foolbox_jax_pgd"])
    peers.check_peers(["torch_loop_pgd"])


def test_every_peer_has_requirements():
    assert set(peers.PEERS) == set(peers.REQUIREMENTS)
