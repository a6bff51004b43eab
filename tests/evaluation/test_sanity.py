"""Every check fires on the victim it is made for, each planted defence is named, and an honest victim raises none."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import apgd_ce, attribute_attack, cw, fab_t, fgsm, fmn, pgd, randomized, rays, restarts, spa, worst_of
from spa_jax.attacks import PureAttack
from spa_jax.benchmarks.defences import DEFENCES
from spa_jax.data.types import Split
from spa_jax.evaluation import checks, evaluate, evenly_spaced, read_report, sanity_checks, write_report
from spa_jax.evaluation.sanity import Ball, noise_balls
from spa_jax.parallel import data_mesh
from spa_jax.trees import pytree, static
from tests import digits_network

KEY = jax.random.key(3)
RADIUS = 0.1
pytestmark = pytest.mark.usefixtures("quick_compilation")


def one_device():
    return data_mesh(jax.devices()[:1])


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
    found = sanity_checks(victim, split, radius=0.01, key=KEY, num_steps=5, mesh=one_device())
    names = [check.name for check in found]
    assert [name for name in names if not name.startswith("more_steps")] == [
        "finite",
        "usable_logits",
        "flat_logits",
        "deterministic",
        "independent",
        "gradients",
        "margin_gradients",
        "gradient_size[linf 0.01]",
        "many_steps[linf 0.01]",
        "black_box[linf 0.01]",
        "label_only[linf 0.01]",
        "large_radius",
    ]
    assert "more_steps[linf 0.01]" in names, "what hides the gradient here takes keys"
    assert all(check.cause == "" for check in found if check.passed)
    return {check.name: check for check in found if not check.passed}


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
    assert "attack.averaged(n) or spa_jax.crafted_on(attack, spa_jax.eot(victim, n))" in found["deterministic"].advice


def test_probabilities_are_noticed(linear_victim, split):
    found = findings(masked(linear_victim, after=softmaxed), split)
    assert set(found) == {"usable_logits"}
    assert "sum to 1" in found["usable_logits"].message


def test_saturated_logits_have_a_margin_but_no_cross_entropy_gradient(linear_victim, split):
    found = findings(masked(linear_victim, after=saturated), split)
    assert set(found) == {"usable_logits", "gradients", "black_box[linf 0.01]", "label_only[linf 0.01]"}
    assert found["gradients"].numbers["zero_cross_entropy_gradients"] > 0.5
    assert found["gradients"].numbers["zero_margin_gradients"] == 0
    assert "margin or DLR" in found["gradients"].advice


def test_nan_logits_are_noticed(linear_victim, split):
    found = findings(masked(linear_victim, after=broken), split)
    assert "finite" in found["usable_logits"].message


def test_a_surface_that_misleads_many_steps_is_noticed(linear_victim, split):
    images = np.round(split.images * 1000).astype(np.float32) / np.float32(1000)
    found = findings(masked(linear_victim, before=turned_round), Split(images, split.labels))
    assert found["many_steps[linf 0.01]"].numbers["one_step"] < found["many_steps[linf 0.01]"].numbers["many_steps"]


def flags(correct, wrong):
    return np.array([True] * correct + [False] * wrong)


def test_a_search_without_gradient_that_fools_more_is_noticed():
    """20 images that the search alone fools are more than twice their root, 3 are not."""
    ball = Ball("linf", 0.01)
    raised = checks.black_box(ball, flags(80, 20), flags(60, 40))
    assert not raised.passed and raised.numbers == {"by_gradient": 0.8, "by_queries": 0.6}
    assert checks.black_box(ball, flags(60, 40), flags(80, 20)).passed
    assert checks.black_box(ball, flags(80, 20), flags(77, 23)).passed


def test_accuracy_that_grows_with_the_steps_is_noticed():
    ball = Ball("linf", 0.01)
    raised = checks.more_steps(ball, flags(40, 60), flags(70, 30))
    assert not raised.passed and "eot" in raised.advice
    assert checks.more_steps(ball, flags(70, 30), flags(40, 60)).passed
    assert checks.more_steps(ball, flags(40, 60), flags(42, 58)).passed


@randomized
def wakeful(keys, images):
    """A coin that answers rightly more often where a pixel is not as in the split."""
    moved = jnp.any(jnp.abs(images - 0.5) > 1e-3, axis=(1, 2, 3))
    right = jax.vmap(jax.random.uniform)(keys) < jnp.where(moved, 0.95, 0.6)
    return jnp.stack([right, ~right], axis=-1).astype(images.dtype) + 0.001 * images[:, 0, 0]


@randomized
def sleepy(keys, images):
    """A coin that looks at nothing."""
    right = jax.vmap(jax.random.uniform)(keys) < 0.6
    return jnp.stack([right, ~right], axis=-1).astype(images.dtype)


def test_an_attack_that_helps_a_randomised_victim_is_noticed():
    grey = Split(np.full((200, 2, 2, 1), 0.5, np.float32), np.zeros(200, np.int32))
    options = {"key": KEY, "batch_size": 200, "mesh": one_device()}
    for victim, survivors_only, passed in ((wakeful, True, False), (sleepy, True, True), (sleepy, False, True)):
        attacks = {"one": pgd(0.1, 1, keep="last"), "two": pgd(0.1, 1, keep="last")}
        report = evaluate(victim, grey, attacks, survivors_only=survivors_only, **options)
        known = {check.name: check.passed for check in report.checks if check.name.startswith("above_clean")}
        assert known == {"above_clean[one]": passed, "above_clean[two]": passed}


def test_a_part_of_the_split_is_evenly_spaced(split):
    labels = evenly_spaced(split, 4).labels
    np.testing.assert_array_equal(labels, split.labels[[0, 25, 50, 75]])
    assert len(evenly_spaced(split, 1000)) == 101
    with pytest.raises(ValueError, match="count=0 must be at least 1"):
        evenly_spaced(split, 0)


def test_radius_is_checked(linear_victim, split):
    with pytest.raises(ValueError, match="radius=0 must be larger than 0"):
        sanity_checks(linear_victim, split, key=KEY, radius=0)
    with pytest.raises(ValueError, match="norm='l3' must be one of linf, l2, l1"):
        sanity_checks(linear_victim, split, key=KEY, radius=0.1, norm="l3")


HIDDEN_GRADIENT = "the victim passes no gradient"
CAUSES = {
    "quantiser": HIDDEN_GRADIENT,
    "logits x 1000": "saturated",
    "squashed scores": "squashes its scores",
    "noise and resize": "draws at random",
    "median, detached": HIDDEN_GRADIENT,
    "median, 1/1000 attached": "much smaller than what the victim does",
    "sine": "shattered",
    "DCT quantiser": HIDDEN_GRADIENT,
    "temperature": "almost uniform",
    "tiny float16": "almost uniform",
    "float16 log-softmax": "NaN or infinity",
    "one-hot": HIDDEN_GRADIENT,
    "BatchNorm of the batch": "BatchNorm in training mode",
    "unit columns": "NaN or infinity in its gradient",
    "NaN off the 8-bit grid": "NaN or infinity",
}


@pytest.fixture(scope="module")
def digits():
    return digits_network.split()


def planted(name):
    """The defence around the small network."""
    return DEFENCES[name].plant(digits_network.trained(), digits_network.stored())


def findings_of_an_evaluation(victim, split, attacks):
    report = evaluate(victim, split, attacks, key=KEY, batch_size=96, mesh=one_device())
    return report, {check.name: check for check in report.findings}


@pytest.mark.parametrize("name", DEFENCES)
def test_an_evaluation_names_what_makes_a_planted_defence_look_good(name, digits):
    _, found = findings_of_an_evaluation(planted(name), digits, {"pgd": pgd(RADIUS, 20)})
    by_check = {check.name.partition("[")[0]: f"{check.cause}: {check.message}" for check in found.values()}
    assert CAUSES[name] in by_check[DEFENCES[name].check]


BROKEN_BY_LABELS = ["quantiser", "logits x 1000", "squashed scores", "median, detached", "DCT quantiser", "one-hot"]


@pytest.mark.parametrize("name", BROKEN_BY_LABELS)
def test_labels_alone_break_what_hides_gradients_and_scores(name, digits):
    found = sanity_checks(planted(name), digits, radius=RADIUS, key=KEY, mesh=one_device())
    (check,) = [check for check in found if check.name == "label_only[linf 0.1]"]
    assert not check.passed
    assert check.numbers["by_queries"] < check.numbers["by_gradient"] - 0.1


@pytest.mark.parametrize("attacked", [False, True], ids=["undefended", "trained_on_pgd"])
def test_an_honest_network_raises_nothing_in_any_norm(attacked, digits):
    attacks = {
        "linf": pgd(0.1, 20),
        "larger": restarts(pgd(0.2, 20), 2),
        "l2": worst_of(pgd(0.6, 20, norm="l2"), fgsm(0.1)),
        "l1": pgd(2.0, 20, norm="l1"),
    }
    report, found = findings_of_an_evaluation(digits_network.trained(attacked), digits, attacks)
    assert found == {}
    balls = ["linf 0.1", "linf 0.2", "l2 0.6", "l1 2"]
    assert [check.name for check in report.checks if "[" in check.name] == [
        f"{name}[{ball}]"
        for name in ("gradient_size", "many_steps", "black_box", "label_only")
        for ball in balls
        if name != "label_only" or ball.startswith("linf")
    ]


@pytest.mark.parametrize(("norm", "radius"), [("linf", 0.1), ("l2", 0.5)])
def test_answers_that_are_not_finite_near_an_image_make_it_no_more_robust(norm, radius, digits):
    """The search leaves such points, so that what it returns is the clean image, which the victim answers well."""
    victim = planted("NaN off the 8-bit grid")
    attacks = {"pgd": pgd(radius, 3, norm=norm)}
    report = evaluate(victim, digits, attacks, key=KEY, batch_size=96, mesh=one_device(), sanity=False)
    assert report.attacks["pgd"].broken == report.clean.sum() == 96
    assert not report.worst_case.any()


def test_a_gradient_that_is_not_finite_breaks_no_image(digits):
    victim = planted("unit columns")
    attacks = {"pgd": pgd(RADIUS, 3)}
    report = evaluate(victim, digits, attacks, key=KEY, batch_size=96, mesh=one_device(), sanity=False)
    assert report.attacks["pgd"].broken == 0 and 0 < report.worst_case.sum() < 96


def test_the_noise_of_attacks_is_read_from_them():
    joint, own = spa(0.3, ["rotation"], 2), lambda key, victim, images, labels: None
    attacks = [attribute_attack("rotation"), cw(), own, joint, worst_of(fgsm(0.1), restarts(fgsm(0.2, "l2"), 2))]
    assert noise_balls([*attacks, fgsm(0.1), apgd_ce(0.0)]) == [Ball("linf", 0.3), Ball("linf", 0.1), Ball("l2", 0.2)]
    assert noise_balls([rays(), fmn(), rays(0.1), fab_t("l1", 2.0)]) == [Ball("linf", 0.1), Ball("l1", 2.0)]
    assert noise_balls([OwnAttack("Linf", 0.1), OwnAttack("linf", None), OwnAttack(None, 0.1)]) == []


@pytree
class OwnAttack(PureAttack):
    """It has fields of these names that mean what its user likes."""

    norm: str | None = static()
    radius: Any = static()


def test_checks_without_a_radius_run_where_no_noise_is_known(linear_victim, split):
    attacks = {"brighter": attribute_attack("brightness")}
    report = evaluate(linear_victim, split, attacks, key=KEY, batch_size=101, mesh=one_device())
    assert [check.name for check in report.checks if "[" in check.name] == []
    assert {"independent", "large_radius"} <= {check.name for check in report.checks}


def test_checks_can_be_left_out_and_need_an_attack(linear_victim, split):
    options = {"key": KEY, "batch_size": 101, "mesh": one_device()}
    assert evaluate(linear_victim, split, {"fgsm": fgsm(0.01)}, sanity=False, **options).checks == ()
    assert evaluate(linear_victim, split, {}, **options).checks == ()


def test_a_cause_is_in_the_report(linear_victim, split, tmp_path):
    victim = masked(linear_victim, after=noisy)
    report = evaluate(victim, split, {"fgsm": fgsm(0.01)}, key=KEY, batch_size=101, mesh=one_device())
    write_report({"noisy": report}, tmp_path, title="", dataset="", seed=0, config={})
    assert "**noisy, deterministic**: the victim draws at random: another key" in (tmp_path / "report.md").read_text()
    assert read_report(tmp_path / "report.json")["noisy"].findings == report.findings
