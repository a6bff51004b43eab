"""report.html: its structure, that names stay text, and that its numbers are those of report.json."""

import base64
import io
import itertools
import json
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spa_jax.evaluation import Proportion, write_report
from spa_jax.evaluation.contents import Alarm, Section, alarms
from spa_jax.evaluation.drawing import MINUS, magnification
from spa_jax.evaluation.markdown import markdown_report, plain
from spa_jax.evaluation.page import report_page
from spa_jax.evaluation.page.explorer import fooled_by_class
from spa_jax.evaluation.page.markup import Markup, data_script, tag
from tests.evaluation.pages import CLASSES, COUNT, WICKED, Page, gallery, model_report, models, setting

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    options = {"title": WICKED, "dataset": "made up", "seed": 3, "config": {"name": WICKED}}
    names = ["zero", WICKED, "two"]
    write_report(models(), directory, **options, class_names=names, victims={WICKED: f"made of {WICKED}"})
    text = (directory / "report.html").read_text("utf-8")
    return Page(text), json.loads((directory / "report.json").read_text()), text


def _data(page):
    return json.loads(page.all("script", id="explorer-data")[0][2])


def test_the_page_is_well_formed_and_has_landmarks(written):
    page, _, text = written
    assert page.problems == []
    assert text.startswith("<!doctype html>")
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert len(page.all(landmark)) == 1, landmark
    assert page.all("html")[0][1]["lang"] == "en"
    names = [own[1]["id"] for own in page.elements if "id" in own[1]]
    assert len(names) == len(set(names))
    referred = [part for own in page.elements for key in ("aria-labelledby",) for part in own[1].get(key, "").split()]
    linked = [own[1]["href"].removeprefix("#") for own in page.all("a")]
    assert set(referred + linked) <= set(names)


def test_headings_do_not_skip_a_level(written):
    page, _, _ = written
    levels = [int(own[0][1]) for own in page.elements if re.fullmatch("h[1-6]", own[0])]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_nothing_comes_from_elsewhere(written):
    page, _, _ = written
    assert not page.all("link") and not page.all("iframe")
    sources = [own[1][key] for own in page.elements for key in ("src", "href", "srcset", "action") if key in own[1]]
    assert all(source.startswith(("#", "data:")) for source in sources)
    assert "default-src 'none'" in page.all("meta", http_equiv="Content-Security-Policy")[0][1]["content"]
    style = page.all("style")[0][2]
    assert "@import" not in style and not re.search(r"url\((?!#)", style)


def test_wicked_names_stay_text(written):
    page, _, text = written
    scripts = page.all("script")
    assert len(scripts) == 2 and "alert" not in scripts[1][2]
    assert "<script>alert" not in text
    shown = [own[2] for own in page.all("th")]
    assert WICKED in shown
    assert page.all("h1")[0][2] == WICKED
    data = _data(page)
    assert data["models"][2]["name"] == WICKED and data["names"]["1"] == WICKED
    assert f"made of {WICKED}" in [own[2] for own in page.all("dd")]


def test_the_numbers_of_the_table_are_those_of_the_json(written):
    page, content, _ = written
    rows = [own for own in page.all("tr")]
    table = next(own for own in page.all("table") if "every model under every attack" in own[2])
    titles = [own[2] for own in page.all("th", scope="col")][:6]
    assert titles == ["model", "clean", "pgd", "turned", WICKED, "worst case"]
    assert table[1]["data-sortable"] is None  # an attribute without a value
    shown = [own for own in page.all("td") if "data-sort" in own[1]]
    conditions = ["clean", "pgd", "turned", WICKED, "worst_case"]
    cells = iter(shown)
    for model in content["models"].values():
        for condition in conditions:
            cell = next(cells)
            known = model["accuracies"].get(condition)
            if known is None:
                assert cell[2] == "not measured"
                continue
            low, high = known["interval"]
            assert float(cell[1]["data-sort"]) == pytest.approx(known["accuracy"], abs=1e-6)
            assert cell[2].startswith(f"{100 * known['accuracy']:.1f} %")
            assert cell[2].endswith(f"{100 * low:.1f} to {100 * high:.1f}")
    assert len(rows) > len(content["models"])


def test_the_best_of_a_column_is_marked_in_words(written):
    page, content, _ = written
    best = [own[2] for own in page.all("b", class_="value")]
    accuracies = [
        max(m["accuracies"][c]["accuracy"] for m in content["models"].values()) for c in ("clean", "worst_case")
    ]
    for accuracy in accuracies:
        assert f"{100 * accuracy:.1f} % highest" in best


def test_every_class_and_check_of_every_model_is_there(written):
    page, content, _ = written
    for name, model in content["models"].items():
        (card,) = [own for own in page.all("details", class_="model") if own[2].startswith(name)]
        for condition, by_class in model["by_class"].items():
            for accuracy in by_class.values():
                assert f"{100 * accuracy['accuracy']:.1f} %" in card[2], condition
        for check in model["checks"]:
            assert check["message"] in card[2]


def test_alarms_stand_first_with_cause_and_advice(written):
    page, _, text = written
    shown = page.all("ul", class_="alarms")[0][2]
    found = alarms(models())
    assert len(found) == 2 == shown.count("Alarm")
    assert "The gradient vanishes." in shown and "Zero on 40.0 % of images." in shown
    assert "Look for a rounding." in shown
    assert text.index('id="alarms"') < text.index('id="accuracy"')


def test_what_was_measured_beside_the_attacks_is_a_table_and_its_alarms_are_among_the_others():
    doubt = Alarm(WICKED, "beside", "a cause", "seen", "do this")
    cells = [["one", Proportion(3, 4), None, "text"], [WICKED, Proportion(1, 4), Proportion(2, 4), WICKED]]
    section = Section(
        "beside", "Beside the attacks", "In words.", ("model", "first", "second", "note"), cells, ("note",), [doubt]
    )
    page = Page(report_page(models(), setting(), None, [section]))
    ((_, _, shown),) = page.all("section", id="beside")
    for text in ("Beside the attacks", "In words.", "75.0 %", "not measured", "50.0 %"):
        assert text in shown
    assert shown.count(WICKED) == 2
    assert page.all("a", href="#beside")
    assert "Alarms (3)" in page.all("section", id="alarms")[0][2]
    text = markdown_report(models(), setting(), {}, None, [section])
    assert "## Beside the attacks" in text and f"| one | {Proportion(3, 4)} |  | text |" in text
    assert f"| {plain(WICKED)} | {Proportion(1, 4)}" in text
    assert "beside**: a cause: seen. What to do: do this." in text


def test_without_alarms_it_says_what_was_checked():
    report = model_report()
    passed = tuple(check for check in report.checks if check.passed)
    text = report_page({"one": model_report(), "two": report}, setting())
    assert "Alarms (2)" in text
    object.__setattr__(report, "checks", passed)
    calm = Page(report_page({"two": report}, setting())).all("section", id="alarms")[0][2]
    assert calm == "Alarms (0)None None of the sanity checks of two raised one."
    object.__setattr__(report, "checks", ())
    unknown = Page(report_page({"two": report}, setting())).all("section", id="alarms")[0][2]
    assert unknown == "Alarms (0)Not checked No sanity checks ran."


def test_curves_have_a_text_and_all_their_numbers(written):
    page, content, _ = written
    drawings = page.all("svg", role="img")
    assert len(drawings) == 3  # of pgd, of the wicked attack, and of the rotation
    for drawing in drawings:
        named = drawing[1]["aria-labelledby"].split()
        words = " ".join(own[2] for own in page.elements if own[1].get("id") in named)
        assert "Accuracy against" in words and "%" in words
    tables = [own for own in page.all("table") if own[2].startswith("Numbers of the curve")]
    for model in content["models"].values():
        for curve in model["curves"]:
            of = next(
                own
                for own in tables
                if own[2].startswith(f"Numbers of the curve {curve['name']}, by radius")
                or (curve["kind"] == "attribute" and "by rotation in degrees" in own[2])
            )
            for correct in curve["correct"]:
                assert f"{100 * correct / curve['total']:.1f} %" in of[2]
    points = [own for own in page.all("path", class_="marker")]
    assert len(points) == 3 * 3 * 2 + 2 * 3  # three points a curve, three models, two kinds; a mark at each name


def test_a_line_is_where_its_numbers_are():
    text = report_page({"one": model_report()}, setting())
    line = next(own for own in Page(text).all("path", class_="line"))[1]["d"]
    places = np.array([list(map(float, point.split(","))) for point in line[1:].split("L")])
    np.testing.assert_allclose(places[:, 0], [46, 46 + 161, 46 + 322], atol=0.1)
    top, bottom = 14, 270 - 44
    shares = (bottom - places[:, 1]) / (bottom - top)
    np.testing.assert_allclose(shares, [57 / COUNT, 30 / COUNT, 3 / COUNT], atol=1e-3)


def test_attribute_values_are_counted_in_ranges():
    own = models()
    page = Page(report_page(own, setting()))
    (shown,) = page.all("table", class_="bins")
    assert shown[2].startswith("turned: rotation in degrees, middle of each range")
    cells = [round(float(td[2])) for td in page.all("td", class_="heat") if "--low" not in td[1]["style"]]
    expected = []
    for report in own.values():
        values = report.attacks["turned"].attributes["rotation"].values
        for low in range(-20, 20, 2):
            inside = sum(low <= value < low + 2 for value in values.tolist())
            expected.append(round(100 * inside / len(values)))
    assert cells == expected


# --- the explorer ---------------------------------------------------------------------------------------------------


def _pixels(encoded):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))), np.float64) / 255


def test_the_explorer_has_the_images_of_the_galleries():
    own = models()
    data = _data(Page(report_page(own, setting())))
    assert data["classes"] == list(range(CLASSES))
    assert data["names"] == {str(label): str(label) for label in range(CLASSES)}
    for told, (name, report) in zip(data["models"], own.items(), strict=True):
        assert told["name"] == name
        for attack, record in zip(told["attacks"], report.attacks.values(), strict=True):
            seen, shown = record.gallery.sighting, record.gallery
            assert len(attack["rows"]) == len(shown)
            gain = magnification(shown.noise)
            assert float(attack["gain"]) == gain and attack["numbers"] == ["rotation in degrees"]
            for i, row in enumerate(attack["rows"]):
                index, label, fooled, answer, edited, *places, numbers = row
                assert (index, label, bool(fooled)) == (seen.index[i], seen.label[i], seen.fooled[i])
                assert (answer, edited) == (seen.answer[i], seen.edited_answer[i])
                for place, image in zip(places, (seen.clean, seen.edited, seen.attacked), strict=False):
                    np.testing.assert_allclose(_pixels(data["images"][place]), image[i, ..., 0], atol=0.5 / 255 + 1e-6)
                if shown.moves_noise:
                    expected = 0.5 + gain * (seen.attacked[i] - seen.edited[i])[..., 0]
                    np.testing.assert_allclose(_pixels(data["images"][places[3]]), expected, atol=0.5 / 255 + 1e-6)
                else:
                    assert places[3] == -1 and places[1] == places[2]
                assert numbers == [f"{seen.attributes['rotation'][i]:.3g}".replace("-", MINUS)]


def test_the_explorer_counts_who_was_fooled_whatever_it_shows():
    own = models()
    data = _data(Page(report_page(own, setting())))
    for told, report in zip(data["models"], own.values(), strict=True):
        for attack in told["attacks"]:
            fooled = report.clean & ~report.attacks[attack["name"]].correct
            for label in range(CLASSES):
                of_class = report.labels == label
                assert attack["counts"][str(label)] == [
                    int((fooled & of_class).sum()),
                    int((report.clean & of_class).sum()),
                ]


def test_answers_have_names_though_no_image_is_of_their_class():
    report = model_report()
    kept = report.attacks["pgd"].gallery
    answers = np.where(kept.sighting.fooled, 7, kept.sighting.answer).astype(np.int32)
    answers[0] = -1
    object.__setattr__(kept, "sighting", kept.sighting._replace(answer=answers))
    names = [f"class {i}" for i in range(9)]
    data = _data(Page(report_page({"one": report}, setting(class_names=names))))
    assert data["classes"] == [0, 1, 2]
    assert data["names"] == {str(label): f"class {label}" for label in (0, 1, 2, 7)}


def test_answers_of_one_draw_are_said_to_be():
    report = model_report()
    assert "draw that decided" not in report_page({"one": report}, setting())
    object.__setattr__(report, "failed", np.zeros(COUNT))
    assert "draw that decided" in report_page({"one": report}, setting())


def test_a_cascade_counts_each_image_once():
    report = model_report()
    first, second = report.attacks.values()
    object.__setattr__(second, "correct", first.correct & second.correct)
    object.__setattr__(report, "survivors_only", True)
    counts = fooled_by_class(report, "turned")
    assert sum(fooled for fooled, _ in counts.values()) == int((first.correct & ~second.correct).sum())
    assert sum(attacked for _, attacked in counts.values()) == int((report.clean & first.correct).sum())


def test_an_image_that_occurs_twice_is_stored_once():
    data = _data(Page(report_page({"one": model_report(), "same": model_report()}, setting())))
    assert len(set(data["images"])) == len(data["images"])
    places = [row[5] for model in data["models"] for attack in model["attacks"] for row in attack["rows"]]
    assert len(places) == 2 * len(set(places))


def test_images_in_colour_and_large_ones_keep_the_page_small():
    rng = np.random.default_rng(0)
    report = model_report(channels=3)
    labels = np.arange(300, dtype=np.int32) % CLASSES
    record = report.attacks["pgd"]
    object.__setattr__(record, "gallery", gallery(rng, rng.uniform(size=300) < 0.6, labels, size=112, channels=3))
    text = report_page({"one": report, "two": report}, setting())
    assert len(text) < 3_000_000
    data = _data(Page(text))
    kept = data["models"][0]["attacks"][0]["rows"]
    assert {row[1] for row in kept} == set(range(CLASSES)) and 0 < len(kept) < len(record.gallery)
    assert data["crisp"] is False and data["colored"] is True
    assert f"keeps {sum(row[2] for m in data['models'] for a in m['attacks'] for row in a['rows'])} of" in text


def test_without_images_the_page_says_so():
    report = model_report()
    for record in report.attacks.values():
        object.__setattr__(record, "gallery", None)
    assert "No images were kept" in report_page({"one": report}, setting())


def test_the_same_results_give_the_same_bytes():
    assert report_page(models(), setting()) == report_page(models(), setting())


# --- markup ---------------------------------------------------------------------------------------------------------


def test_text_is_escaped_and_markup_is_not():
    assert tag("p", "<b>", tag("i", "&"), title='"x"') == '<p title="&quot;x&quot;">&lt;b&gt;<i>&amp;</i></p>'
    assert tag("ul", (tag("li", n) for n in (1, 2)), None) == "<ul><li>1</li><li>2</li></ul>"
    assert tag("input", hidden=True, disabled=False, class_="a", aria_label=None) == '<input hidden class="a"/>'
    assert isinstance(tag("p"), Markup)


def test_no_text_ends_a_script():
    text = {"a": "</script><!--<script>", "b": "\u2028&"}
    script = data_script("d", text)
    assert script.count("<") == 2 and json.loads(script.split(">", 1)[1].rsplit("<", 1)[0]) == text


def test_a_wheel_has_every_file_of_the_package():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    listed = {ROOT / package.replace(".", "/") / name for package, names in patterns.items() for name in names}
    files = {path for path in (ROOT / "spa_jax").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in files if path.suffix != ".py"} == listed
