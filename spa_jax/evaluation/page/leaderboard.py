"""`leaderboard.html`: models of several runs side by side, for each data set and threat model a table."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spa_jax.evaluation.entries import Entry, read_entries
from spa_jax.evaluation.files import write_files
from spa_jax.evaluation.page.markup import Markup, document, tag
from spa_jax.evaluation.page.tables import heat, percent, scale, table

_HEADER = ("model", "robust", "clean", "claimed", "attacks", "images", "alarms", "run")
_WIDE = ("attacks", "run")
_USUAL = ("report", "report.json", "card.json")
_HOW_TO_READ = (
    "Robust is the share of images classified correctly as they are and under every attack of the run that the threat "
    "model allows, with its 95 % interval (Wilson), which covers the sampling of the images, not the training seed.",
    "It is an upper bound: other attacks may find more. Runs may have tried different attacks, on different images of "
    "the same data; the columns say which. Alarms are signs that an accuracy is overestimated; the report of the run "
    "names them.",
)


def write_leaderboard(
    paths: Sequence[str | os.PathLike], output: str | os.PathLike, *, title: str = "Leaderboard"
) -> list[Entry]:
    """Read the results of several runs and write one page that compares them.

    Args:
        paths: of report.json files, or of other kinds that `spa_jax.evaluation.read_entries` reads.
        output: the file, usually `leaderboard.html`; its directory is made.
        title: of the page.

    Returns:
        What was compared.

    Raises:
        ValueError: no path, a file that cannot be read or holds no model under attack, or an output that cannot be
            written.
    """
    if not paths:
        raise ValueError("paths must hold at least one file")
    entries = read_entries(paths)
    output = Path(output).expanduser()
    write_files(output.parent, {output.name: leaderboard_page(entries, title=title).encode()})
    return entries


def leaderboard_page(entries: Sequence[Entry], *, title: str = "Leaderboard") -> str:
    """The page; the same entries give the same text.

    Args:
        entries: at least one.
        title: of the page.
    """
    groups = _groups(entries)
    datasets = [tag("li", tag("a", name, href=f"#data-{number}")) for number, name in enumerate(groups)]
    models = len({(entry.source, entry.model) for entry in entries})
    files = len({entry.source for entry in entries})
    counted = f"{models} {'model' if models == 1 else 'models'} from {files} {'file' if files == 1 else 'files'}."
    header = tag(
        "header",
        tag("p", "Robust accuracy", class_="kicker"),
        tag("h1", title),
        tag("p", counted, class_="lead"),
        tag("nav", tag("ul", *datasets, tag("li", tag("a", "How to read it", href="#how"))), aria_label="Data sets"),
    )
    sources = _shortened(entry.source for entry in entries)
    sections = [_section(number, name, own, sources) for number, (name, own) in enumerate(groups.items())]
    how = tag(
        "section",
        tag("h2", "How to read it", id="how-title"),
        *(tag("p", text) for text in _HOW_TO_READ),
        id="how",
        aria_labelledby="how-title",
    )
    footer = tag("footer", tag("p", "Written by spa_jax from the files named in the tables."))
    return document(title, header, tag("main", *sections, how, id="content", tabindex="-1"), footer)


def _groups(entries: Iterable[Entry]) -> dict[str, dict[str, list[Entry]]]:
    """By data set, then threat model, in alphabetical order; the most robust first."""
    groups: dict[str, dict[str, list[Entry]]] = {}
    for entry in sorted(entries, key=lambda own: (own.dataset, own.threat, -own.robust.value, own.model, own.source)):
        groups.setdefault(entry.dataset, {}).setdefault(entry.threat, []).append(entry)
    return groups


def _section(number: int, dataset: str, threats: dict[str, list[Entry]], sources: Mapping[str, str]) -> Markup:
    shown: list[Markup] = []
    for threat, entries in threats.items():
        with_claims = any(entry.claimed is not None for entry in entries)
        header = [title for title in _HEADER if with_claims or title != "claimed"]
        rows = [_row(entry, with_claims, sources) for entry in entries]
        options: dict[str, Any] = {"sorted_by": "robust", "wide": _WIDE, "class_": "heats", "data_sortable": True}
        shown += [tag("h3", threat), table(f"{dataset}, {threat}", header, rows, **options)]
    name = f"data-{number}"
    heading = tag("h2", dataset, id=f"{name}-title")
    return tag("section", heading, scale(), *shown, id=name, aria_labelledby=f"{name}-title")


def _row(entry: Entry, with_claims: bool, sources: Mapping[str, str]) -> list[Markup | str]:
    return [
        entry.model,
        heat(entry.robust),
        heat(entry.clean),
        *([_claim(entry)] if with_claims else []),
        tag("td", ", ".join(entry.attacks), class_="wide"),
        f"{entry.robust.total:,}",
        tag("td", tag("span", entry.alarms, class_="badge") if entry.alarms else "0", data_sort=entry.alarms),
        tag("td", sources[entry.source], class_="wide muted"),
    ]


def _shortened(sources: Iterable[str]) -> dict[str, str]:
    """Paths without what all of them begin with, and without the usual names at their ends."""
    parts = {source: list(Path(source).parts) for source in sources}
    begin = len(os.path.commonprefix(list(parts.values()))) if len(parts) > 1 else 0
    for own in parts.values():
        del own[: min(begin, len(own) - 1)]
        while len(own) > 1 and own[-1] in _USUAL:
            own.pop()
    return {source: "/".join(own) for source, own in parts.items()}


def _claim(entry: Entry) -> Markup:
    """The claimed accuracy, with a mark where it lies above the interval of the measured one."""
    if entry.claimed is None:
        return tag("td", tag("span", "none", class_="muted"), data_sort="-1")
    too_high = tag("span", "above measured", class_="badge under") if entry.claimed > entry.robust.high else None
    return tag("td", percent(entry.claimed), " ", too_high, data_sort=f"{entry.claimed:.6f}")
