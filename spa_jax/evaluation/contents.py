"""What a report says of models, before any markup: its rows and sentences, for Markdown and for the page."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from spa_jax.evaluation.description import summarise
from spa_jax.evaluation.records import ModelReport, Proportion

_CASCADE = (
    "The attacks ran as a cascade, each on the examples that all before it had not fooled: a {line} is the worst case "
    "up to its attack."
)
_SEPARATE = "Each attack ran on every example classified correctly clean: its {line} is its own accuracy."

_HOW_TO_READ = """\
How to read it: a number is the share of examples classified correctly, with its 95 % interval (Wilson). The
interval covers the sampling of the examples, not the training seed. Bold is the highest of a {line}.

{attacks} The worst case counts an example as correct only if it is so clean and under every attack. An example
misclassified clean counts as wrong everywhere. The victim judged every attacked image anew, with fresh random keys,
after a check that it is a finite image in [0, 1].

An accuracy under attack is an upper bound: another attack may find more."""

HOW_DRAWN = """\
These victims draw at random. Above, one fresh draw decides about each image; here every image was judged over several:
the mean accuracy, and the share of examples that are right in all draws and in at least one. An attacker who may try
again needs one draw that fails. In a cascade an image that was fooled before counts as wrong in every draw."""

HOW_FAR = """\
How far the images that fooled it were moved: mean over them, in brackets the worst one. A(x, a) is the image edited by
the attack's own attribute values, from which its noise is measured; x is the original; SSIM is 1 for equal images."""

HOW_NEAR = """\
These attacks look for the nearest image that fools, at any distance: they have no accuracy, but distances, which are 0
for an example that is misclassified as it is and infinite where nothing was found. Half of the examples withstand the
attack within the median distance."""

NEAREST_HEADER = ("", "", "norm", "median distance", "found", "seconds")
OVER_DRAWS_HEADER = ("", "", "draws", "one draw", "mean", "right in all", "right in some")
_DISTANCES = {
    "linf_from_edited": "L∞ from A(x, a)",
    "linf": "L∞ from x",
    "l2": "L2 from x",
    "ssim": "SSIM with x",
    "perceptual": "perceptual from x",
}


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


def how_to_read(models: Mapping[str, ModelReport], line: str) -> str:
    """What the numbers of the comparison are, in paragraphs; `line` is a "row" or a "column" of it."""
    is_cascade = next(iter(models.values())).survivors_only
    return _HOW_TO_READ.format(line=line, attacks=(_CASCADE if is_cascade else _SEPARATE).format(line=line))


class Alarm(NamedTuple):
    """A reason to doubt an accuracy.

    Attributes:
        model: its name.
        name: of the sanity check, or of the attack.
        cause: in a few words; empty where `found` says it all.
        found: what was seen, with the numbers.
        advice: what to do.
    """

    model: str
    name: str
    cause: str
    found: str
    advice: str


class Section(NamedTuple):
    """What was measured of the models beside the attacks of a report, which shows it as a table with a heading.

    Attributes:
        name: of letters, for links.
        title: its heading.
        words: what the table shows, in one paragraph.
        header: of the columns, the first of them the model.
        rows: of texts, accuracies, and None for what was not measured.
        texts: the columns of longer texts.
        alarms: reasons to doubt one of its numbers.
    """

    name: str
    title: str
    words: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Proportion | None]]
    texts: Sequence[str] = ()
    alarms: Sequence[Alarm] = ()


def alarms(models: Mapping[str, ModelReport], sections: Sequence[Section] = ()) -> list[Alarm]:
    """The checks that did not pass, those of `sections` included, and attacks whose images or answers are unusable."""
    found = []
    for model, report in models.items():
        found += [Alarm(model, own.name, own.cause, own.message, own.advice) for own in report.findings]
        for attack, record in report.attacks.items():
            if record.invalid:
                seen = f"{record.invalid} of {record.attacked} images were not in [0, 1] and count as no success"
                found.append(Alarm(model, attack, "", seen, "mend the attack"))
            if record.broken:
                seen = (
                    f"{record.broken} of {record.attacked} attacked images, or the logits of them, were not finite and "
                    "count as misclassified"
                )
                found.append(Alarm(model, attack, "", seen, "find where the victim makes NaN or infinity"))
    return found + [alarm for section in sections for alarm in section.alarms]


def no_alarm(models: Mapping[str, ModelReport]) -> str:
    """What stands where there is no alarm."""
    checked = [name for name, report in models.items() if report.checks]
    return f"None of the sanity checks of {', '.join(checked)} raised one." if checked else "No sanity checks ran."


def over_draws_rows(models: Mapping[str, ModelReport]) -> list[list[str]]:
    """How randomised victims classify over several draws, a row for each model and condition."""
    rows = []
    for name, report in models.items():
        for condition, found in report.over_draws.items():
            shares = [f"{100 * share:.1f} %" for share in (found.mean, found.always, found.ever)]
            one = f"{100 * report.accuracies[condition].value:.1f} %"
            title = condition_title(condition, report.survivors_only)
            rows.append([name, title, str(report.draws), one, *shares])
    return rows


def nearest_rows(models: Mapping[str, ModelReport]) -> list[list[str]]:
    """How far the nearest images that fool lie, a row for each model and attack that looks for them."""
    rows = []
    for name, report in models.items():
        for attack, record in report.attacks.items():
            if (nearest := record.nearest) is not None:
                median = f"{nearest.median:.4g}" if math.isfinite(nearest.median) else "infinite"
                found = f"{100 * np.isfinite(nearest.distances).mean():.1f} %"
                rows.append([name, attack, nearest.norm, median, found, f"{record.seconds:.1f}"])
    return rows


def fooled_and_seconds(report: ModelReport, name: str) -> list[str]:
    """How many examples an attack fooled, and its wall time."""
    record = report.attacks[name]
    return [str(record.attacked - int(record.correct.sum())), f"{record.seconds:.1f}"]


def distance_table(report: ModelReport) -> tuple[list[str], list[list[str]]]:
    """How far each attack that fooled moved its images: what was measured, and a row for each attack."""
    measured = {name: record.distances for name, record in report.attacks.items() if record.distances}
    known = [of for of in _DISTANCES if any(of in own for own in measured.values())]
    rows = [[name, *(f"{own[of].mean:.3g} ({own[of].worst:.3g})" for of in known)] for name, own in measured.items()]
    return [_DISTANCES[of] for of in known], rows


def attacks_in_words(models: Mapping[str, ModelReport]) -> dict[str, str]:
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
