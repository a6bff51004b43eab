"""The report for readers: one comparison of all models, one card a model, and what was run, in Markdown."""

import dataclasses
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spa_jax.evaluation.contents import (
    HOW_DRAWN,
    HOW_FAR,
    HOW_NEAR,
    NEAREST_HEADER,
    OVER_DRAWS_HEADER,
    Section,
    alarms,
    attacks_in_words,
    compare,
    condition_title,
    distance_table,
    fooled_and_seconds,
    how_to_read,
    nearest_rows,
    no_alarm,
    over_draws_rows,
)
from spa_jax.evaluation.records import ModelReport

_MOST_CLASSES_LISTED = 20
_SPECIAL = re.compile(r"[\\`*\[\]#~|$]|(?<!\w)_|_(?!\w)")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What was evaluated, on what.

    Attributes:
        title: of the report.
        dataset: which examples.
        seed: of the evaluation's key.
        config: plain data.
        versions: of Python and the packages.
        devices: in words.
        class_names: or None.
    """

    title: str
    dataset: str
    seed: int
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    devices: str
    class_names: Sequence[str] | None


def plain(text: str) -> str:
    """A text of the data or the config on one line of Markdown that shows it as it is: no markup, HTML or pictures."""
    return html.escape(_SPECIAL.sub(r"\\\g<0>", " ".join(text.split())), quote=False)


def code(text: str) -> str:
    """A text as a code span on one line, whatever backticks it holds."""
    line = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", line)), default=0))
    gap = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{gap}{line}{gap}{fence}"


def markdown_report(
    models: Mapping[str, ModelReport],
    setting: Setting,
    pictures: Mapping[str, str],
    victims: Mapping[str, str] | None = None,
    sections: Sequence[Section] = (),
) -> str:
    """The report.

    Args:
        models: judged alike, by name.
        setting: what was run.
        pictures: their captions by file name, files beside the report.
        victims: what the composed ones among the models are made of, in words; they are listed where there are any.
        sections: what was measured beside the attacks.
    """
    examples = len(next(iter(models.values())).labels)
    lines = [
        f"# {plain(setting.title)}",
        "",
        f"{examples} examples of {plain(setting.dataset)}, seed {setting.seed}.",
        "",
    ]
    if victims:
        lines += ["## Victims", "", *(f"- {plain(name)}: {plain(words)}" for name, words in victims.items()), ""]
    lines += ["## Accuracy", "", *_comparison(models), "", how_to_read(models, "row"), ""]
    if drawn := {name: report for name, report in models.items() if report.over_draws}:
        lines += ["## Over fresh draws", "", *_over_draws(drawn), ""]
    if nearest := nearest_rows(models):
        rows = [[plain(model), plain(attack), *numbers] for model, attack, *numbers in nearest]
        lines += ["## Nearest images that fool", "", HOW_NEAR, "", *table(NEAREST_HEADER, rows), ""]
    for section in sections:
        rows = [[plain(cell) if isinstance(cell, str) else str(cell or "") for cell in row] for row in section.rows]
        lines += [f"## {section.title}", "", section.words, "", *table(section.header, rows), ""]
    lines += ["## Warnings", "", *_warnings(models, sections), ""]
    if pictures:
        lines += ["## Pictures", ""]
        for file, caption in pictures.items():
            lines += [f"![{plain(caption)}]({file})", ""]
    for name, report in models.items():
        lines += [f"## Card of {plain(name)}", "", *_card(report, setting.class_names), ""]
    lines += ["## What was run", "", *_what_was_run(models, setting)]
    return "\n".join(lines) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, line by line; cells of foreign text are `plain`."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(re.sub(r"(?<!\\)\|", r"\|", cell) for cell in cells) + " |"

    return [line(header), line(["---"] * len(header)), *map(line, rows)]


def _comparison(models: Mapping[str, ModelReport]) -> list[str]:
    several = len(models) > 1
    rows = []
    for title, cells, highest in compare(models):
        shown = ["" if cell is None else str(cell) for cell in cells]
        is_best = [several and cell is not None and cell.value == highest for cell in cells]
        rows.append(
            [plain(title), *(f"**{text}**" if best else text for text, best in zip(shown, is_best, strict=True))]
        )
    return table(["", *map(plain, models)], rows)


def _over_draws(models: Mapping[str, ModelReport]) -> list[str]:
    rows = [[plain(model), plain(title), *numbers] for model, title, *numbers in over_draws_rows(models)]
    return [HOW_DRAWN, "", *table(OVER_DRAWS_HEADER, rows)]


def _warnings(models: Mapping[str, ModelReport], sections: Sequence[Section]) -> list[str]:
    lines = []
    for alarm in alarms(models, sections):
        model, name, cause, found, advice = map(plain, alarm)
        told = f"{cause}: {found}" if cause else found
        lines.append(f"- **{model}, {name}**: {told}. What to do: {advice}.")
    return lines or [plain(no_alarm(models))]


def _card(report: ModelReport, class_names: Sequence[str] | None) -> list[str]:
    rows = []
    for name, accuracy in report.accuracies.items():
        record = report.attacks.get(name)
        own = ["", "", ""] if record is None else [str(record.attacked), *fooled_and_seconds(report, name)]
        rows.append([plain(condition_title(name, report.survivors_only)), str(accuracy), *own])
    lines = table(["", "accuracy", "attacked", "fooled", "seconds"], rows)
    lines += ["", "Seconds include compilation.", "", *_distances(report)]
    lines += ["By class:", "", *_by_class(report, class_names)]
    if report.checks:
        marks = [
            [plain(check.name), "passed" if check.passed else "**warning**", plain(check.message)]
            for check in report.checks
        ]
        lines += ["", "Sanity checks:", "", *table(["check", "result", "measured"], marks)]
    return lines


def _distances(report: ModelReport) -> list[str]:
    titles, rows = distance_table(report)
    if not rows:
        return []
    return [HOW_FAR, "", *table(["", *titles], [[plain(name), *numbers] for name, *numbers in rows]), ""]


def _by_class(report: ModelReport, class_names: Sequence[str] | None) -> list[str]:
    """A table by class, of the weakest under the last condition if there are many."""
    conditions = list(report.accuracies)
    tables = {condition: report.by_class(condition) for condition in conditions}
    labels = sorted(tables[conditions[-1]])
    if len(labels) > _MOST_CLASSES_LISTED:
        labels = sorted(labels, key=lambda label: tables[conditions[-1]][label].value)[:_MOST_CLASSES_LISTED]
    rows = []
    for label in labels:
        name = str(label) if class_names is None else plain(class_names[label])
        shares = [f"{100 * tables[condition][label].value:.1f} %" for condition in conditions]
        rows.append([name, str(tables["clean"][label].total), *shares])
    titles = [plain(condition_title(condition, report.survivors_only)) for condition in conditions]
    return table(["class", "examples", *titles], rows)


def _what_was_run(models: Mapping[str, ModelReport], setting: Setting) -> Iterator[str]:
    yield "Attacks:"
    yield ""
    for attack, made_of in attacks_in_words(models).items():
        yield f"- {plain(attack)}: {code(made_of)}"
    yield ""
    yield from where_it_ran(setting)


def where_it_ran(setting: Setting) -> list[str]:
    """Devices, versions and config."""
    versions = ", ".join(f"{name} {version}" for name, version in setting.versions.items())
    config = json.dumps(setting.config, indent=2)
    return [f"Ran on {setting.devices} with {versions}.", "", "Config:", "", "```json", config, "```"]
