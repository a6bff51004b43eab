"""Clean, per-attack and worst-case accuracy against victims whose answer is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import evaluation, fgsm, in_chunks, make_attack, pgd, randomized, spa, universal
from spa_jax.attacks.base import PureAttack
from spa_jax.data.types import Split
from spa_jax.evaluation import judging
from spa_jax.parallel import data_mesh
from spa_jax.spaces import linf
from spa_jax.trees import pytree
from spa_jax.types import Result

KEY = jax.random.key(7)
evaluate = functools.partial(evaluation.evaluate, sanity=False)
pytestmark = pytest.mark.usefixtures("quick_compilation")
RADII = (0.002, 0.005, 0.01)
CASCADE = {f"fgsm_{radius}": fgsm(radius) for radius in RADII}


def one_device():
    return data_mesh(jax.devices()[:1])


@pytest.mark.parametrize("attack", [fgsm, lambda radius: pgd(radius, num_steps=3)])
def test_accuracy_of_a_linear_victim_is_the_share_of_larger_margins(linear_victim, split, margins, attack):
    attacks = {str(radius): attack(radius) for radius in RADII}
    report = evaluate(linear_victim, split, attacks, key=KEY, batch_size=32, survivors_only=False)
    np.testing.assert_array_equal(report.clean, margins > 0)
    np.testing.assert_array_equal(report.labels, split.labels)
    for radius in RADII:
        np.testing.assert_array_equal(report.attacks[str(radius)].correct, margins > radius)
    np.testing.assert_array_equal(report.worst_case, margins > max(RADII))
    assert 0 < report.worst_case.sum() < report.clean.sum() < len(split)


def test_cascade_ends_at_the_worst_case_of_all_attacks(linear_victim, split, margins):
    attacks = {"small": fgsm(0.002), "large": fgsm(0.01), "middle": fgsm(0.005)}
    cascade = evaluate(linear_victim, split, attacks, key=KEY, batch_size=16, survivors_only=True)
    everything = evaluate(linear_victim, split, attacks, key=KEY, batch_size=16, survivors_only=False)
    np.testing.assert_array_equal(cascade.worst_case, everything.worst_case)
    np.testing.assert_array_equal(cascade.attacks["middle"].correct, margins > 0.01)
    np.testing.assert_array_equal(everything.attacks["middle"].correct, margins > 0.005)
    standing = [int((margins > radius).sum()) for radius in (0, 0.002, 0.01)]
    assert [record.attacked for record in cascade.attacks.values()] == standing
    assert [record.attacked for record in everything.attacks.values()] == [standing[0]] * 3


def coin_logits(bias, keys, images):
    """Heads or tails by a bit of each image's key, so that it shows which key each image was judged with."""
    heads = jax.random.key_data(keys)[:, 0] & 1
    return jax.nn.one_hot(heads, 2) + bias + 0 * jnp.mean(images, axis=(1, 2, 3))[:, None]


@pytest.fixture
def coin_victim():
    return randomized(jax.tree_util.Partial(coin_logits, jnp.asarray(0.0)))


@pytree
class Draw(PureAttack):
    """Paints the image black or white by a bit of its key."""

    bit: int

    def run(self, driver, keys, examples):
        white = (jax.random.key_data(keys)[:, 0] >> self.bit) & 1
        x = jnp.zeros_like(examples.image) + white[:, None, None, None].astype(examples.image.dtype)
        return Result(x, None, jnp.ones(x.shape[0]), jnp.ones(x.shape[0], bool))


@pytest.mark.parametrize("survivors_only", [True, False])
def test_results_do_not_depend_on_batch_size_and_devices(linear_victim, split, survivors_only):
    layouts = [(5, one_device()), (32, one_device()), (1000, one_device()), (24, data_mesh()), (13, None)]
    reports = [
        evaluate(
            linear_victim,
            split,
            {"a": Draw(0), "b": Draw(3)},
            key=KEY,
            batch_size=size,
            mesh=mesh,
            survivors_only=survivors_only,
        )
        for size, mesh in layouts
    ]
    assert 0 < reports[0].worst_case.sum() < reports[0].attacks["a"].correct.sum() < reports[0].clean.sum()
    for report in reports[1:]:
        for name, correct in reports[0].conditions.items():
            np.testing.assert_array_equal(report.conditions[name], correct)


def test_judging_does_not_depend_on_batch_size_and_devices(coin_victim, split):
    layouts = [(32, one_device()), (13, None)]
    attacks = {"a": fgsm(0.01)}
    first, second = (evaluate(coin_victim, split, attacks, key=KEY, batch_size=n, mesh=mesh) for n, mesh in layouts)
    assert 0 < first.worst_case.sum() < first.clean.sum() < len(split)
    np.testing.assert_array_equal(first.clean, second.clean)
    np.testing.assert_array_equal(first.worst_case, second.worst_case)


def test_another_attack_beside_it_changes_nothing(linear_victim, split):
    options = {"key": KEY, "batch_size": 32, "survivors_only": False}
    alone = evaluate(linear_victim, split, {"b": Draw(0)}, **options)
    both = evaluate(linear_victim, split, {"a": Draw(0), "b": Draw(0)}, **options)
    np.testing.assert_array_equal(alone.attacks["b"].correct, both.attacks["b"].correct)
    assert not np.array_equal(both.attacks["a"].correct, both.attacks["b"].correct)


def test_same_key_same_result_other_key_other_draws(coin_victim, split):
    first, again, other = (
        evaluate(coin_victim, split, {}, key=key, batch_size=32).clean for key in (KEY, KEY, jax.random.key(8))
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytree
class Fake(PureAttack):
    """Returns images of one value and claims success."""

    value: float

    def run(self, driver, keys, examples):
        x = jnp.full_like(examples.image, self.value)
        return Result(x, None, jnp.ones(x.shape[0]), jnp.ones(x.shape[0], bool))


def test_claimed_success_is_judged_anew(linear_victim, split, margins):
    """At pixels of 0.5 the linear victim ties and answers class 0."""
    report = evaluate(linear_victim, split, {"fake": Fake(0.5)}, key=KEY, batch_size=32)
    np.testing.assert_array_equal(report.attacks["fake"].correct, (margins > 0) & (split.labels == 0))
    assert report.attacks["fake"].invalid == 0


@pytest.mark.parametrize("value", [1.01, -0.01])
def test_images_outside_of_the_range_are_no_success(linear_victim, split, value):
    report = evaluate(linear_victim, split, {"fake": Fake(value)}, key=KEY, batch_size=32)
    np.testing.assert_array_equal(report.attacks["fake"].correct, report.clean)
    assert (report.attacks["fake"].invalid, report.attacks["fake"].broken) == (report.clean.sum(), 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_images_that_are_not_finite_make_no_victim_robust(linear_victim, split, value):
    report = evaluate(linear_victim, split, {"fake": Fake(value)}, key=KEY, batch_size=32)
    assert not report.attacks["fake"].correct.any()
    assert (report.attacks["fake"].invalid, report.attacks["fake"].broken) == (0, report.clean.sum())
    assert report.attacks["fake"].distances == {}


def answering_on_white(answer, images):
    """Class 1 with certainty; on white images the given logits."""
    is_white = jnp.all(images > 0.99, axis=(1, 2, 3))
    return jnp.where(is_white[:, None], answer, jnp.asarray([0.0, 9.0, -jnp.inf]))


@pytest.mark.parametrize(
    ("answer", "broken"),
    [
        ((0.0, np.nan, 0.0), True),
        ((np.nan, 9.0, 0.0), True),
        ((0.0, np.inf, 0.0), True),
        ((-np.inf, -np.inf, -np.inf), True),
        ((-np.inf, 0.0, -np.inf), False),
    ],
)
def test_answers_that_are_not_finite_make_no_victim_robust(split, answer, broken):
    """Minus infinity says that a class is impossible, which is an answer as long as another one is possible."""
    victim = jax.tree_util.Partial(answering_on_white, jnp.asarray(answer, jnp.float32))
    report = evaluate(victim, split, {"fake": Fake(1.0)}, key=KEY, batch_size=32)
    np.testing.assert_array_equal(report.clean, split.labels == 1)
    np.testing.assert_array_equal(report.attacks["fake"].correct, report.clean & (not broken))
    assert report.attacks["fake"].broken == (report.clean.sum() if broken else 0)


def test_a_randomised_victim_is_judged_with_fresh_keys(coin_victim, split):
    """An attack of radius 0 meets a wrong draw in some step; its own success and the report are of fresh draws."""
    attack = pgd(0.0, num_steps=10)
    claimed = attack(KEY, coin_victim, jnp.asarray(split.images), jnp.asarray(split.labels)).success
    report = evaluate(coin_victim, split, {"pgd": attack}, key=KEY, batch_size=32)
    judged = report.attacks["pgd"].correct.sum() / report.clean.sum()
    assert 0.2 < claimed.mean() < 0.8 and 0.2 < judged < 0.8


def test_images_are_judged_as_an_8_bit_file_stores_them(linear_victim, split):
    """0.5 becomes 128 / 255, just above; at 0.5 itself the linear victim ties and answers class 0."""
    total = np.asarray(linear_victim.args[0]).sum()
    for levels, answer in ((None, 0), (255, int(total > 0))):
        report = evaluate(linear_victim, split, {"fake": Fake(0.5)}, key=KEY, batch_size=32, levels=levels)
        np.testing.assert_array_equal(report.attacks["fake"].correct, report.clean & (split.labels == answer))


@pytest.mark.parametrize("count", [5, 101])
def test_a_victim_of_a_fixed_batch_size_sees_no_other(linear_victim, split, margins, count):
    def logits(images):
        assert images.shape == (16, 4, 4, 1)
        return linear_victim.func(linear_victim.args[0], images)

    options = {"key": KEY, "batch_size": 16, "mesh": one_device()}
    report = evaluate(logits, split.subset(np.arange(count)), {"fgsm": fgsm(0.005)}, sanity=True, **options)
    np.testing.assert_array_equal(report.attacks["fgsm"].correct, margins[:count] > 0.005)


def test_nan_logits_are_wrong(split):
    report = evaluate(lambda x: jnp.full((x.shape[0], 2), jnp.nan), split, {}, key=KEY, batch_size=32)
    assert not report.clean.any()


def test_nothing_left_to_attack(split):
    report = evaluate(lambda x: jnp.full((x.shape[0], 2), jnp.nan), split, CASCADE, key=KEY, batch_size=32)
    assert [record.attacked for record in report.attacks.values()] == [0, 0, 0]
    assert not report.worst_case.any()


@pytest.fixture
def traced(linear_victim):
    """The linear victim, and the batches it was traced for: one entry a compilation or a look at its form."""
    batches = []

    def logits(weights, images):
        batches.append(len(images))
        return linear_victim.func(weights, images)

    return jax.tree_util.Partial(logits, linear_victim.args[0]), batches


def test_nothing_recompiles_between_radii_survivors_and_models(traced, split):
    victim, batches = traced
    options = {"key": KEY, "batch_size": 16, "mesh": data_mesh()}
    evaluate(victim, split, {"a": fgsm(0.003)}, **options)
    batches.clear()
    evaluate(victim, split, CASCADE, **options)
    evaluate(jax.tree_util.Partial(victim.func, victim.args[0] * 0.5), split, CASCADE, **options)
    assert batches == []


def test_judging_compiles_once_whatever_the_attack(linear_victim, split):
    attacks = {"a": spa(0.01, attributes=("brightness",), num_steps=1), "b": fgsm(0.01)}
    judging.judge.clear_cache()
    evaluate(linear_victim, split, attacks, key=KEY, batch_size=16)
    assert judging.judge._cache_size() == 1


def test_a_plain_function_is_traced_once_for_an_evaluation_and_not_for_each_batch(linear_victim, split, margins):
    """Once for each form: for whole batches and for chunks of them."""
    weights, batches = linear_victim.args[0], []

    def logits(images):
        batches.append(len(images))
        return linear_victim.func(weights, images)

    attacks = {"chunks": in_chunks(fgsm(0.005), 8)}
    report = evaluate(logits, split, attacks, key=KEY, batch_size=16, mesh=one_device())
    assert sorted(batches) == [8, 16]
    np.testing.assert_array_equal(report.attacks["chunks"].correct, margins > 0.005)


def test_changed_weights_of_a_plain_function_are_seen(linear_victim, split):
    box = {"weights": linear_victim.args[0]}

    def logits(images):
        return linear_victim.func(box["weights"], images)

    before = evaluate(logits, split, CASCADE, key=KEY, batch_size=32)
    box["weights"] = -box["weights"]
    after = evaluate(logits, split, CASCADE, key=KEY, batch_size=32)
    np.testing.assert_array_equal(after.clean, ~before.clean)


def test_an_attack_that_is_a_function_sees_the_victim_as_it_was_given(linear_victim, split):
    def attack(key, victim, images, labels):
        moved = jnp.clip(images + 0.5, 0, 1)
        fooled = jnp.argmax(victim(images), axis=-1) == labels
        return Result(moved, None, jnp.ones(len(images)), fooled)

    weights = linear_victim.args[0]
    options = {"key": KEY, "batch_size": 32}
    first = evaluate(linear_victim, split, {"own": attack}, **options)
    second = evaluate(lambda x: linear_victim.func(weights, x), split, {"own": attack}, **options)
    np.testing.assert_array_equal(first.worst_case, second.worst_case)
    assert first.attacks["own"].attacked == first.clean.sum()


def test_uint8_images_are_scaled(linear_victim, split):
    levels = np.rint(split.images * 255).astype(np.uint8)
    floats = Split(levels.astype(np.float32) / np.float32(255), split.labels)
    reports = [
        evaluate(linear_victim, data, CASCADE, key=KEY, batch_size=32) for data in (Split(levels, split.labels), floats)
    ]
    np.testing.assert_array_equal(reports[0].worst_case, reports[1].worst_case)


def test_progress_is_told(linear_victim, split):
    told = []
    evaluate(linear_victim, split, {}, key=KEY, batch_size=40, on_batch=lambda *event: told.append(event))
    assert told == [("clean", 40, 101), ("clean", 80, 101), ("clean", 101, 101)]


def test_bad_arguments_are_named(linear_victim, split):
    options = {"key": KEY, "batch_size": 32}
    with pytest.raises(ValueError, match="per example, not universal"):
        evaluate(linear_victim, split, {"a": make_attack(linf(0.1), lift=universal)}, **options)
    with pytest.raises(ValueError, match="'clean', which the report uses"):
        evaluate(linear_victim, split, {"clean": fgsm(0.1)}, **options)
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        evaluate(linear_victim, split, {}, key=KEY, batch_size=0)
    with pytest.raises(ValueError, match="levels=0 must be an integer of at least 1"):
        evaluate(linear_victim, split, {}, levels=0, **options)
    with pytest.raises(ValueError, match="split holds no examples"):
        evaluate(linear_victim, split.subset(np.arange(0)), {}, **options)
    with pytest.raises(ValueError, match=r"labels.max\(\)=2: classes must lie in \[0, 1\]"):
        evaluate(linear_victim, Split(split.images, split.labels + 1), {}, **options)
    with pytest.raises(ValueError, match="logits"):
        evaluate(lambda x: x, split, {}, **options)
    with pytest.raises(ValueError, match=r"101 images with pixels outside of \[0, 1\], the first at 0"):
        evaluate(linear_victim, Split(split.images + 1, split.labels), {}, **options)
