"""Goals against the answers of a victim: when an attack has succeeded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import Example, make_attack
from spa_jax.goals import confident, misclassified
from spa_jax.losses import margin
from spa_jax.spaces import linf
from tests.analytic_victims import linear, margins
from tests.attack_cases import INNER, KEY, TWO, W

pytestmark = pytest.mark.usefixtures("quick_compilation")

LOGITS = jnp.array([[3.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 1.0, 1.5], [2.0, 2.0, 0.0]])
LABELS = jnp.zeros(4, jnp.int32)


def reached(goal, target=None):
    return np.asarray(goal(LOGITS, Example(None, LABELS, None if target is None else jnp.asarray(target)))).tolist()


def test_misclassified_is_another_answer_than_the_label_or_the_target():
    assert reached(misclassified) == [False, True, True, False]
    assert reached(misclassified, [1, 1, 1, 1]) == [False, True, False, False]
    assert reached(misclassified, [2, 2, 2, 2]) == [False, False, True, False]


def test_confident_asks_for_a_margin_too():
    assert reached(confident(1.0)) == [False, True, True, False]
    assert reached(confident(2.0)) == [False, True, False, False]
    assert reached(confident(0.0)) == reached(misclassified), "equal logits do not count as an error"
    assert reached(confident(2.0), [1, 1, 1, 1]) == [False, True, False, False]
    assert reached(confident(0.6), [2, 2, 2, 2]) == [False, False, False, False]


def test_labels_of_any_integer_type_are_compared():
    for kind in (jnp.uint8, jnp.int32):
        assert misclassified(LOGITS, Example(None, LABELS.astype(kind))).tolist() == [False, True, True, False]
    with jax.enable_x64(True):
        assert misclassified(LOGITS, Example(None, LABELS)).tolist() == [False, True, True, False]


def test_a_bound_is_a_leaf_and_is_checked():
    assert jax.tree.leaves(confident(0.5)) == [0.5]
    with pytest.raises(ValueError, match=r"bound=-1\.0 must be 0 or larger"):
        confident(-1.0)


def test_an_attack_reports_the_goal_it_was_given():
    best = margins(W, INNER, TWO) + 0.1 * np.sum(np.abs(np.asarray(W, np.float64)))
    bound = float(np.median(best))
    result = make_attack(linf(0.1), margin, num_steps=4, goal=confident(bound))(KEY, linear(W), INNER, TWO)
    np.testing.assert_array_equal(result.success, best > bound)
    assert 0 < np.mean(result.success) < 1
