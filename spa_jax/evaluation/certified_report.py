"""What is proved of models under one attribute: certified.json, a table for the terminal, and a part of the report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spa_jax.evaluation.certified import CertifiedRecord
from spa_jax.evaluation.contents import Section
from spa_jax.evaluation.files import write_files
from spa_jax.evaluation.records import Proportion
from spa_jax.evaluation.report import console_table, print_wide

_WIDTH = 160
_COLUMNS = ("model", "clean", "unbroken", "proved", "undecided", "note")

_WORDS = """\
One attribute moves, without noise: {swept}. Of {count} examples, shares with 95 % intervals: right as they are
(clean); right at every point of the sweep too (unbroken: no more can be robust); right at every value of the range, by
bounds of the margins up to rounding (proved: no fewer are robust); neither fooled nor proved (undecided)."""


def write_certified(models: Mapping[str, CertifiedRecord], section: Mapping[str, Any], directory: Path) -> str:
    """Write certified.json, and give the table for a terminal: what is proved beside what a sweep has left.

    With several processes, call it in one of them.

    Args:
        models: records of `measure_certified` by model.
        section: what was swept: `attribute`, `low`, `high` and `points`.
        directory: made if it is not there; a file that is there is replaced.

    Raises:
        ValueError: no record, or a directory that cannot be written.
    """
    if not models:
        raise ValueError("models={} must hold at least one record")
    content = {
        **{name: section[name] for name in ("attribute", "low", "high", "points")},
        "models": {name: _as_data(record) for name, record in models.items()},
    }
    write_files(directory, {"certified.json": (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()})
    rows = [["" if cell is None else str(cell) for cell in row] for row in _rows(models)]
    shown = console_table(_swept(section), _COLUMNS, rows, left=("model", "note"), wraps=("note",))
    return print_wide((shown,), _WIDTH)


def certified_section(models: Mapping[str, CertifiedRecord], section: Mapping[str, Any]) -> Section:
    """The same as a part of a report."""
    count = len(next(iter(models.values())).correct)
    words = _WORDS.format(swept=_swept(section), count=count)
    return Section("certified", "Proved under one attribute", words, _COLUMNS, _rows(models))


def _shares(record: CertifiedRecord) -> dict[str, Proportion | None]:
    found = record.certificate
    return {
        "clean": Proportion.of(record.correct),
        "unbroken": Proportion.of(record.unbroken),
        "proved": found and Proportion.of(found.proved),
        "undecided": found and Proportion.of(found.undecided),
    }


def _rows(models: Mapping[str, CertifiedRecord]) -> list[list[str | Proportion | None]]:
    return [[name, *_shares(record).values(), record.reason] for name, record in models.items()]


def _swept(section: Mapping[str, Any]) -> str:
    return f"{section['attribute']} from {section['low']:g} to {section['high']:g}, swept at {section['points']} points"


def _as_data(record: CertifiedRecord) -> dict[str, Any]:
    shares = {name: None if share is None else share.as_data() for name, share in _shares(record).items()}
    return {**shares, "cells": record.certificate.cells if record.certificate else 0, "reason": record.reason}
