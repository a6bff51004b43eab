"""Pictures: what is on a sheet, that its pixels are crisp, and that curves are drawn."""

import dataclasses
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spa_jax import attack_from_config, attribute, chain, fgsm, per_example, purify, spa
from spa_jax.attacks.base import PureAttack
from spa_jax.data.types import Split
from spa_jax.evaluation import (
    Curve,
    Sheet,
    SheetRow,
    curves_png,
    drawing,
    evaluate,
    make_sheet,
    pictures,
    sheet_png,
)
from spa_jax.evaluation.drawing import magnification
from spa_jax.evaluation.sweep import first_of_each_class
from spa_jax.spaces import latent
from spa_jax.trees import pytree
from spa_jax.types import Result
from spa_jax.victims import rt2

KEY = jax.random.key(0)
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def joint():
    return spa(0.01, attributes={"brightness": {"low": -0.1, "high": 0.1}}, num_steps=1)


def test_a_sheet_of_the_joint_attack_has_four_rows(linear_victim, split, joint):
    sheet = make_sheet(linear_victim, split, joint, name="joint", key=KEY, batch_size=16, columns=6)
    clean, edited, attacked, noise = sheet.rows
    assert [row.title.split("\n")[0] for row in sheet.rows] == [
        "clean",
        "edited",
        "joint",
        f"noise {pictures._TIMES} 50",
    ]
    np.testing.assert_array_equal(sheet.labels, [0, 0, 0, 1, 1, 1])
    magnified = (noise.images - 0.5) / 50
    assert np.abs(magnified).max() <= 0.01 + 1e-6
    shifts = [float(text.replace(drawing.MINUS, "-")) for text in attacked.captions]
    brightened = (clean.images + np.reshape(shifts, (6, 1, 1, 1))).clip(0, 1)
    np.testing.assert_allclose(attacked.images, brightened + magnified, atol=2e-3)
    assert noise.predictions is None
    assert edited.images.shape == (6, 4, 4, 1)


def test_a_sheet_reuses_the_evaluation_program(linear_victim, split, joint):
    batches = []

    def logits(weights, images):
        batches.append(len(images))
        return linear_victim.func(weights, images)

    victim = jax.tree_util.Partial(logits, linear_victim.args[0])
    options = {"key": KEY, "batch_size": 16}
    evaluate(victim, split, {"joint": joint}, **options)
    make_sheet(victim, split, fgsm(0.01), name="other", **options)  # compiles how a sheet asks for predictions
    batches.clear()
    make_sheet(victim, split, joint, name="joint", **options)
    assert batches == []


@pytest.mark.parametrize(
    ("attack", "titles"),
    [
        (fgsm(0.01), ["clean", "attack", f"noise {pictures._TIMES} 50"]),
        (
            attack_from_config({"name": "attribute", "edit": "brightness", "method": "grid", "num_steps": 3}),
            ["clean", "attack"],
        ),
    ],
)
def test_a_sheet_of_another_attack_shows_what_there_is(linear_victim, split, attack, titles):
    sheet = make_sheet(linear_victim, split, attack, name="attack", key=KEY, batch_size=16, columns=4)
    assert [row.title.split("\n")[0] for row in sheet.rows] == titles


def tilt(image, values):
    """An edit by a vector: light from the left and from above."""
    across, down = jnp.linspace(-1, 1, image.shape[1])[None, :, None], jnp.linspace(-1, 1, image.shape[0])
    return image + values[0] * across + values[1] * down[:, None, None]


@pytree
class Generated(PureAttack):
    """Moves a vector of attributes and a latent of noise that is not an image."""

    space: Any
    amount: Any

    def members(self):
        return self.space.members()

    def run(self, driver, keys, examples):
        count = len(examples.image)
        variables = {"noise": jnp.ones((count, 5)), "tilt": jnp.tile(jnp.array([0.02, -0.03]), (count, 1))}
        edited = jax.vmap(tilt)(examples.image, variables["tilt"])
        found = edited + self.amount
        return Result(found, variables, jnp.ones(count), jnp.ones(count, bool), {"noise": edited})


def test_a_sheet_copes_with_vectors_and_with_generated_noise(linear_victim, split):
    """The noise is what the image has beyond its own edited image."""
    face = attribute(tilt, [-0.1, -0.1], [0.1, 0.1])
    attack = Generated(per_example(chain(tilt=face, noise=latent(lambda z, example: example.image, 5, 1.0))), 0.004)
    sheet = make_sheet(linear_victim, split, attack, name="joint", key=KEY, batch_size=16, columns=4)
    _, edited, attacked, noise = sheet.rows
    assert attacked.title == "joint\ntilt\n+ noise" and noise.title.startswith(f"noise {pictures._TIMES} 100")
    np.testing.assert_allclose((noise.images - 0.5) / 100, 0.004, atol=1e-6)
    assert attacked.captions == [f"0.02, {drawing.MINUS}0.03"] * 4
    assert sheet.attributes == ("tilt[0]", "tilt[1]")
    assert edited.captions == attacked.captions
    assert decoded(sheet_png(sheet, "model")).shape[2] == 4


def test_long_vectors_are_written_in_lines_and_cut():
    captions = pictures._captions([np.arange(5.0)[None], np.arange(7.0)[None]], 1)
    assert captions == ["0, 1, 2\n3, 4, 0\n1, 2, 3\n…"]
    assert pictures._captions([], 2) == ["", ""]

    def lines(caption):
        return pictures._text_lines(SheetRow("", np.zeros((1, 4, 4, 1), np.float32), np.array([0]), [caption]))

    assert (lines(""), lines("a"), lines("a\nb\nc")) == (1, 2, 4)


def test_attributes_stand_in_the_order_of_application(linear_victim, split):
    attack = spa(0.01, attributes=("rotation", "brightness"), num_steps=1)
    sheet = make_sheet(linear_victim, split, attack, name="joint", key=KEY, batch_size=16, columns=2)
    assert list(sheet.attributes) == ["rotation", "brightness"]
    assert sheet.rows[1].title == "edited\nrotation\nbrightness"


@pytest.mark.parametrize("is_plain", [False, True])
def test_a_sheet_shows_what_a_purifier_makes_of_the_attacked_images(linear_victim, split, is_plain):
    """The network answers the purified row as the victim answered the attacked images: both are of one draw."""
    network = (lambda images: linear_victim(images)) if is_plain else linear_victim  # the latter is a pytree of arrays
    victim = purify(network, rt2(0.2, 4))
    sheet = make_sheet(victim, split, fgsm(0.01), name="fgsm", key=KEY, batch_size=16, columns=12)
    assert [row.title.split(" ")[0] for row in sheet.rows] == ["clean", "fgsm", "transformed", "noise"]
    _, attacked, transformed, noise = sheet.rows
    np.testing.assert_array_equal(jnp.argmax(linear_victim(transformed.images), axis=-1), attacked.predictions)
    assert len(set(attacked.predictions.tolist())) == 2
    hidden = np.mean(transformed.images == 0.5, axis=(1, 2, 3))
    np.testing.assert_allclose(hidden, 0.25, err_msg="a quarter of the blocks is hidden")
    assert noise.is_signed and not transformed.is_signed and transformed.predictions is None
    assert pictures._of_one_draw(sheet) == (
        "The victim draws at random: predictions and the row transformed are of one draw; another draw may differ."
    )
    taller, shorter = (dataclasses.replace(sheet, draws_at_random=drawn) for drawn in (True, False))
    assert len(decoded(sheet_png(taller, "model"))) > len(decoded(sheet_png(shorter, "model")))
    assert sheet.draws_at_random


def test_a_deterministic_purifier_has_one_row(linear_victim, split):
    victim = purify(linear_victim, lambda images: jnp.round(8 * images) / 8)
    sheet = make_sheet(victim, split, fgsm(0.01), name="fgsm", key=KEY, batch_size=16, columns=4)
    _, attacked, purified, _ = sheet.rows
    assert purified.title == "purified" and not sheet.draws_at_random
    np.testing.assert_array_equal(purified.images, np.round(8 * attacked.images) / 8)


def test_columns_are_the_first_of_each_class():
    labels = np.array([2, 2, 0, 1, 0, 1, 2], np.int32)
    split = Split(np.zeros((7, 4, 4, 1), np.float32), labels)
    assert first_of_each_class(split, 3).tolist() == [2, 3, 0]
    assert first_of_each_class(split, 4).tolist() == [2, 4, 3, 0]
    assert first_of_each_class(split, 100).tolist() == [2, 4, 3, 5, 0, 1, 6]


@pytest.mark.parametrize(("noise", "gain"), [(0.1, 5), (0.1000001, 5), (8 / 255, 10), (0.5, 1), (0.004, 100), (0, 1)])
def test_noise_is_magnified_by_a_round_number(noise, gain):
    assert magnification(np.array([-noise, noise / 2])) == pytest.approx(gain)


def decoded(png):
    from matplotlib.image import imread

    return imread(io.BytesIO(png))


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (32, 3)])
def test_every_pixel_is_a_crisp_square(size, channels):
    """The first tile starts where the first row of pixels differs from white, framed by one grey line."""
    images = np.random.default_rng(0).uniform(0, 0.7, (2, size, size, channels)).astype(np.float32)
    rows = [SheetRow("clean", images, np.array([0, 1]), ["", ""]), SheetRow("noise", images, None, ["", ""])]
    picture = decoded(sheet_png(Sheet("pgd", np.array([0, 0]), rows), "model"))
    zoom, left, top = 224 // size, 240, 150
    tile = picture[top : top + 224, left : left + 224, :3]
    squares = tile.reshape(size, zoom, size, zoom, 3)
    expected = np.broadcast_to(images[0], (size, size, 3))
    inner = squares[1:-1, :, 1:-1]
    np.testing.assert_allclose(inner, np.broadcast_to(expected[1:-1, None, 1:-1, None], inner.shape), atol=1 / 255)


def test_predictions_are_told_apart_by_more_than_colour():
    written = []
    canvas = drawing.Canvas(None, 1, 1)
    canvas.text = lambda x, y, text, *rest, **options: written.append(text)
    row = SheetRow("clean", np.zeros((2, 4, 4, 1), np.float32), np.array([1, 0]), ["", ""])
    for column in range(2):
        pictures._write_under(
            canvas, 0.0, 0.0, 1, Sheet("pgd", np.array([1, 1]), [row]), row, column, ["zero", "a" * 20]
        )
    assert written[0] == f"✓ {'a' * 13}…"
    assert written[2] == "✗ zero"


def curve(kind="radius", name="pgd", correct=(10, 5, 0)):
    return Curve(kind, name, (0.0, 0.1, 0.2), correct, 10)


def test_curves_are_drawn_for_one_and_many_panels():
    two_models = {"standard": [curve(), curve("attribute", "rotation")], "spa": [curve(correct=(10, 9, 8))]}
    assert decoded(curves_png(two_models, "radius")).shape[2] == 4
    assert decoded(curves_png(two_models, "attribute")).shape[2] == 4
    many = {"a": [curve("attribute", name) for name in ("rotation", "hue", "scale", "mine")]}
    one_row, two_rows = decoded(curves_png(two_models, "radius")), decoded(curves_png(many, "attribute"))
    assert two_rows.shape[0] > 1.5 * one_row.shape[0]


def test_labels_are_pushed_apart_within_the_panel():
    assert drawing.spread_out([0.0, 0.0, 0.0], 8.0) == [0, 8, 16]
    assert drawing.spread_out([99.0, 100.0], 8.0) == [92, 100]
    assert drawing.spread_out([10.0, 50.0], 8.0) == [10, 50]


def test_bad_arguments_are_named(linear_victim, split):
    with pytest.raises(ValueError, match="columns=0 must be at least 1"):
        make_sheet(linear_victim, split, fgsm(0.1), name="a", key=KEY, batch_size=8, columns=0)
    with pytest.raises(ValueError, match="kind='angle' must be one of radius, nearest, attribute"):
        curves_png({"a": [curve()]}, "angle")
    with pytest.raises(ValueError, match="none of kind='attribute'"):
        curves_png({"a": [curve()]}, "attribute")
