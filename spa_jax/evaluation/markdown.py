"""The report for readers: one comparison of all models, one card a model, and what was run, in Markdown."""

import dataclasses
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spa_jax.evaluation.description import summarise
from spa_jax.evaluation.records import ModelReport, Proportion

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


def condition_title(condition: str, survivors_only: bool) -> str:
    """A condition as a table names it; in a cascade an attack's row is the worst case so far."""
    if condition in ("clean", "worst_case"):
        return condition.replace("_", " ")
    return f"after {condition}" if survivors_only else condition


def compare(models: Mapping[str, ModelReport]) -> list[tuple[str, list[Proportion | None], float]]:
    """Rows of the comparison: title, each model's accuracy (None where it was not measured), and the highest."""
    rows = []
    conditions = dict.fromkeys(name for report in models.values() for name in report.accuracies if name != "worst_case")
    for condition in [*conditions, "worst_case"]:
        cells = [report.accuracies.get(condition) for report in models.values()]
        measured = [cell.value for cell in cells if cell is not None]
        if measured:
            title = condition_title(condition, next(iter(models.values())).survivors_only)
            rows.append((title, cells, max(measured)))
    return rows


def markdown_report(
    models: Mapping[str, ModelReport],
    setting: Setting,
    pictures: Mapping[str, str],
    victims: Mapping[str, str] | None = None,
) -> str:
    """The report.

    Args:
        models: judged alike, by name.
        setting: what was run.
        pictures: their captions by file name, files beside the report.
        victims: what the composed ones among the models are made of, in words; they are listed where there are any.
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
    lines += ["## Accuracy", "", *_comparison(models), "", _how_to_read(models), ""]
    if drawn := {name: report for name, report in models.items() if report.over_draws}:
        lines += ["## Over fresh draws", "", *_over_draws(drawn), ""]
    lines += ["## Warnings", "", *_warnings(models), ""]
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


_HOW_TO_READ = """\
How to read it: a number is the share of examples classified correctly, in brackets its 95 % interval (Wilson). The
interval covers the sampling of the examples, not the training seed. Bold is the highest of a row.

{attacks} The worst case counts an example as correct only if it is so clean and under every attack. An example
misclassified clean counts as wrong everywhere. The victim judged every attacked image anew, with fresh random keys,
after a check that it is a finite image in [0, 1].

An accuracy under attack is an upper bound: another attack may find more."""

_CASCADE = (
    "The attacks ran as a cascade, each on the examples that all before it had not fooled: a row is the worst case up "
    "to its attack."
)
_SEPARATE = "Each attack ran on every example classified correctly clean: its row is its own accuracy."


def _how_to_read(models: Mapping[str, ModelReport]) -> str:
    is_cascade = next(iter(models.values())).survivors_only
    return _HOW_TO_READ.format(attacks=_CASCADE if is_cascade else _SEPARATE)


_HOW_DRAWN = """\
These victims draw at random. Above, one fresh draw decides about each image; here every image was judged over several:
the mean accuracy, and the share of examples that are right in all draws and in at least one. An attacker who may try
again needs one draw that fails. In a cascade an image that was fooled before counts as wrong in every draw."""


def _over_draws(models: Mapping[str, ModelReport]) -> list[str]:
    rows = []
    for name, report in models.items():
        for condition, found in report.over_draws.items():
            shares = [f"{100 * share:.1f} %" for share in (found.mean, found.always, found.ever)]
            one = f"{100 * report.accuracies[condition].value:.1f} %"
            title = condition_title(condition, report.survivors_only)
            rows.append([plain(name), plain(title), str(report.draws), one, *shares])
    header = ["", "", "draws", "one draw", "mean", "right in all", "right in some"]
    return [_HOW_DRAWN, "", *table(header, rows)]


def _warnings(models: Mapping[str, ModelReport]) -> list[str]:
    lines = []
    for name, report in models.items():
        for finding in report.findings:
            cause, found, advice = map(plain, (finding.cause, finding.message, finding.advice))
            told = f"{cause}: {found}" if cause else found
            lines.append(f"- **{plain(name)}, {plain(finding.name)}**: {told}. What to do: {advice}.")
        for attack, record in report.attacks.items():
            which = f"- **{plain(name)}, {plain(attack)}**"
            if record.invalid:
                lines.append(
                    f"{which}: {record.invalid} of {record.attacked} images were not in [0, 1] and count as no "
                    "success. What to do: mend the attack."
                )
            if record.broken:
                lines.append(
                    f"{which}: {record.broken} of {record.attacked} attacked images, or the logits of them, were not "
                    "finite and count as misclassified. What to do: find where the victim makes NaN or infinity."
                )
    checked = [name for name, report in models.items() if report.checks]
    nothing = (
        f"None of the sanity checks of {', '.join(map(plain, checked))} raised one."
        if checked
        else "No sanity checks ran."
    )
    return lines or [nothing]


def _card(report: ModelReport, class_names: Sequence[str] | None) -> list[str]:
    rows = []
    for name, accuracy in report.accuracies.items():
        record = report.attacks.get(name)
        own = ["", "", ""] if record is None else [str(record.attacked), *_fooled_and_seconds(report, name)]
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


def _fooled_and_seconds(report: ModelReport, name: str) -> list[str]:
    record = report.attacks[name]
    return [str(record.attacked - int(record.correct.sum())), f"{record.seconds:.1f}"]


_HOW_FAR = """\
How far the images that fooled it were moved: mean over them, in brackets the worst one. A(x, a) is the image edited by
the attack's own attribute values, from which its noise is measured; x is the original; SSIM is 1 for equal images."""


def _distances(report: ModelReport) -> list[str]:
    measured = {name: record.distances for name, record in report.attacks.items() if record.distances}
    if not measured:
        return []
    header = ["", "L∞ from A(x, a)", "L∞ from x", "L2 from x", "SSIM with x"]
    rows = [
        [
            plain(name),
            *(f"{own[of].mean:.3g} ({own[of].worst:.3g})" for of in ("linf_from_edited", "linf", "l2", "ssim")),
        ]
        for name, own in measured.items()
    ]
    return [_HOW_FAR, "", *table(header, rows), ""]


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
    for attack, made_of in _attacks(models).items():
        yield f"- {plain(attack)}: {code(made_of)}"
    yield ""
    yield from where_it_ran(setting)


def where_it_ran(setting: Setting) -> list[str]:
    """Devices, versions and config."""
    versions = ", ".join(f"{name} {version}" for name, version in setting.versions.items())
    config = json.dumps(setting.config, indent=2)
    return [f"Ran on {setting.devices} with {versions}.", "", "Config:", "", "```json", config, "```"]


def _attacks(models: Mapping[str, ModelReport]) -> dict[str, str]:
    """What each attack is made of; one that differs between models is listed for each."""
    described: dict[str, dict[str, str]] = {}
    for model, report in models.items():
        for attack, record in report.attacks.items():
            described.setdefault(attack, {})[model] = summarise(record.parameters)
    listed = {}
    for attack, by_model in described.items():
        if len(set(by_model.values())) == 1:
            listed[attack] = next(iter(by_model.values()))
        else:
            listed |= {f"{attack} on {model}": text for model, text in by_model.items()}
    return listed
