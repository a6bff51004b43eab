"""AutoAttack on a split: one card, the same however often it was interrupted."""

import functools
import json
import multiprocessing
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import apgd_ce, multi_targeted, pgd, randomized, square, until_broken
from spa_jax.data import Split
from spa_jax.evaluation import Check, Proportion, RobustnessCard, autoattack, cascade, evaluate
from spa_jax.evaluation.card import PartRecord
from spa_jax.evaluation.sweep import Sweep
from spa_jax.parallel import data_mesh
from tests.analytic_victims import images, mlp

pytestmark = pytest.mark.usefixtures("quick_compilation")

RADIUS, TOTAL = 0.05, 40
X = np.asarray(images(batch=TOTAL))
VICTIM = mlp(classes=5)
Y = np.array(jnp.argmax(VICTIM(X), -1))
Y[3] = (Y[3] + 1) % 5
SPLIT = Split(X, Y)


def short_parts(radius, norm="linf", version="standard", loss="dlr"):
    return {
        "APGD-CE": until_broken(apgd_ce(radius, 6, norm)),
        "APGD-T": multi_targeted(until_broken(pgd(radius, 6, norm=norm, loss=loss)), 2),
        "Square": until_broken(square(radius, 20, norm)),
    }


@pytest.fixture
def quick(monkeypatch):
    """The attacks of AutoAttack with few steps."""
    monkeypatch.setattr(cascade, "autoattack_parts", short_parts)


def run(victim=VICTIM, split=SPLIT, radius=RADIUS, **options):
    return autoattack(victim, split, radius, **{"batch_size": 16, "sanity": False} | options)


def timeless(card):
    return [(part.name, part.attacked, part.broken) for part in card.parts], card.clean, card.robust


@pytest.mark.usefixtures("quick")
def test_the_card_says_what_an_evaluation_of_the_same_attacks_finds():
    card = run()
    report = evaluate(VICTIM, SPLIT, short_parts(RADIUS), key=jax.random.key(0), batch_size=40, sanity=False)
    assert card.clean == Proportion.of(report.clean) == Proportion(TOTAL - 1, TOTAL)
    assert card.robust == Proportion.of(report.worst_case)
    standing = report.clean
    for part, record in zip(card.parts, report.attacks.values(), strict=True):
        assert (part.attacked, part.broken) == (standing.sum(), (standing & ~record.correct).sum())
        standing = standing & record.correct
    assert card.parts[0].broken > 5 and card.robust.correct > 5


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("batches", "give_up_after"), [(1, None), (2, None), (4, None), (5, None), (4, 4), (5, 4)])
def test_interrupted_and_called_again_it_goes_on_to_the_same_card(batches, give_up_after, tmp_path):
    judged = functools.partial(run, give_up_after=give_up_after)
    seen = []

    def stop(name, done, total):
        seen.append((name, done))
        if len(seen) == batches:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judged(workdir=tmp_path, on_batch=stop)
    after = []
    card = judged(workdir=tmp_path, on_batch=lambda name, done, total: after.append((name, done)))
    assert timeless(card) == timeless(judged())
    whole = []
    judged(on_batch=lambda name, done, total: whole.append((name, done)))
    assert seen + after == whole and seen == whole[:batches]
    (directory,) = tmp_path.iterdir()
    assert not [path for path in directory.iterdir() if path.name.startswith(".")]
    assert json.loads((directory / "card.json").read_text())["robust"]["correct"] == card.robust.correct
    again = judged(workdir=tmp_path, on_batch=lambda *_: pytest.fail("attacked what is known"))
    assert again.as_data() == card.as_data()


@pytest.mark.usefixtures("quick")
def test_other_settings_images_and_victims_are_kept_apart(tmp_path):
    weights = jax.tree.map(lambda leaf: 1.01 * leaf, VICTIM)
    for options in (
        {},
        {"seed": 1},
        {"radius": 0.06},
        {"parts": ["Square"]},
        {"give_up_after": 4},
        {"victim": weights},
    ):
        run(workdir=tmp_path, **options)
    run(split=Split(X[::-1].copy(), Y[::-1].copy()), workdir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 7


@pytest.mark.usefixtures("quick")
def test_victims_that_differ_in_gradients_alone_are_kept_apart_and_rounding_is_not(tmp_path):
    """A defence that hides its gradients, and the same one attacked straight through, have the same logits."""
    options = {"workdir": tmp_path, "radius": 0.1}
    victims = [detached, VICTIM, turned, lambda x: VICTIM(x) * (1 + 1e-6)]
    hidden, through, backwards, rounded = (run(victim, **options) for victim in victims)
    assert hidden.robust.correct > through.robust.correct == rounded.robust.correct
    assert backwards.robust.correct > through.robust.correct
    first, second, third = sorted(tmp_path.iterdir())
    assert (second.name, third.name) == (f"{first.name}_2", f"{first.name}_3")
    run(detached, **options, on_batch=lambda *_: pytest.fail("attacked what is known"))
    for victim in (impossible, lambda x: impossible(3 * x - 1)):
        run(victim, **options, parts=["Square"])
    assert len(list(tmp_path.iterdir())) == 5


def detached(x):
    """The victim's logits without their gradient."""
    return VICTIM(jax.lax.stop_gradient(x))


def turned(x):
    """The victim's logits with their gradient the other way round."""
    return 2 * detached(x) - VICTIM(x)


def impossible(x):
    """A last class that is never answered, whose logit is far from all others."""
    return VICTIM(x).at[:, -1].set(-1e9)


def die_in_the_second_attack(workdir):
    """Run in a process of its own, which ends without another word."""
    cascade.autoattack_parts = short_parts

    def die(name, done, total):
        if name == "APGD-T":
            os.kill(os.getpid(), signal.SIGKILL)

    run(workdir=workdir, on_batch=die)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_process_that_was_killed_leaves_what_it_knew(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=die_in_the_second_attack, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    seen = []
    card = run(workdir=tmp_path, on_batch=lambda name, done, total: seen.append((name, done)))
    assert timeless(card) == timeless(run())
    assert seen[0][0] == "APGD-T" and seen[0][1] > 16, "it goes on within the attack"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.usefixtures("quick")
def test_batch_sizes_and_parts_do_not_matter():
    card = run(batch_size=40)
    assert timeless(card) == timeless(run(batch_size=7))
    alone = run(parts=["Square", "APGD-CE"])
    assert [part.name for part in alone.parts] == ["Square", "APGD-CE"]
    assert alone.parts[0].attacked == TOTAL - 1 >= alone.parts[1].attacked


@pytest.mark.usefixtures("quick")
def test_an_attack_gives_up_after_so_many_of_the_nearest_images_in_a_row(tmp_path):
    """Counted by hand from the margins of the attack before, and what the whole attack breaks."""
    run(workdir=tmp_path / "whole")
    (path,) = (tmp_path / "whole").iterdir()
    first, second = (np.load(path / f"{name}.npz") for name in ("APGD-CE", "APGD-T"))
    stands = np.flatnonzero(first["left"])
    rows = stands[np.argsort(-first["margins"][stands])]
    assert (first["margins"][stands] < 0).all() and (first["margins"][first["seen"] & ~first["left"]] > 0).all()
    fallen = np.flatnonzero(~second["left"][rows])
    assert len(fallen) and fallen[0] < 6 and fallen[-1] < len(rows) - 12  # giving up begins after breaking
    attacked = next(n for n in range(6, len(rows), 6) if second["left"][rows[n - 6 : n]].all())
    card = run(give_up_after=6, mesh=data_mesh(jax.devices()[:1]))
    part = card.parts[1]
    assert (part.attacked, part.spared) == (attacked, len(rows) - attacked)
    assert part.broken == (~second["left"][rows[:attacked]]).sum() > 0
    assert card.parts[0].spared == 0 < card.parts[2].spared
    assert card.robust.correct == card.clean.correct - sum(part.broken for part in card.parts)
    assert "AutoAttack standard, giving up after 6 images" in str(card) and "of the nearest" in str(card)
    assert timeless(run(give_up_after=TOTAL)) == timeless(run())


@pytest.mark.parametrize("devices", [1, 3, 8])
@pytest.mark.parametrize("most", [24, 120, 504])
def test_batches_of_an_attack_are_of_one_size_with_little_padding(devices, most):
    sweep = Sweep(SPLIT, most, data_mesh(jax.devices()[:devices]))
    for total in (0, 1, 16, 17, 49, 121, 1000, 1009):
        size = cascade.even_batch(total, sweep)
        assert size <= most and size % devices == 0 and (size >= 16 or devices > 1)
        batches = -(-total // most)
        assert batches * size >= total
        assert size <= 1.2 * max(16, total / max(1, batches)) + devices


@pytest.mark.usefixtures("quick")
def test_what_only_queries_find_is_a_warning():
    card = run(lambda x: VICTIM(jnp.round(8 * x) / 8), radius=0.1)
    (warning,) = card.warnings
    assert warning.name == "queries" and warning.cause == "gradients are masked"
    broken = card.parts[-1].broken
    assert broken > 0 and f"broke {broken} of {card.parts[-1].attacked}" in warning.message
    assert not run().warnings


@pytest.mark.usefixtures("quick")
def test_a_victim_that_draws_is_told_to_take_another_version():
    def noisy(keys, x):
        return VICTIM(x + 0.05 * jax.vmap(lambda key, image: jax.random.normal(key, image.shape))(keys, x))

    assert [check.name for check in run(randomized(noisy), parts=["APGD-CE"]).warnings] == ["randomized"]
    assert not run(randomized(noisy), version="rand", parts=["APGD-CE"]).warnings


@pytest.mark.usefixtures("quick")
def test_under_the_version_for_victims_that_draw_it_is_no_alarm_that_one_does(monkeypatch):
    found = [Check("deterministic", False, "draws", "attack the mean", {}), Check("gradients", False, "none", "", {})]
    monkeypatch.setattr(cascade, "check_victim", lambda *_: found)
    options = {"parts": ["APGD-CE"], "sanity": True}
    names = {version: [own.name for own in run(version=version, **options).warnings] for version in ("rand", "plus")}
    assert names == {"rand": ["gradients"], "plus": ["deterministic", "gradients"]}


@pytest.mark.parametrize(("total", "broken", "is_masked"), [(500, 1, False), (499, 1, True), (1000, 2, False)])
def test_square_is_a_sign_where_it_breaks_more_than_a_share_of_all(total, broken, is_masked):
    """AutoAttack's authors compare accuracies: one below the other by more than 0.002."""
    parts = [PartRecord("APGD-CE", total, 9, 1.0, 100), PartRecord("Square", total - 9, broken, 1.0, 5000)]
    checks = {check.name: check for check in cascade._own_checks(VICTIM, "standard", parts, total)}
    assert checks["queries"].passed != is_masked


def test_few_classes_take_the_margin_in_the_place_of_dlr(monkeypatch):
    asked = []

    def parts(radius, norm="linf", version="standard", loss="dlr"):
        asked.append(loss)
        return {"APGD-T": multi_targeted(pgd(radius, 2, loss=loss), 2)}

    monkeypatch.setattr(cascade, "autoattack_parts", parts)
    victim = mlp(classes=3)
    card = run(victim, Split(X, np.asarray(jnp.argmax(victim(X), -1))))
    assert asked[-1] == card.loss == "margin" and card.parts[0].broken > 0


@pytest.mark.usefixtures("quick")
def test_images_outside_of_the_ball_are_no_successes(monkeypatch):
    monkeypatch.setattr(cascade, "autoattack_parts", lambda radius, *rest: {"far": pgd(4 * radius, 5)})
    (part,) = run().parts
    assert part.broken == 0 < part.invalid


def card_of(claimed):
    parts = [PartRecord("APGD-CE", 90, 30, 2.0, 100), PartRecord("Square", 60, 10, 1.0, 5000, nonfinite=1)]
    numbers = Proportion(90, 100), Proportion(50, 100)
    return RobustnessCard("net", "digits", "l2", 0.5, "standard", "dlr", 3, *numbers, parts, [], claimed, {"jax": "0"})


def test_a_card_has_everything_that_a_table_of_models_needs():
    card = card_of(0.7)
    data = json.loads(card.as_json())
    assert set(data) == {
        "format", "attack", "model", "data", "norm", "radius", "version", "loss", "seed", "images", "clean", "robust",
        "give_up_after", "claimed", "overclaimed", "parts", "seconds", "warnings", "versions",
    }  # fmt: skip
    assert (data["format"], data["radius"], data["images"], data["seconds"]) == (1, 0.5, 100, 3.0)
    assert [part["standing"] for part in data["parts"]] == [60, 50]
    assert data["parts"][1]["most_passes"] == 300_000 and data["parts"][1]["nonfinite"] == 1
    assert data["robust"]["interval"][0] < data["robust"]["accuracy"] == 0.5 < data["robust"]["interval"][1]
    assert data["overclaimed"] and not card_of(0.55).overclaimed and not card_of(None).overclaimed
    assert "claimed 70.0%" in str(card) and "lies above" in str(card) and "lies above" not in str(card_of(0.55))
    assert "broke 30 of 90 in 2.0 s" in str(card)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"claimed": 63.0}, "claimed=63"),
        ({"give_up_after": 0}, "give_up_after=0"),
        ({"version": "custom"}, "version='custom'"),
        ({"parts": ["APGD"]}, "parts holds 'APGD'"),
        ({"parts": []}, "must name at least one attack"),
        ({"radius": -1.0}, "radius=-1"),
        ({"norm": "linfty"}, "norm='linfty'"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)
