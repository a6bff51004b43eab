"""Attack objectives against their formulas in NumPy float64, their gradients against the analytic ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from spa_jax import Example
from spa_jax.losses import (
    LOSSES,
    capped_cross_entropy,
    cross_entropy,
    diversity,
    dlr,
    independent_bce,
    kl_divergence,
    loss_from_spec,
    margin,
    on_labels,
    smoothed_cross_entropy,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCH, CLASSES = 32, 6
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(BATCH, CLASSES)) * 10 ** RNG.uniform(-1, 1.3, (BATCH, 1))
REFERENCE = RNG.normal(size=(BATCH, CLASSES)) * 2
LABELS = RNG.integers(0, CLASSES, BATCH)
TRUE_LABELS = (LABELS + 1) % CLASSES
ROWS = np.arange(BATCH)
ONE_HOT = np.eye(CLASSES)[LABELS]

log_p = LOGITS - LOGITS.max(1, keepdims=True)
log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
P = np.exp(log_p)
log_reference = REFERENCE - np.log(np.exp(REFERENCE).sum(1, keepdims=True))
P_REFERENCE = np.exp(log_reference)
ORDERED = np.sort(LOGITS, axis=1)[:, ::-1]
OWN = LOGITS[ROWS, LABELS]
OTHERS = np.array([np.delete(row, label).max() for row, label in zip(LOGITS, LABELS, strict=True)])
RIVAL = np.eye(CLASSES)[[np.flatnonzero(row == best)[0] for row, best in zip(LOGITS, OTHERS, strict=True)]]
CE = -log_p[ROWS, LABELS]
DENOMINATOR = ORDERED[:, 0] - (ORDERED[:, 2] + ORDERED[:, 3]) / 2
SMOOTHED = -0.7 * log_p[ROWS, LABELS] - 0.3 * log_p.mean(1)
SIGMOID = 1 / (1 + np.exp(-LOGITS))
SMOOTHED_LABEL = 0.7 * ONE_HOT + 0.3 / CLASSES
BCE = np.sum(np.logaddexp(0, LOGITS) - SMOOTHED_LABEL * LOGITS, axis=1)
REST = np.log(1 - np.exp(-2))

CASES = {
    # loss, whether LABELS are targets, values, gradient of each value with respect to its own logits (None: unchecked)
    "cross_entropy": (cross_entropy, False, CE, P - ONE_HOT),
    "targeted_cross_entropy": (cross_entropy, True, -CE, ONE_HOT - P),
    "margin": (margin, False, OTHERS - OWN, RIVAL - ONE_HOT),
    "targeted_margin": (margin, True, OWN - OTHERS, ONE_HOT - RIVAL),
    "dlr": (dlr, False, -(OWN - OTHERS) / (ORDERED[:, 0] - ORDERED[:, 2]), None),
    "targeted_dlr": (dlr, True, -(LOGITS[ROWS, TRUE_LABELS] - OWN) / DENOMINATOR, None),
    "capped": (capped_cross_entropy(2.0), False, np.minimum(CE, 2), (P - ONE_HOT) * (CE < 2)[:, None]),
    "capped_targeted": (
        capped_cross_entropy(2.0),
        True,
        np.minimum(-CE, REST),
        (ONE_HOT - P) * (-CE < REST)[:, None],
    ),
    "smoothed": (smoothed_cross_entropy(0.3), False, SMOOTHED, P - 0.7 * ONE_HOT - 0.3 / CLASSES),
    "smoothed_targeted": (smoothed_cross_entropy(0.3), True, -SMOOTHED, 0.7 * ONE_HOT + 0.3 / CLASSES - P),
    "bce": (independent_bce(0.3), False, BCE, SIGMOID - SMOOTHED_LABEL),
    "bce_targeted": (independent_bce(0.3), True, -BCE, SMOOTHED_LABEL - SIGMOID),
    "kl": (kl_divergence, False, np.sum(P_REFERENCE * (log_reference - log_p), axis=1), P - P_REFERENCE),
    "on_labels": (on_labels(optax.softmax_cross_entropy_with_integer_labels), False, CE, P - ONE_HOT),
    "targeted_on_labels": (on_labels(optax.softmax_cross_entropy_with_integer_labels), True, -CE, ONE_HOT - P),
}


def evaluate(loss, logits, labels=LABELS, is_target=False, reference=REFERENCE):
    """A loss at labels; where these are targets, the true labels are the classes after them."""
    labels = jnp.asarray(labels)
    known = {"label": jnp.asarray(TRUE_LABELS), "target": labels} if is_target else {"label": labels}
    return loss(jnp.asarray(logits, jnp.float32), Example(None, **known, reference=jnp.asarray(reference, jnp.float32)))


def evaluate_case(name, logits):
    loss, is_target, *_ = CASES[name]
    return evaluate(loss, logits, is_target=is_target)


@pytest.mark.parametrize("name", CASES)
def test_loss_equals_its_formula(name):
    expected, value = CASES[name][2], evaluate_case(name, LOGITS)
    assert value.shape == (BATCH,) and value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[3] is not None])
def test_gradient_is_the_analytic_one(name):
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(evaluate_case(name, z))))(jnp.asarray(LOGITS, jnp.float32))
    np.testing.assert_allclose(gradient, CASES[name][3], atol=2e-5)


@pytest.mark.parametrize("name", ["dlr", "targeted_dlr"])
def test_dlr_does_not_change_with_shift_or_scale_of_the_logits(name):
    for scale, shift in ((0.01, 0.0), (50.0, 0.0), (1.0, 30.0), (3.0, -20.0)):
        np.testing.assert_allclose(evaluate_case(name, LOGITS * scale + shift), CASES[name][2], rtol=1e-3, atol=1e-4)


def test_dlr_of_a_correct_answer_is_at_least_minus_one_and_at_most_zero():
    right = evaluate(dlr, LOGITS, LOGITS.argmax(1))
    assert np.all((right >= -1 - 1e-6) & (right <= 0))


def test_margins_are_positive_exactly_where_the_goal_is_reached():
    hit = LOGITS.argmax(1) == LABELS
    assert 0 < hit.sum() < BATCH
    np.testing.assert_array_equal(evaluate(margin, LOGITS) > 0, ~hit)
    np.testing.assert_array_equal(evaluate(margin, LOGITS, is_target=True) > 0, hit)


@pytest.mark.parametrize("cap", [math.log(2), 1.0, 9.0])
def test_a_capped_loss_rests_only_once_a_target_has_won(cap):
    """On the way of logits from another answer to the target."""
    way = np.linspace(-20, 20, 400)[:, None] * np.eye(3)[1] + np.array([4.0, 0.0, 1.0])
    labels = np.ones(len(way), int)
    loss = capped_cross_entropy(cap)
    slope = jax.grad(lambda z: jnp.sum(evaluate(loss, z, labels, True)))(jnp.asarray(way, jnp.float32))
    rests = np.all(np.asarray(slope) == 0, axis=1)
    assert np.any(rests) and np.all(way.argmax(1)[rests] == 1)


def test_kl_is_zero_at_the_reference_and_does_not_read_labels():
    np.testing.assert_allclose(evaluate(kl_divergence, LOGITS, reference=LOGITS), 0, atol=1e-5)
    plain = evaluate(kl_divergence, LOGITS)
    np.testing.assert_array_equal(plain, evaluate(kl_divergence, LOGITS, TRUE_LABELS))
    np.testing.assert_array_equal(plain, evaluate(kl_divergence, LOGITS, is_target=True))


def test_losses_stay_finite_for_saturated_logits():
    extreme = np.array([[1e4, -1e4, 0.0, 5.0], [-1e4, 1e4, 3.0, 3.0], [7.0, 7.0, 7.0, 7.0]])
    losses = (cross_entropy, margin, dlr, smoothed_cross_entropy(), capped_cross_entropy())
    losses += (independent_bce(), smoothed_cross_entropy(0.3, "clamp"), smoothed_cross_entropy(0.3, "anneal"))

    def values(logits):
        examples = Example(None, label=jnp.array([1, 1, 2]))
        aimed = examples.replace(target=jnp.array([0, 0, 3]))
        logits = jnp.asarray(logits, jnp.float32)
        return jnp.stack([loss(logits, known) for loss in losses for known in (examples, aimed)])

    assert np.all(np.isfinite(jax.jit(values)(extreme)))
    assert np.all(np.isfinite(jax.jit(jax.jacrev(values))(jnp.asarray(extreme, jnp.float32))))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluate(dlr, LOGITS[:, :2], LABELS % 2), r"classes=2.*dlr needs at least 3 classes"),
        (lambda: evaluate(dlr, LOGITS[:, :3], LABELS % 3, is_target=True), r"classes=3.*targeted dlr needs at least 4"),
        (lambda: capped_cross_entropy(-1.0), r"cap=-1\.0 must be log 2 = 0\.6932 or larger"),
        (lambda: capped_cross_entropy(0.5), r"cap=0\.5 must be log 2 .* a target has won when the loss rests"),
        (lambda: smoothed_cross_entropy(1.5), r"smoothing=1\.5 must be in \[0, 1\]"),
        (lambda: kl_divergence(jnp.zeros((2, 3)), Example(None)), r"examples\.reference=None.*pass reference=logits"),
        (lambda: loss_from_spec("cros_entropy"), r"loss='cros_entropy' must be one of cross_entropy, margin, dlr"),
        (lambda: loss_from_spec({"cap": 3}), r"loss=\{'cap': 3\} must be callable or one of"),
        (lambda: loss_from_spec({"name": "margin", "cap": 3}), r"loss=.*cap"),
    ],
)
def test_bad_use_is_refused_with_value_and_rule(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- losses of one's own, and losses by name ------------------------------------------------------------------------


def test_a_loss_of_ones_own_reads_whatever_the_examples_hold():
    def weighted(logits, examples):
        return examples.weight * cross_entropy(logits, examples)

    examples = Example(None, label=jnp.asarray(LABELS), weight=jnp.linspace(0, 1, BATCH))
    value = loss_from_spec(weighted)(jnp.asarray(LOGITS, jnp.float32), examples)
    np.testing.assert_allclose(value, np.linspace(0, 1, BATCH) * CE, rtol=2e-5, atol=2e-5)


def test_a_loss_by_name_is_the_one_of_that_name():
    for name in LOSSES:
        assert callable(loss_from_spec(name))
    capped = loss_from_spec({"name": "capped_cross_entropy", "cap": 3})
    assert jax.tree.leaves(capped) == [3] and capped == capped_cross_entropy(3)


def test_the_numbers_of_a_loss_are_leaves_and_equal_functions_share_a_program():
    assert jax.tree.structure(capped_cross_entropy(1.0)) == jax.tree.structure(capped_cross_entropy(2.0))
    twins = (on_labels(optax.softmax_cross_entropy_with_integer_labels) for _ in range(2))
    assert len({jax.tree.structure(loss) for loss in twins}) == 1


# --- diversity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [math.inf, 0.4])
def test_diversity_is_the_capped_ratio_of_numpy(cap):
    random = np.random.default_rng(0)
    first, second = (random.uniform(-1, 1, (3, 5, 4, 4, 2)).astype(np.float32) for _ in range(2))
    z_first, z_second = (random.normal(size=(3, 5, 6)).astype(np.float32) for _ in range(2))
    ratio = np.abs(first - second).mean((2, 3, 4)) / (np.abs(z_first - z_second).mean(-1) + 1e-8)
    found = diversity(*map(jnp.asarray, (first, second, z_first, z_second)), cap=cap)
    np.testing.assert_allclose(found, np.minimum(ratio, cap), rtol=1e-5)


def test_pairs_beyond_the_cap_stop_pulling():
    z = jnp.zeros((2, 3)), jnp.ones((2, 3))
    second = jnp.stack([jnp.full((2, 2, 1), 0.1), jnp.full((2, 2, 1), 0.9)])
    gradient = jax.grad(lambda o: diversity(jnp.zeros_like(o), o, *z, cap=0.5).sum())(second)
    np.testing.assert_allclose(gradient[0], 0.25, rtol=1e-6)
    np.testing.assert_array_equal(gradient[1], 0)
