"""report.html and leaderboard.html in a headless Chromium: sorting, the explorer, any screen, any reader."""

import pytest

from spa_jax.evaluation.drawing import MINUS
from spa_jax.evaluation.entries import Entry
from spa_jax.evaluation.page import report_page
from spa_jax.evaluation.page.leaderboard import leaderboard_page
from spa_jax.evaluation.records import Proportion
from tests.browser import browser_or_skip
from tests.evaluation.pages import WICKED, model_report, models, setting

ATTACKS = ("APGD-CE", "APGD-T", "a_very_long_name_of_an_attack_that_does_not_break")


@pytest.fixture(scope="module")
def browser():
    browser = browser_or_skip()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_page(models(), setting(class_names=["zero", WICKED, "a very long name " * 4])), "utf-8")
    return path


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    long, threats = f"{WICKED} " * 4, ("linf 0.1", "linf 0.1 and rotation 0 to 9 and translation_x 0 to 1")
    entries = [
        Entry(
            f"{long}{i}",
            "made up, test split",
            threat,
            Proportion(10 * i, 50),
            Proportion(45, 50),
            claim,
            ATTACKS,
            i % 2,
            f"/a/{i}",
        )
        for threat in threats
        for i, claim in enumerate((None, 0.1, 0.9))
    ]
    path = tmp_path_factory.mktemp("board") / "leaderboard.html"
    path.write_text(leaderboard_page(entries, title=long), "utf-8")
    return path


@pytest.fixture(params=["file", "board"])
def either(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def page(browser, file):
    browser.open(file)
    yield browser
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [f"file://{file}"]


def _column(page, number):
    cells = f"document.querySelectorAll('#accuracy tbody tr > :nth-child({number})')"
    return page.run(f"[...{cells}].map(e => e.dataset.sort === undefined ? e.textContent : Number(e.dataset.sort))")


def _heading(number):
    return f"document.querySelector('#accuracy thead th:nth-child({number}) button')"


def test_a_click_sorts_and_a_second_one_turns_the_order(page):
    before = _column(page, 1)
    assert before == list(models())
    page.click(_heading(2))
    accuracies = _column(page, 2)
    assert accuracies == sorted(accuracies, reverse=True) and len(set(accuracies)) > 1
    known = {name: report.accuracies["clean"].value for name, report in models().items()}
    assert _column(page, 1) == sorted(known, key=known.get, reverse=True)
    page.click(_heading(2))
    assert _column(page, 2) == accuracies[::-1]
    sorts = page.run("[...document.querySelectorAll('#accuracy thead th')].map(e => e.getAttribute('aria-sort'))")
    assert sorts == ["none", "ascending", "none", "none", "none", "none"]


def test_names_sort_by_the_alphabet_and_what_was_not_measured_comes_last(page):
    page.click(_heading(1))
    assert _column(page, 1) == sorted(models())
    page.click(_heading(5))  # only the wicked model met the wicked attack
    assert _column(page, 1)[0] == WICKED


def test_the_keyboard_reaches_the_headings_and_sorts(page):
    assert page.run("document.activeElement.tagName") == "BODY"
    page.press("Tab")
    assert page.run("document.activeElement.textContent") == "Skip to content"
    for _ in range(40):
        page.press("Tab")
        if page.run(f"document.activeElement === {_heading(2)}"):
            break
    assert page.run(f"document.activeElement === {_heading(2)}")
    page.press("Enter")
    accuracies = _column(page, 2)
    assert accuracies == sorted(accuracies, reverse=True)
    page.press(" ")
    assert _column(page, 2) == accuracies[::-1]
    assert page.run(f"document.activeElement === {_heading(2)}")


def test_the_skip_link_goes_to_the_content(page):
    page.press("Tab")
    page.press("Enter")
    assert page.run("document.activeElement.id") == "content"


# --- the explorer ---------------------------------------------------------------------------------------------------


def _choose(page, name, number):
    page.run(
        f"(() => {{ const e = document.getElementById('explorer-{name}'); e.selectedIndex = {number};"
        "e.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def _shown(page, group="fooled"):
    return page.run(f"[...document.querySelectorAll('#explorer-{group} img')].map(e => [e.src, e.alt])")


def _status(page):
    return page.run("document.getElementById('explorer-status').textContent")


def test_a_choice_changes_the_images(page):
    seen = [_shown(page)]
    for name, number in (("class", 2), ("model", 1), ("attack", 0), ("class", 0)):
        _choose(page, name, number)
        seen.append(_shown(page))
        assert seen[-1] and seen[-1] != seen[-2], name
    assert all(source.startswith("data:image/png;base64,") for source, _ in seen[-1])
    loaded = page.run("[...document.querySelectorAll('#explorer img')].every(e => e.complete && e.naturalWidth === 6)")
    assert loaded


def test_the_arrow_keys_change_the_images(page):
    page.run("document.getElementById('explorer-class').focus()")
    before, status = _shown(page), _status(page)
    page.press("ArrowDown")
    assert _shown(page) != before and _status(page) != status


def test_what_is_shown_is_what_was_judged(page):
    report = models()["calm"]
    _choose(page, "model", 1)
    _choose(page, "attack", 1)
    _choose(page, "class", 3)
    seen = report.attacks["turned"].gallery.sighting
    of_class = seen.label == 2
    cards = "[...document.querySelectorAll('#explorer-{} figcaption')].map(e => e.lastChild.textContent)"
    fooled, survivors = (page.run(cards.format(group)) for group in ("fooled", "survivors"))
    assert fooled == [f"image {i}" for i in seen.index[of_class & seen.fooled]]
    assert survivors == [f"image {i}" for i in seen.index[of_class & ~seen.fooled]]
    wrong = report.clean & ~report.attacks["turned"].correct & (report.labels == 2)
    assert _status(page).startswith(f"{len(fooled)} of {wrong.sum()} fooled images and {len(survivors)} of")
    values = page.run("document.querySelector('#explorer-fooled .values').textContent")
    first = seen.attributes["rotation"][of_class & seen.fooled][0]
    assert values == f"rotation in degrees: {first:.3g}".replace("-", MINUS)


def test_wicked_names_stay_text_when_the_script_shows_them(page):
    _choose(page, "model", 2)
    _choose(page, "attack", 0)
    _choose(page, "class", 2)
    assert page.run("document.querySelectorAll('#explorer script').length") == 1  # its data
    assert WICKED in _status(page)
    assert page.run("document.querySelector('#explorer-fooled .turn').textContent").startswith(f"{WICKED} → ")


def test_no_images_of_a_kind_is_said(browser, tmp_path):
    report = model_report()
    for record in report.attacks.values():
        seen = record.gallery.sighting
        object.__setattr__(record.gallery, "sighting", seen._replace(fooled=seen.fooled | True))
    (tmp_path / "report.html").write_text(report_page({"one": report}, setting()), "utf-8")
    browser.open(tmp_path / "report.html")
    assert browser.run("document.querySelector('#explorer-survivors').textContent") in (
        "None of them was kept.",
        "There are none.",
    )
    assert browser.complaints == []


# --- any screen, any reader -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [320, 400, 768, 1600])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_wider_than_the_screen(browser, either, width, dark):
    browser.open(either, width=width, dark=dark)
    browser.run("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("document.body.scrollWidth") <= width
    assert browser.complaints == []


_NAMELESS = """
[...document.querySelectorAll('a, button, select, input, summary, [role=region], [role=img], [role=group], nav')]
  .filter(e => e.checkVisibility())
  .filter(e => {
    const by = (e.getAttribute('aria-labelledby') || '').split(' ').filter(Boolean);
    const label = e.labels && e.labels.length ? e.labels[0].textContent : '';
    const named = by.map(id => document.getElementById(id)?.textContent || '').join('');
    return !(e.getAttribute('aria-label') || named || label || e.textContent).trim();
  }).map(e => e.outerHTML.slice(0, 200))
"""


def test_every_control_and_region_has_a_name_and_every_image_an_alternative(browser, either):
    browser.open(either)
    assert browser.run(_NAMELESS) == []
    assert browser.run("[...document.images].filter(e => !(e.getAttribute('alt') || '').trim()).length") == 0
    assert browser.run("[...document.querySelectorAll('table')].every(t => t.caption && t.caption.textContent.trim())")
    assert browser.run("[...document.querySelectorAll('th')].every(e => e.textContent.trim() && e.scope)")
    assert browser.complaints == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [f"file://{either}"]


def test_the_explorer_shows_images(page):
    assert page.run("document.querySelectorAll('#explorer img').length") > 4


def test_a_leaderboard_starts_with_the_most_robust_and_sorts(browser, board):
    browser.open(board)
    shares = "[...document.querySelectorAll('tbody')].map(t => [...t.rows].map(r => Number(r.cells[1].dataset.sort)))"
    assert browser.run(shares) == [[0.4, 0.2, 0.0]] * 2
    browser.click("document.querySelectorAll('thead')[1].querySelectorAll('button')[1]")
    assert browser.run(shares) == [[0.4, 0.2, 0.0], [0.0, 0.2, 0.4]]
    browser.click("document.querySelectorAll('thead')[0].querySelectorAll('button')[3]")
    claims = browser.run("[...document.querySelector('tbody').rows].map(r => r.cells[3].textContent)")
    assert claims == ["90.0 % above measured", "10.0 % ", "none"]
    assert browser.complaints == []


def test_the_accessibility_tree_names_choices_tables_and_status(page):
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = {(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]}
    assert {("combobox", name) for name in ("Model", "Attack", "Class")} <= named
    assert ("navigation", "Sections") in named and ("status", "") in {(role, "") for role, _ in named}
    assert any(role in ("image", "img") and name.startswith("Accuracy against") for role, name in named)
    assert any(role == "columnheader" and name == "clean" for role, name in named)
    page.call("Accessibility.disable")


_CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const d = canvas.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3] / 255];
  };
  const behind = e => {
    for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; }
    return [255, 255, 255, 1];
  };
  const luminance = c => {
    const [r, g, b] = c.slice(0, 3).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !e.checkVisibility()) continue;
    if (e.closest('svg, script, style, .hidden')) continue;
    const style = getComputedStyle(e), paper = behind(e), ink = rgba(style.color), alpha = ink[3] * style.opacity;
    const mixed = ink.slice(0, 3).map((v, i) => v * alpha + paper[i] * (1 - alpha));
    const [a, b] = [luminance(mixed), luminance(paper)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) poor.push([walker.currentNode.textContent.trim().slice(0, 40), e.className, ratio]);
  }
  return poor;
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_background(browser, either, dark):
    """A ratio of 4.5 for all text (WCAG 2.2, criterion 1.4.3)."""
    browser.open(either, dark=dark)
    browser.run("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert browser.run(_CONTRAST) == []


def test_dark_mode_is_dark(browser, file):
    browser.open(file, dark=False)
    light = browser.run("getComputedStyle(document.documentElement).backgroundColor")
    browser.open(file, dark=True)
    dark = browser.run("getComputedStyle(document.documentElement).backgroundColor")
    brightness = [sum(map(int, color[4:-1].split(","))) for color in (light, dark)]
    assert brightness[0] > 700 and brightness[1] < 100


def test_it_reads_without_a_script(browser, file):
    browser.open(file, script=False)
    browser.call("Emulation.setScriptExecutionDisabled", value=False)  # to look at what is there
    assert browser.run("document.querySelectorAll('thead button').length") == 0
    assert browser.run("document.querySelector('noscript').checkVisibility()") in (True, False)
    assert "needs JavaScript" in browser.run("document.querySelector('#explorer').innerText")
    text = browser.run("document.body.innerText")
    assert "The gradient vanishes." in text and "Accuracy under pgd, by radius" in text
    assert browser.run("document.getElementById('explorer-shown').checkVisibility()") is False


def test_no_other_script_runs(browser, tmp_path, file):
    """What stands between a name and a script, should a name once not be escaped: the content security policy."""
    text = file.read_text("utf-8").replace("<main", "<script>document.title = 'owned'</script><main", 1)
    (tmp_path / "report.html").write_text(text, "utf-8")
    browser.open(tmp_path / "report.html")
    assert browser.run("document.title") == "A title"
    assert any("Content Security Policy" in complaint for complaint in browser.complaints)
