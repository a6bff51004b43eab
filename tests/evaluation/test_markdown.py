"""Text of data and configs stands in a report as it is: no headings, HTML, pictures, cells or formulas of its own."""

import re

import numpy as np
import pytest

from spa_jax.evaluation.markdown import code, plain, table
from spa_jax.evaluation.report import write_report
from tests.evaluation.test_report import OPTIONS, model_report, sheet

NASTY = "a|b`c`\n# head <script>alert(1)</script> ![x](http://y/z.png) **bold** _it_ ~~no~~ $x$ & snake_case"


def test_plain_text_has_no_markup_left():
    text = plain(NASTY)
    assert "\n" not in text and "<" not in text and ">" not in text
    assert text.startswith(r"a\|b\`c\` \# head &lt;script&gt;")
    assert r"!\[x\](http://y/z.png) \*\*bold\*\* \_it\_ \~\~no\~\~ \$x\$ &amp; snake_case" in text
    assert plain("PGD-20, joint: 8x8") == "PGD-20, joint: 8x8"


@pytest.mark.parametrize(("text", "span"), [("a", "`a`"), ("a`b", "``a`b``"), ("`a`", "`` `a` ``"), ("a\nb", "`a b`")])
def test_code_is_fenced_by_more_backticks_than_it_holds(text, span):
    assert code(text) == span


def test_cells_keep_their_number():
    lines = table(["", plain("a|b")], [["c|d", "e"]])
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [3, 3, 3]


def test_a_report_of_nasty_names_has_the_structure_of_any_other(tmp_path):
    def written(model, attack, classes, directory):
        report = model_report()
        report.attacks[attack] = report.attacks.pop("pgd")
        options = OPTIONS | {"title": model, "dataset": attack}
        write_report({model: report}, directory, **options, sheets={model: sheet()}, class_names=classes)
        return (directory / "report.md").read_text()

    plain_text = written("model", "pgd", ["a", "b", "c"], tmp_path / "plain")
    text = written(NASTY, NASTY, [NASTY, "$x", "b\n\n# c"], tmp_path / "nasty")
    for pattern in (r"^#+ ", r"^- ", r"(?<!\\)!\[", r"<\w+", r"(?<!\\)\|", r"^\|", r"(?<!\\)`", r"(?<!\\)\*\*"):
        own, others = (re.findall(pattern, one, flags=re.MULTILINE) for one in (text, plain_text))
        assert len(own) == len(others), pattern
    assert len(text.splitlines()) == len(plain_text.splitlines())


def test_composed_victims_are_told_where_there_are_any(tmp_path):
    for victims in ({}, {"shaken": "the model standard behind the transform rt_2", NASTY: "the model <b>"}):
        write_report({"standard": model_report()}, tmp_path, **OPTIONS, victims=victims)
        text = (tmp_path / "report.md").read_text()
        listed = [line for line in text.splitlines() if line.startswith("- ") and ": the model" in line]
        assert ("## Victims" in text, len(listed)) == (bool(victims), len(victims))
    assert listed[0] == "- shaken: the model standard behind the transform rt_2"
    assert listed[1].endswith("the model &lt;b&gt;")


def test_titles_of_figures_with_dollars_are_drawn(tmp_path):
    curves = model_report().curves
    name = "cost $\\frac$ {"  # not a formula
    named = [type(curve)(curve.kind, name, curve.values, curve.correct, curve.total) for curve in curves]
    report = model_report(curves=tuple(named), labels=np.arange(40, dtype=np.int32) % 3)
    report.attacks[name] = report.attacks.pop("joint")
    write_report({name: report}, tmp_path, **OPTIONS, sheets={name: sheet()}, class_names=["$\\x$", "$a$", "b"])
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".md", ".html", ".json"}
