"""Attacks in turn, each on what is left, and the attacks that AutoAttack is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import apgd_ce, autoattack, autoattack_parts, fgsm, in_turn, pgd, until_broken
from spa_jax.attacks.base import RUN, Hosted, stream
from spa_jax.losses import margin
from tests.attack_cases import KEY, assert_consistent
from tests.attacks.test_targets import BATCH, KEYS, RADIUS, VICTIM, X, Y, breakable

pytestmark = pytest.mark.usefixtures("quick_compilation")

MEMBERS = (fgsm(0.4 * RADIUS), pgd(RADIUS, 6, loss="margin"), until_broken(apgd_ce(1.5 * RADIUS, 9), 4))


def test_each_image_has_the_first_attack_that_breaks_it():
    found = in_turn(*MEMBERS)(KEYS, VICTIM, X, Y)
    alone = [member(stream(KEYS, RUN, i), VICTIM, X, Y) for i, member in enumerate(MEMBERS)]
    successes = np.array([run.success for run in alone])
    fallen = successes.any(axis=0)
    assert 0 < successes[0].sum() < fallen.sum() < BATCH
    np.testing.assert_array_equal(found.success, fallen)
    first = successes.argmax(axis=0)
    np.testing.assert_array_equal(np.asarray(found.variables)[fallen], first[fallen])
    expected = np.array([run.x for run in alone])[first, np.arange(BATCH)]
    np.testing.assert_allclose(found.x[fallen], expected[fallen], atol=1e-6)
    assert_consistent(found, VICTIM, Y, margin)


def test_compiled_it_finds_the_same():
    called, compiled = (run(KEYS, VICTIM, X, Y) for run in (in_turn(*MEMBERS), jax.jit(in_turn(*MEMBERS))))
    np.testing.assert_array_equal(compiled.success, called.success)
    np.testing.assert_array_equal(compiled.variables, called.variables)
    np.testing.assert_allclose(compiled.x, called.x, atol=1e-6)


def test_what_has_fallen_is_not_attacked_again(monkeypatch):
    sizes, call = [], Hosted.call

    def counted(self, attack, method, *arguments, **options):
        sizes.extend([len(arguments[-1].image)] if method == "advance" else [])
        return call(self, attack, method, *arguments, **options)

    monkeypatch.setattr(Hosted, "call", counted)
    in_turn(pgd(RADIUS / 3, 2, loss="margin"), pgd(RADIUS, 3))(KEYS, VICTIM, X, Y)
    left = BATCH - int(np.sum(pgd(RADIUS / 3, 2, loss="margin")(stream(KEYS, RUN, 0), VICTIM, X, Y).success))
    assert 16 < left <= 32 and sizes[:5] == [BATCH, BATCH, 32, 32, 32]


def settings(norm, version):
    return {name: attack.num_steps for name, attack in autoattack_parts(0.1, norm, version).items()}


def test_versions_are_those_of_the_authors_code():
    standard = {"APGD-CE": 100, "APGD-T": 900, "FAB-T": 900, "Square": 5000}
    assert settings("linf", "standard") == settings("l2", "standard") == standard
    assert list(standard) == list(settings("linf", "standard"))
    assert settings("l1", "standard") == standard | {"APGD-CE": 500, "APGD-T": 500}
    plus = {"APGD-CE": 500, "APGD-DLR": 500, "FAB": 500, "Square": 5000, "APGD-T": 900, "FAB-T": 900}
    assert settings("linf", "plus") == settings("l1", "plus") == plus
    assert list(plus) == list(settings("linf", "plus"))
    rand = autoattack_parts(0.1, version="rand")
    assert {name: (attack.num_steps, attack.draws) for name, attack in rand.items()} == {
        "APGD-CE": (100, 20),
        "APGD-DLR": (100, 20),
    }
    assert list(autoattack_parts(0.1, version="rand", loss="margin")) == ["APGD-CE", "APGD-MARGIN"]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["standard", "plus"])
def test_autoattack_breaks_what_can_be_broken_and_nothing_else(version):
    """The victim is linear, so it is known of every image whether some class can be reached."""
    found = autoattack(RADIUS, version=version)(KEY, VICTIM, X, Y)
    np.testing.assert_array_equal(found.success, breakable().any(axis=0))
    assert jnp.max(jnp.abs(found.x - X)) <= RADIUS + 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: in_turn(), "needs at least one attack"),
        (lambda: autoattack(0.1, version="fast"), "version='fast'"),
        (lambda: autoattack(0.1, norm="l3"), "norm='l3'"),
        (lambda: autoattack(0.1, loss="hinge"), "loss='hinge'"),
        (lambda: autoattack(-0.1), "radius=-0.1"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
