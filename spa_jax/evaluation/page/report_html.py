"""`report.html`: the report of an evaluation as one page to look at, with the numbers of report.md and report.json."""

import json
from collections.abc import Iterator, Mapping, Sequence

from spa_jax.evaluation.contents import (
    HOW_DRAWN,
    HOW_FAR,
    HOW_NEAR,
    NEAREST_HEADER,
    OVER_DRAWS_HEADER,
    Alarm,
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
from spa_jax.evaluation.markdown import Setting
from spa_jax.evaluation.page.attributes import value_tables
from spa_jax.evaluation.page.charts import CURVE_KINDS, curve_figures
from spa_jax.evaluation.page.explorer import class_name, explorer
from spa_jax.evaluation.page.markup import Markup, document, join, tag
from spa_jax.evaluation.page.tables import heat, scale, table
from spa_jax.evaluation.records import ModelReport, Proportion

Models = Mapping[str, ModelReport]
_SHORT = {"values": "Attribute values", "certified": "Proved"}


def report_page(
    models: Models, setting: Setting, victims: Mapping[str, str] | None = None, further: Sequence[Section] = ()
) -> str:
    """The page: alarms, the comparison, curves, the explorer, a card for each model, and what was run.

    It is one file that loads nothing from elsewhere and reads without JavaScript, which sorts its tables and drives the
    explorer. The same results give the same text.

    Args:
        models: judged alike, by name; the explorer shows the galleries of their attacks.
        setting: what was run.
        victims: what the composed ones among the models are made of, in words.
        further: what was measured beside the attacks.
    """
    sections = list(_sections(models, setting, victims, further))
    links = [tag("li", tag("a", _SHORT.get(name, title), href=f"#{name}")) for name, title, _ in sections]
    examples = len(next(iter(models.values())).labels)
    header = tag(
        "header",
        tag("p", "Robustness report", class_="kicker"),
        tag("h1", setting.title),
        tag("p", f"{examples:,} examples of {setting.dataset}, seed {setting.seed}.", class_="lead"),
        tag("nav", tag("ul", *links), aria_label="Sections"),
    )
    main = tag("main", *(_section(*section) for section in sections), id="content", tabindex="-1")
    version = setting.versions.get("spa_jax", "")
    footer = tag("footer", tag("p", f"Written by spa_jax {version} beside report.md and report.json."))
    return document(setting.title, header, main, footer)


def _section(name: str, title: str, content: Sequence[Markup]) -> Markup:
    heading = tag("h2", title, id=f"{name}-title")
    return tag("section", heading, *content, id=name, aria_labelledby=f"{name}-title")


def _sections(
    models: Models, setting: Setting, victims: Mapping[str, str] | None, further: Sequence[Section]
) -> Iterator[tuple[str, str, list[Markup]]]:
    found = alarms(models, further)
    yield "alarms", f"Alarms ({len(found)})", [_alarms(found) if found else _calm(models)]
    yield "accuracy", "Accuracy", [*_victims(victims), *_comparison(models)]
    if rows := over_draws_rows(models):
        header = ["model", "condition", *OVER_DRAWS_HEADER[2:]]
        shown = [tag("p", HOW_DRAWN), table("Accuracy over fresh draws", header, rows, data_sortable=True)]
        yield "draws", "Over fresh draws", shown
    if rows := nearest_rows(models):
        header = ["model", "attack", *NEAREST_HEADER[2:]]
        shown = [
            tag("p", HOW_NEAR),
            table("How far the nearest images that fool lie", header, rows, data_sortable=True),
        ]
        yield "nearest", "Nearest images that fool", shown
    for section in further:
        rows = [[_shown(cell) for cell in row] for row in section.rows]
        caption = f"{section.title}; below an accuracy its 95 % interval"
        measured = table(caption, section.header, rows, wide=section.texts, class_="words", data_sortable=True)
        yield section.name, section.title, [tag("p", section.words), measured]
    curves = {name: report.drawn_curves for name, report in models.items()}
    if figures := [figure for kind in CURVE_KINDS for figure in curve_figures(curves, kind)]:
        yield "curves", "Curves", [tag("div", *figures, class_="figures")]
    if tables := value_tables(models):
        yield "values", "Attribute values at which attacks fool", tables
    if any(report.attacks for report in models.values()):
        yield "explorer", "Explorer", [explorer(models, setting.class_names)]
    yield "models", "Models", [_card(name, report, setting.class_names) for name, report in models.items()]
    yield "run", "What was run", list(_what_was_run(models, setting))


def _shown(cell: str | Proportion | None) -> str | Markup:
    return cell if isinstance(cell, str) else heat(cell)


# --- alarms ---------------------------------------------------------------------------------------------------------


def _alarms(found: Sequence[Alarm]) -> Markup:
    first = tag("p", "An accuracy below may be too high, or is not what it seems. Look into these before you cite it.")
    return tag("div", first, tag("ul", *map(_alarm, found), class_="alarms"))


def _alarm(alarm: Alarm) -> Markup:
    where = tag("span", f"{alarm.model}, {alarm.name}", class_="where")
    cause = tag("strong", _sentence(alarm.cause or alarm.found))
    found = tag("p", _sentence(alarm.found), class_="seen") if alarm.cause else None
    advice = tag("p", tag("b", "What to do: "), _sentence(alarm.advice), class_="advice")
    return tag("li", tag("p", tag("span", "Alarm", class_="badge"), " ", where), tag("p", cause), found, advice)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _calm(models: Models) -> Markup:
    checked = any(report.checks for report in models.values())
    badge = tag("span", "None", class_="badge calm") if checked else tag("span", "Not checked", class_="badge")
    return tag("p", badge, " ", no_alarm(models))


# --- the comparison -------------------------------------------------------------------------------------------------


def _victims(victims: Mapping[str, str] | None) -> list[Markup]:
    if not victims:
        return []
    made_of = [join([tag("dt", name), tag("dd", words)]) for name, words in victims.items()]
    return [tag("p", "What the composed victims are made of:"), tag("dl", *made_of, class_="made-of")]


def _comparison(models: Models) -> list[Markup]:
    titles, columns, highest = zip(*compare(models), strict=True)
    several = len(models) > 1
    rows = [
        [
            name,
            *(
                heat(cell, best=several and cell is not None and cell.value == top)
                for cell, top in zip(cells, highest, strict=True)
            ),
        ]
        for name, cells in zip(models, zip(*columns, strict=True), strict=True)
    ]
    caption = "Accuracy of every model under every attack; below it the 95 % interval, also as a bar from 0 to 100 %"
    shown = table(caption, ["model", *titles], rows, class_="heats", data_sortable=True)
    explained = [tag("p", paragraph) for paragraph in how_to_read(models, "column").split("\n\n")]
    return [scale(), shown, tag("details", tag("summary", "How to read it"), *explained)]


# --- the card of a model --------------------------------------------------------------------------------------------


def _card(name: str, report: ModelReport, class_names: Sequence[str] | None) -> Markup:
    rows = []
    for condition, accuracy in report.accuracies.items():
        record = report.attacks.get(condition)
        cost = ["", "", ""] if record is None else [f"{record.attacked:,}", *fooled_and_seconds(report, condition)]
        rows.append([condition_title(condition, report.survivors_only), heat(accuracy), *cost])
    header = ["condition", "accuracy", "attacked", "fooled", "seconds"]
    parts = [table(f"Attacks on {name}; seconds include compilation", header, rows)]
    titles, distances = distance_table(report)
    if distances:
        parts += [tag("p", HOW_FAR), table(f"How far images of {name} were moved", ["attack", *titles], distances)]
    parts.append(_by_class(name, report, class_names))
    if report.checks:
        marks = [[own.name, _mark(own.passed), own.message] for own in report.checks]
        header = ["check", "result", "measured"]
        parts.append(table(f"Sanity checks of {name}", header, marks, class_="words", data_sortable=True))
    return tag("details", tag("summary", name), *parts, class_="model")


def _mark(passed: bool) -> Markup:
    return tag("td", tag("span", "passed" if passed else "alarm", class_="badge calm" if passed else "badge"))


def _by_class(name: str, report: ModelReport, class_names: Sequence[str] | None) -> Markup:
    shares = {condition: report.by_class(condition) for condition in report.accuracies}
    rows = [
        [class_name(label, class_names), f"{clean.total:,}", *(heat(own[label]) for own in shares.values())]
        for label, clean in shares["clean"].items()
    ]
    titles = [condition_title(condition, report.survivors_only) for condition in shares]
    header = ["class", "examples", *titles]
    return table(f"Accuracy of {name} by class", header, rows, class_="heats", data_sortable=True)


# --- what was run ---------------------------------------------------------------------------------------------------


def _what_was_run(models: Models, setting: Setting) -> Iterator[Markup]:
    made_of = [
        join([tag("dt", attack), tag("dd", tag("code", words))]) for attack, words in attacks_in_words(models).items()
    ]
    if made_of:
        yield tag("dl", *made_of, class_="made-of")
    versions = ", ".join(f"{name} {version}" for name, version in setting.versions.items())
    yield tag("p", f"Ran on {setting.devices} with {versions}.")
    config = json.dumps(setting.config, indent=2)
    yield tag("details", tag("summary", "Config"), tag("pre", tag("code", config), tabindex="0"))
