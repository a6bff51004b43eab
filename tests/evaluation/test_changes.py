"""What an attack did to an image: distances around the right image, and the attribute values that it found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import (
    attribute,
    attribute_attack,
    chain,
    fgsm,
    in_chunks,
    make_attack,
    pgd,
    restarts,
    spa,
    worst_of,
)
from spa_jax.evaluation import attack_distances, changes, edited_images, evaluate
from spa_jax.spaces import latent, linf
from spa_jax.types import Result

KEY = jax.random.key(7)
pytestmark = pytest.mark.usefixtures("quick_compilation")
LIGHT = {"brightness": {"low": -0.3, "high": 0.3}}
JOINT = spa(0.02, LIGHT, 2)


def images(n=3, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 0.9, (n, 4, 4, 1)).astype(np.float32)


def nobody(images):
    """A victim that nobody asks."""
    raise AssertionError("asked")


def blind(images):
    return 0 * images.reshape(len(images), -1)[:, :2]


def test_distances_are_those_around_the_results_own_edited_image():
    x, noise = images(), 0.02 * np.sign(images(seed=1) - 0.5)
    light = np.array([0.3, -0.05, 0.0], np.float32)
    own = np.clip(x.astype(np.float64) + light[:, None, None, None], 0, 1)
    attacked = np.clip(own + noise, 0, 1).astype(np.float32)
    result = Result(attacked, {"brightness": light, "noise": noise}, None, None)
    edited = edited_images(JOINT, result, blind, jnp.asarray(x), jnp.zeros(3, jnp.int32))
    np.testing.assert_allclose(edited, own, atol=1e-6)
    found = attack_distances(result, jnp.asarray(x), edited)
    difference = attacked.astype(np.float64) - x
    np.testing.assert_allclose(found["linf_from_edited"], np.abs(attacked - own).max(axis=(1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(found["linf"], np.abs(difference).max(axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(found["l2"], np.sqrt((difference**2).sum(axis=(1, 2, 3))), rtol=1e-5)
    assert np.all(np.asarray(found["linf_from_edited"]) <= 0.02 + 1e-6)
    assert np.asarray(found["linf"])[0] > 0.1 and np.asarray(found["ssim"])[2] < 1


@pytest.mark.parametrize("wrap", [lambda a: a, lambda a: restarts(a, 2), lambda a: in_chunks(a, 4)])
def test_attributes_are_found_inside_combinators(linear_victim, split, wrap):
    x, y = jnp.asarray(split.images[:8]), jnp.asarray(split.labels[:8])
    attack = wrap(JOINT)
    result = attack(KEY, linear_victim, x, y)
    edited = edited_images(attack, result, nobody, x, y)
    np.testing.assert_allclose(
        edited, attack.apply(result.variables, linear_victim, x, y, without=("noise",)), atol=1e-6
    )
    found = attack_distances(result, x, edited)
    assert np.all(np.asarray(found["linf_from_edited"]) <= 0.02 + 1e-6)
    assert np.any(np.asarray(found["linf"]) > 0.05)
    values = changes.attribute_values(attack, result.variables)
    np.testing.assert_array_equal(values["brightness"], result.variables["brightness"])
    assert list(values) == ["brightness"] and changes.moves_noise(attack)


def test_what_an_attack_moves_is_known_or_nothing():
    both = chain(light=attribute("brightness"), noise=linf(0.1))
    for attack, names, noise in (
        (pgd(0.1, 1), [], True),
        (attribute_attack("brightness"), ["brightness"], False),
        (attribute_attack(lambda image, value: image + value, -1.0, 1.0), ["attribute"], False),
        (make_attack(both), ["light"], True),
        (make_attack(latent(lambda z, example: example.image, 2, 1.0)), [], True),
        (worst_of(JOINT, pgd(0.1, 1)), [], False),
        (lambda key, predict, x, y: None, [], False),
    ):
        assert (list(changes.attribute_spaces(attack)), changes.moves_noise(attack)) == (names, noise)


def test_the_numbers_of_a_vector_have_names():
    def face(image, values):
        return image + values[0]

    named = jax.tree_util.Partial(face)
    assert changes.names_of_numbers("face", attribute(face, [0.0, 0.0], [1.0, 1.0])) == ["face[0]", "face[1]"]
    assert changes.names_of_numbers("face", attribute(face, [0.0], [1.0])) == ["face"]
    assert changes.names_of_numbers("light", attribute("brightness")) == ["light"]
    named.names = ("smile", "age")
    assert changes.names_of_numbers("face", attribute(named, [0.0, 0.0], [1.0, 1.0])) == ["face[smile]", "face[age]"]


def test_the_edited_image_of_other_attacks():
    x, attacked = jnp.asarray(images()), jnp.asarray(images(seed=1))
    y = jnp.zeros(3, jnp.int32)
    noise_only = Result(attacked, attacked - x, None, None)
    np.testing.assert_array_equal(edited_images(pgd(0.1, 1), noise_only, nobody, x, y), x)
    light_only = Result(attacked, jnp.zeros(3), None, None)
    np.testing.assert_array_equal(edited_images(attribute_attack("brightness"), light_only, nobody, x, y), attacked)
    attack = make_attack(chain(light=attribute("brightness"), first=linf(0.1), second=linf(0.1)))
    noises = dict.fromkeys(("first", "second"), attacked - x)
    both = Result(attacked, {"light": jnp.full(3, 0.05), **noises}, None, None)
    np.testing.assert_allclose(edited_images(attack, both, blind, x, y), x + 0.05, atol=1e-6)


def test_an_evaluation_records_the_distances_of_the_fooled(linear_victim, split, margins):
    report = evaluate(
        linear_victim, split, {"fgsm": fgsm(0.005), "none": fgsm(0.0)}, key=KEY, batch_size=32, sanity=False
    )
    measured = report.attacks["fgsm"].distances
    for name, expected in {"linf_from_edited": 0.005, "linf": 0.005, "l2": 4 * 0.005}.items():
        assert (measured[name].mean, measured[name].worst) == pytest.approx((expected, expected), rel=1e-4)
    assert 0 < measured["ssim"].worst < measured["ssim"].mean < 1
    assert report.attacks["none"].distances == {} and report.attacks["none"].attributes == {}


def test_an_evaluation_records_the_attribute_values_of_the_fooled(linear_victim, split):
    report = evaluate(linear_victim, split, {"joint": JOINT}, key=KEY, batch_size=32, sanity=False)
    record = report.attacks["joint"]
    assert list(record.attributes) == ["brightness"]
    values = record.attributes["brightness"]
    assert len(values.values) == record.attacked - record.correct.sum() > 0
    assert np.all(np.abs(values.values) <= 0.3) and (values.low, values.high) == (-0.3, 0.3)
