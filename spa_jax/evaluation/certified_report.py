"""The report on what is proved of models under one attribute: a table in the terminal, certified.md, certified.json."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from spa_jax.evaluation.certified import CertifiedRecord
from spa_jax.evaluation.files import write_files
from spa_jax.evaluation.markdown import Setting, plain, table, where_it_ran
from spa_jax.evaluation.records import Proportion
from spa_jax.evaluation.report import console_table, make_setting, print_wide

_WIDTH = 160
_COLUMNS = ("model", "clean", "unbroken", "proved", "undecided", "note")

_HOW_TO_READ = """\
How to read it: one attribute moves, without noise. All shares are of all examples, with 95 % intervals (Wilson).

| column | meaning |
| --- | --- |
| clean | right as it is |
| unbroken | right at every point of the sweep too: no more than this can be robust |
| proved | right at every value of the range, by bounds of the margins up to rounding: no less than this is robust |
| undecided | no value was found that fools, and no proof |
| note | why nothing could be proved |"""


def write_certified_report(
    models: Mapping[str, CertifiedRecord],
    directory: str | os.PathLike,
    *,
    section: Mapping[str, Any],
    title: str,
    dataset: str,
    seed: int,
    config: Any,
    class_names: Sequence[str] | None = None,
) -> str:
    """Print what is proved beside what a sweep has left; write certified.md and certified.json.

    With several processes, call it in one of them.

    Args:
        models: records of `measure_certified` by model.
        directory: made if it is not there; files that are there are replaced.
        section: what was swept: `attribute`, `low`, `high` and `points`.
        title: of the report.
        dataset: which examples, for the reader: "mnist, test split".
        seed: of the sweep's key.
        config: what was run, as a mapping of plain data or a `ConfigDict`.
        class_names: default: the numbers of the classes.

    Returns:
        The printed table as plain text.

    Raises:
        ValueError: no record, or a directory that cannot be written.
        ConfigError: a config that is not plain data.
    """
    if not models:
        raise ValueError("models={} must hold at least one record")
    setting = make_setting(title, dataset, seed, config, class_names)
    swept = {name: section[name] for name in ("attribute", "low", "high", "points")}
    files = {
        "certified.md": "\n".join([*_markdown(models, setting, swept), ""]).encode(),
        "certified.json": _as_json(models, setting, swept).encode(),
    }
    write_files(directory, files)
    heading = f"{title}: {_words(swept)}"
    shown = console_table(heading, _COLUMNS, _rows(models), left=("model", "note"), wraps=("note",))
    return print_wide((shown,), _WIDTH)


def _shares(record: CertifiedRecord) -> dict[str, Proportion | None]:
    found = record.certificate
    return {
        "clean": Proportion.of(record.correct),
        "unbroken": Proportion.of(record.unbroken),
        "proved": found and Proportion.of(found.proved),
        "undecided": found and Proportion.of(found.undecided),
    }


def _rows(models: Mapping[str, CertifiedRecord]) -> list[list[str]]:
    return [
        [name, *("" if share is None else str(share) for share in _shares(record).values()), record.reason]
        for name, record in models.items()
    ]


def _words(swept: Mapping[str, Any]) -> str:
    return f"{swept['attribute']} from {swept['low']:g} to {swept['high']:g}, swept at {swept['points']} points"


def _markdown(models: Mapping[str, CertifiedRecord], setting: Setting, swept: Mapping[str, Any]) -> list[str]:
    count = len(next(iter(models.values())).correct)
    return [
        f"# {plain(setting.title)}",
        "",
        f"{count} examples of {plain(setting.dataset)}, seed {setting.seed}; {_words(swept)}.",
        "",
        "## Proved under one attribute",
        "",
        *table(_COLUMNS, [[plain(cell) for cell in row] for row in _rows(models)]),
        "",
        _HOW_TO_READ,
        "",
        "## What was run",
        "",
        *where_it_ran(setting),
    ]


def _as_json(models: Mapping[str, CertifiedRecord], setting: Setting, swept: Mapping[str, Any]) -> str:
    content = {
        **dataclasses.asdict(setting),
        **swept,
        "models": {name: _as_data(record) for name, record in models.items()},
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _as_data(record: CertifiedRecord) -> dict[str, Any]:
    shares = {name: None if share is None else share.as_data() for name, share in _shares(record).items()}
    return {**shares, "cells": record.certificate.cells if record.certificate else 0, "reason": record.reason}
