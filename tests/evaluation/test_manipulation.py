"""The evaluation of a manipulator, on edits, readers and classifiers whose every number is known."""

import dataclasses
import io
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from spa_jax.data.types import AttributeInfo, Split
from spa_jax.edits import brightness, rotate
from spa_jax.evaluation import evaluate_manipulator, sweep_png, write_manipulation_report
from spa_jax.parallel import data_mesh
from spa_jax.trees import pytree

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = jax.random.key(3)
SIZE, BLOB, OFFSET = 17, 2.0, 4.0
ATTRIBUTES = (AttributeInfo("rotation", "degrees"), AttributeInfo("brightness", "shares of white"))
LOW, HIGH = (-40.0, 0.05), (40.0, 0.25)
ROWS, COLUMNS = np.indices((SIZE, SIZE)) - (SIZE - 1) / 2
ANGLE_SEEN = 20.0


def draw(angles, lights, heights):
    """A bright blob to the right of the centre, turned counter-clockwise, over an even background."""
    radians = np.deg2rad(angles)[:, None, None]
    across, down = COLUMNS - OFFSET * np.cos(radians), ROWS + OFFSET * np.sin(radians)
    blob = heights[:, None, None] * np.exp(-(across**2 + down**2) / (2 * BLOB**2))
    return (lights[:, None, None] + blob)[..., None].astype(np.float32)


def read(image):
    """Angle and brightness of one image: of its blob's centre of mass, and of its border."""
    light = jnp.mean(image[:, 0, 0])
    blob = image[..., 0] - light
    angle = jnp.rad2deg(jnp.arctan2(-jnp.sum(blob * ROWS), jnp.sum(blob * COLUMNS)))
    return jnp.stack([angle, light])


@pytree
class Manipulator:
    """Exact for a `gain` of 1 and a `leak` of 0; a leak brightens with every degree turned."""

    gain: Any = 1.0
    leak: Any = 0.0

    def read(self, image, prepared):
        return read(image)

    def __call__(self, image, values):
        own = read(image)
        turn = self.gain * (values[0] - own[0])
        dark = rotate(jnp.clip(image - own[1], 0, 1), turn)
        return brightness(dark, values[1] + self.leak * turn)

    def reconstruct(self, image):
        return image


@pytree
class Prepared:
    """The same, with its reading of the image done beforehand."""

    inner: Any

    def prepare(self, image):
        return read(image)

    def read(self, image, prepared):
        return prepared

    def __call__(self, image, values, prepared):
        del prepared
        return self.inner(image, values)


def regressor(bias, images):
    return jax.vmap(read)(images) + bias[None]


def classifier(images):
    """Whether the blob is high; wrong beyond 20 degrees."""
    height = jnp.max(images, axis=(1, 2, 3)) - images[:, 0, 0, 0]
    turned = jnp.abs(jax.vmap(read)(images)[:, 0]) > ANGLE_SEEN
    says_high = (height > 0.5) ^ turned
    return jax.nn.one_hot(says_high.astype(jnp.int32), 2)


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    angles, lights = rng.uniform(-15, 15, 203), rng.uniform(0.05, 0.2, 203)
    labels = rng.integers(0, 2, 203).astype(np.int32)
    images = draw(angles, lights, np.where(labels == 1, 0.65, 0.35))
    return Split(images, labels, np.stack([angles, lights], axis=1).astype(np.float32))


def judge(manipulator, split, bias=(0.0, 0.0), **options):
    options = {"batch_size": 64, "rows": 2, "points": 3} | options
    return evaluate_manipulator(
        manipulator,
        split,
        low=LOW,
        high=HIGH,
        attributes=ATTRIBUTES,
        regressor=jax.tree_util.Partial(regressor, jnp.asarray(bias)),
        classifier=classifier,
        key=KEY,
        **options,
    )


def test_an_exact_manipulator_shows_what_was_set_and_nothing_else(split):
    report = judge(Manipulator(), split)
    turned, lit = report.read_back["rotation"], report.read_back["brightness"]
    for error in (turned.error, turned.floor, turned.error_at_low, turned.error_at_high):
        assert error < 0.5
    for error in (lit.error, lit.floor, lit.error_at_low, lit.error_at_high):
        assert error < 1e-3
    assert (turned.reading_at_low, turned.reading_at_high) == pytest.approx((-40, 40), abs=0.5)
    assert (lit.reading_at_low, lit.reading_at_high) == pytest.approx((0.05, 0.25), abs=1e-3)
    assert report.cross_effects[0, 1] < 1e-3 and report.cross_effects[1, 0] < 0.5
    np.testing.assert_allclose(report.relative_cross_effects, report.cross_effects / [40, 0.1], rtol=1e-5)
    assert report.reconstruction["psnr"].worst == 100
    assert report.reconstruction["ssim"].worst == pytest.approx(1, abs=1e-5)


def test_the_floor_is_the_regressors_own_error_and_edits_do_not_hide_it(split):
    report = judge(Manipulator(), split, bias=(5.0, -0.02))
    assert (report.read_back["rotation"].error, report.read_back["rotation"].floor) == pytest.approx((5, 5), abs=0.3)
    assert report.read_back["brightness"].floor == pytest.approx(0.02, abs=1e-3)


def test_an_edit_that_falls_short_is_seen_by_how_much(split):
    own = split.attribute[:, 0]
    report = judge(Manipulator(gain=0.5), split)
    turned = report.read_back["rotation"]
    assert turned.error_at_low == pytest.approx(np.mean(0.5 * np.abs(own + 40)), abs=0.5)
    assert turned.error_at_high == pytest.approx(np.mean(0.5 * np.abs(40 - own)), abs=0.5)
    assert turned.reading_at_high == pytest.approx(np.mean(own + 0.5 * (40 - own)), abs=0.5)
    evenly = np.linspace(-40, 40, 1001)
    assert turned.error == pytest.approx(np.mean(0.5 * np.abs(evenly[None] - own[:, None])), rel=0.1)
    assert report.cross_effects[0, 0] == pytest.approx(turned.error, rel=0.1)


def test_a_side_effect_stands_in_its_row_and_column(split):
    report = judge(Manipulator(leak=0.001), split)
    clean = judge(Manipulator(), split)
    assert report.cross_effects[0, 1] == pytest.approx(0.001 * clean.cross_effects[0, 0], rel=0.05)
    assert report.cross_effects[1, 0] == pytest.approx(clean.cross_effects[1, 0], abs=1e-3)


def test_classes_are_lost_where_the_classifier_loses_them(split):
    labels = judge(Manipulator(), split, bins=8).labels
    assert (labels.real.correct, labels.real.total) == (203, 203)
    assert labels.alone["brightness"].correct == 203
    assert labels.alone["rotation"].value == pytest.approx(0.5, abs=0.12)
    assert labels.together.value == pytest.approx(0.5, abs=0.12)
    parts = labels.by_value["rotation"]
    assert [(part.low, part.high) for part in parts][:2] == [(-40, -30), (-30, -20)]
    assert sum(part.accuracy.total for part in parts) == 203
    for part in parts:
        is_seen = part.low >= -ANGLE_SEEN and part.high <= ANGLE_SEEN
        assert part.accuracy.value == pytest.approx(float(is_seen), abs=0.1)


def test_without_reading_the_other_attributes_stay_at_the_datas_value(split):
    """A function that only edits; brightness is set absolutely, so that it must be handed its own value."""
    report = judge(lambda image, values: Manipulator()(image, values), split)
    assert report.cross_effects[0, 1] < 1e-3 and report.reconstruction == {}


def test_what_is_prepared_is_handed_back(split):
    plain, prepared = judge(Manipulator(), split), judge(Prepared(Manipulator()), split)
    np.testing.assert_allclose(prepared.cross_effects, plain.cross_effects, atol=1e-4)


def test_batch_size_and_devices_do_not_matter(split):
    one = judge(Manipulator(), split, batch_size=203, mesh=data_mesh(jax.devices()[:1]))
    other = judge(Manipulator(), split, batch_size=24)
    np.testing.assert_allclose(one.cross_effects, other.cross_effects, rtol=1e-4, atol=1e-4)
    assert one.labels == other.labels


def test_sweeps_show_the_original_and_the_values_in_order(split):
    rotation, light = judge(Manipulator(), split, rows=3, points=5).sweeps
    assert rotation.images.shape == (3, 6, SIZE, SIZE, 1)
    np.testing.assert_allclose(rotation.values, [-40, -20, 0, 20, 40])
    np.testing.assert_allclose(rotation.readings[:, 1:], np.tile(rotation.values, (3, 1)), atol=1)
    np.testing.assert_allclose(light.readings[:, 1:], np.tile(light.values, (3, 1)), atol=1e-3)
    first = [int(np.flatnonzero(split.labels == label)[0]) for label in (0, 1)]
    np.testing.assert_allclose(rotation.images[[0, 2], 0], split.images[[min(first[0], 999), first[1]]], atol=1e-6)
    assert rotation.labels.tolist() == [0, 0, 1] and rotation.predictions[:, 0].tolist() == [0, 0, 1]


# --- the report -----------------------------------------------------------------------------------------------------

OPTIONS = {"title": "A title", "dataset": "blobs, test split", "seed": 3, "config": {"a": 1}}


@pytest.fixture(scope="module")
def report(split):
    return judge(Manipulator(), split)


def test_the_report_says_what_was_measured(report, tmp_path, capsys):
    text = write_manipulation_report(report, tmp_path / "new", **OPTIONS)
    assert capsys.readouterr().out == text
    for share in (report.labels.real, report.labels.together, report.labels.alone["rotation"]):
        assert str(share) in text
    markdown = (tmp_path / "new" / "manipulation.md").read_text()
    assert markdown.startswith("# A title\n\n203 examples of blobs, test split, seed 3.\n")
    effects = report.relative_cross_effects
    assert f"**{effects[0, 0]:.2f} (" in markdown and f"| {effects[0, 1]:.2f} (" in markdown
    assert "| rotation | degrees | -40 to 40 |" in markdown
    linked = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", markdown)
    assert linked == ["sweep_rotation.png", "sweep_brightness.png"]
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"manipulation.md", "manipulation.json", *linked}


def test_json_holds_every_number(report, tmp_path):
    write_manipulation_report(report, tmp_path, **OPTIONS)
    content = json.loads((tmp_path / "manipulation.json").read_text())
    np.testing.assert_allclose(content["cross_effects"], report.cross_effects)
    assert content["read_back"]["rotation"] == dataclasses.asdict(report.read_back["rotation"])
    assert content["labels"]["real"]["correct"] == 203
    assert len(content["labels"]["by_value"]["brightness"]) == 8
    assert content["reconstruction"]["psnr"]["worst"] == 100


def test_a_bin_without_a_value_and_a_lone_attribute_are_written(report, tmp_path):
    empty = {"rotation": [dataclasses.replace(report.labels.by_value["rotation"][0], accuracy=None)]}
    lone = dataclasses.replace(
        report,
        attributes=ATTRIBUTES[:1],
        low=report.low[:1],
        high=report.high[:1],
        cross_effects=report.cross_effects[:1, :1],
        reconstruction={},
        labels=dataclasses.replace(report.labels, by_value=empty),
        sweeps=(),
    )
    write_manipulation_report(lone, tmp_path, **OPTIONS)
    assert "| -40 to -30 | 0 |  |" in (tmp_path / "manipulation.md").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"manipulation.md", "manipulation.json"}


def test_an_old_report_is_replaced_whole_or_not_at_all(report, tmp_path, monkeypatch):
    write_manipulation_report(report, tmp_path, **OPTIONS)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(ValueError, match=r"cannot be written: disk full"):
        write_manipulation_report(report, tmp_path, **OPTIONS | {"title": "Another"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_sheet_has_a_row_for_each_example(report):
    sweep = report.sweeps[0]
    once, twice = (np.repeat(part, n, axis=0) for part in (sweep.images,) for n in (1, 2))
    taller = dataclasses.replace(
        sweep,
        images=twice,
        readings=np.repeat(sweep.readings, 2, axis=0),
        predictions=np.repeat(sweep.predictions, 2, axis=0),
        labels=np.repeat(sweep.labels, 2),
    )
    short, tall = (imread(io.BytesIO(sweep_png(sheet, ["low", "high"]))) for sheet in (sweep, taller))
    assert len(once) == 2 and tall.shape[0] > 1.5 * short.shape[0]


def test_bad_arguments_are_named(split):
    manipulator = Manipulator()
    with pytest.raises(ValueError, match="bins=0 must be an integer of at least 1"):
        judge(manipulator, split, bins=0)
    with pytest.raises(ValueError, match="split holds none of the 2 attributes"):
        judge(manipulator, Split(split.images, split.labels))
    with pytest.raises(ValueError, match="split holds 1 of the 2 attributes"):
        judge(manipulator, Split(split.images, split.labels, split.attribute[:, :1]))
    with pytest.raises(
        ValueError, match=r"manipulator\(image, values\) has shape \(17, 17, 2\), must be \(17, 17, 1\)"
    ):
        judge(lambda image, values: jnp.concatenate([image, image], axis=-1), split)
    common = {"attributes": ATTRIBUTES, "classifier": classifier, "key": KEY, "batch_size": 8}
    read_all = jax.tree_util.Partial(regressor, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"regressor\(images\) has shape \(8,\), must be values \(8, 2\)"):
        first = {"regressor": lambda images: read_all(images)[:, 0]}
        evaluate_manipulator(manipulator, split, low=LOW, high=HIGH, **first, **common)
    with pytest.raises(ValueError, match=r"low=.* must be finite, one number for each of 2 attributes"):
        evaluate_manipulator(manipulator, split, low=[0.0], high=HIGH, regressor=read_all, **common)
    with pytest.raises(ValueError, match="must be smaller than high"):
        evaluate_manipulator(manipulator, split, low=HIGH, high=HIGH, regressor=read_all, **common)
