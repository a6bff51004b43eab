"""Square attack: its squares, its bumps, what one query may change, and the ball that it stays in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import attribute, make_attack, square, universal
from spa_jax.losses import margin
from spa_jax.solvers import square as square_solver
from spa_jax.solvers.square import _bump, _squares
from spa_jax.spaces import l1, l2, linf
from tests.analytic_victims import images, labels, linear, weights

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZE, KEY = (9, 9, 2), jax.random.key(3)
X, Y, W = images(batch=4, size=SIZE), labels(), weights(size=SIZE)
RADII = {"linf": 0.1, "l2": 0.8, "l1": 3.0}
LENGTH = {
    "linf": lambda v: np.abs(v).max(axis=(1, 2, 3)),
    "l2": lambda v: np.sqrt((v**2).sum(axis=(1, 2, 3))),
    "l1": lambda v: np.abs(v).sum(axis=(1, 2, 3)),
}


def walk(norm, steps, victim=None):
    """The noise that each query judges, [steps, b, h, w, c], and the best that is known before it."""
    attack, victim = square(RADII[norm], steps, norm), linear(W) if victim is None else victim
    state, seen, best = attack.init(KEY, victim, X, Y), [], []
    for _ in range(steps):
        seen.append(np.asarray(state.variables, np.float64))
        best.append(np.asarray(state.solver[0].best, np.float64))
        state = attack.step(state, victim, X, Y)
    return np.array(seen), np.array(best)


def test_squares_shrink_by_the_schedule_of_the_paper():
    """The share of pixels at queries out of 10,000 (Andriushchenko et al. 2020, appendix B)."""
    shares = {0: 1, 10: 1, 11: 2, 50: 2, 51: 4, 201: 8, 501: 16, 1001: 32, 2001: 64, 4001: 128, 6001: 256, 8001: 512}
    side = _squares(linf(0.1), 0.5, 10_000, (100, 90, 1)).side
    for query, divisor in shares.items():
        assert side[query] == round(np.sqrt(0.5 / divisor * 9000))
    np.testing.assert_array_equal(_squares(linf(0.1), 0.5, 1000, (100, 90, 1)).side, side[::10])
    assert _squares(linf(0.1), 0.8, 100, (100, 50, 1)).side[0] == 50  # the image is no wider
    sides = _squares(l2(0.1), 0.8, 100, (28, 28, 1)).side
    assert np.all(sides % 2 == 1) and sides.min() == 3


@pytest.mark.parametrize("side", [1, 3, 4, 7])
def test_bumps_are_those_of_the_formula(side):
    """Equation 2, term by term with indices from 1, halves of opposite sign, of norm 1."""

    def eta(rows, columns):
        n = rows // 2
        found = np.zeros((rows, columns))
        for r in range(1, rows + 1):
            for s in range(1, columns + 1):
                depth = n - max(abs(r - rows // 2 - 1), abs(s - columns // 2 - 1))
                found[r - 1, s - 1] = sum(1 / (n + 1 - k) ** 2 for k in range(depth + 1))
        return found

    expected = np.concatenate([eta(side, side // 2), -eta(side, side - side // 2)], axis=1)
    for order in (1, 2):
        np.testing.assert_allclose(_bump(side, order), expected / np.linalg.norm(expected.ravel(), order), rtol=1e-12)


@pytest.mark.parametrize("norm", RADII)
def test_every_query_lies_in_the_ball_and_in_the_image(norm):
    seen, _ = walk(norm, 40)
    x = np.asarray(X, np.float64)
    for noise in seen:
        assert np.all(LENGTH[norm](noise) <= RADII[norm] * (1 + 1e-5))
        assert np.all((x + noise >= -1e-6) & (x + noise <= 1 + 1e-6))
    assert np.all(seen[0] == 0) and np.all(LENGTH[norm](seen[1]) > 0.5 * RADII[norm])


def test_in_linf_the_start_has_stripes_and_a_query_recolours_one_square():
    seen, best = walk("linf", 40)
    free = np.asarray((X > 0.1) & (X < 0.9))
    stripes = np.where(free, np.sign(seen[1]), 0)
    assert np.all(stripes.max(axis=1) - stripes.min(axis=1) < 2)
    sides = _squares(linf(0.1), 0.8, 40, SIZE).side
    for query in range(1, 39):
        for noise, before in zip(seen[query + 1], best[query + 1], strict=True):
            changed = np.argwhere(noise != before)
            assert len(changed), "a query that asks nothing new"
            assert np.all(np.ptp(changed[:, :2], axis=0) < sides[query - 1])
        assert np.all(np.isclose(np.abs(seen[query]), 0.1, atol=1e-6) | ~free)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_in_l2_and_l1_a_query_changes_two_squares(norm):
    seen, best = walk(norm, 40)
    for query in range(1, 39):
        side = _squares(l2(0.1), 0.8, 40, SIZE).side[query - 1]
        changed = np.any(np.abs(seen[query + 1] - best[query + 1]) > 1e-5, axis=-1)
        assert np.all(changed.sum(axis=(1, 2)) <= 2 * side**2) and changed.any()


def test_the_best_noise_is_the_one_with_the_largest_loss_since_the_start():
    seen, best = walk("l2", 30)
    values = np.einsum("qbhwc,hwc->qb", seen, np.asarray(W, np.float64)) * (1 - 2 * np.asarray(Y))
    for query in range(2, 30):
        expected = seen[1:query][values[1:query].argmax(axis=0), np.arange(len(X))]
        np.testing.assert_allclose(best[query], expected, atol=1e-6)


def test_a_victim_without_gradient_falls():
    coarse = lambda x: jnp.round(8 * linear(W)(x)) / 8  # noqa: E731
    fooled = square(0.2, 100)(KEY, coarse, X, Y)
    assert fooled.success.all()
    np.testing.assert_array_equal(jnp.argmax(coarse(fooled.x), -1) != Y, True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: square_solver(0.0), "share=0"),
        (lambda: square(0.1, 0), "num_steps=0"),
        (
            lambda: make_attack(attribute("contrast"), margin, square_solver())(KEY, linear(W), X, Y),
            "square searches linf",
        ),
        (lambda: make_attack(l1(1.0), margin, square_solver(), lift=universal)(KEY, linear(W), X, Y), "each example"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
