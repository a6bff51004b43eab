"""What is proved of models under one attribute: certified.json, and a part of the report."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spa_jax.evaluation.certified import CertifiedRecord
from spa_jax.evaluation.contents import Section
from spa_jax.evaluation.files import write_files
from spa_jax.evaluation.records import Proportion

_COLUMNS = ("model", "clean", "unbroken", "proved", "undecided", "note")

_WORDS = """\
This attribute moves alone, without noise. Of {count} examples, shares: right as they are (clean);
right at each of {points} points of a sweep too (unbroken: no more can be robust); right at every value of the range, by
bounds of the margins up to rounding (proved: no fewer are robust); neither fooled nor proved (undecided)."""


def write_certified(models: Mapping[str, CertifiedRecord], section: Mapping[str, Any], directory: Path) -> None:
    """Write certified.json. With several processes, call it in one of them.

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


def certified_section(models: Mapping[str, CertifiedRecord], section: Mapping[str, Any]) -> Section:
    """What is proved beside what a sweep has left, as a part of a report; the arguments are those of the file."""
    words = _WORDS.format(points=section["points"], count=len(next(iter(models.values())).correct))
    title = f"Proved right at every {section['attribute']} from {section['low']:g} to {section['high']:g}"
    rows = [[name, *_shares(record).values(), record.reason] for name, record in models.items()]
    return Section("certified", title, words, _COLUMNS, rows, ("note",))


def _shares(record: CertifiedRecord) -> dict[str, Proportion | None]:
    found = record.certificate
    return {
        "clean": Proportion.of(record.correct),
        "unbroken": Proportion.of(record.unbroken),
        "proved": found and Proportion.of(found.proved),
        "undecided": found and Proportion.of(found.undecided),
    }


def _as_data(record: CertifiedRecord) -> dict[str, Any]:
    shares = {name: None if share is None else share.as_data() for name, share in _shares(record).items()}
    return {**shares, "cells": record.certificate.cells if record.certificate else 0, "reason": record.reason}
