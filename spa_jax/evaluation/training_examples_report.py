"""The report on training examples: a table in the terminal, training_examples.md and training_examples.json."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spa_jax.evaluation.files import write_files
from spa_jax.evaluation.markdown import Setting, plain, table, where_it_ran
from spa_jax.evaluation.report import console_table, make_setting, print_wide
from spa_jax.evaluation.training_examples import TrainingExamplesRecord

Models = Mapping[str, Mapping[str, TrainingExamplesRecord]]

_WIDTH = 160
_COLUMNS = ("model", "examples", "judge's accuracy", "judge's entropy", "shared, moved", "shared, all", "own accuracy")

_HOW_TO_READ = """\
How to read it: examples of the training split were crafted against each trained network, by the attack that it was
trained with ("own") and by others, and shown to an independent network, the judge. Examples that the judge does not
read as their label may have lost their meaning; compare with the row "clean".

| column | meaning |
| --- | --- |
| judge's accuracy | share of the examples whose label the judge answers, with its 95 % interval (Wilson) |
| judge's entropy | of its probabilities, in nats: 0 is certain |
| shared, moved | mean pairwise cosine of the classes' gradient magnitudes, pixels weighted by how far they moved |
| shared, all | the same with all pixels alike: what the network has without any attack |
| own accuracy | share of the examples whose label the network itself answers |"""


def write_training_examples_report(
    models: Models,
    directory: str | os.PathLike,
    *,
    title: str,
    dataset: str,
    seed: int,
    config: Any,
    class_names: Sequence[str] | None = None,
) -> str:
    """Print what training examples mean to a judge; write training_examples.md and training_examples.json.

    With several processes, call it in one of them.

    Args:
        models: records of `measure_training_examples` by model.
        directory: made if it is not there; files that are there are replaced.
        title: of the report.
        dataset: which examples, for the reader: "mnist, training split".
        seed: of the measurement's key.
        config: what was run, as a mapping of plain data or a `ConfigDict`.
        class_names: default: the numbers of the classes.

    Returns:
        The printed table as plain text.

    Raises:
        ValueError: no record, or a directory that cannot be written.
        ConfigError: a config that is not plain data.
    """
    if not any(models.values()):
        raise ValueError("models hold no record of training examples")
    setting = make_setting(title, dataset, seed, config, class_names)
    files = {
        "training_examples.md": ("\n".join(_markdown(models, setting)) + "\n").encode(),
        "training_examples.json": _as_json(models, setting).encode(),
    }
    write_files(directory, files)
    return print_wide((console_table(title, _COLUMNS, _rows(models), left=_COLUMNS[:2]),), _WIDTH)


def _rows(models: Models) -> list[list[str]]:
    return [
        [model, name, str(own.judge_accuracy), *map(str, own.means.values()), str(own.accuracy)]
        for model, records in models.items()
        for name, own in records.items()
    ]


def _markdown(models: Models, setting: Setting) -> Iterator[str]:
    count = len(next(iter(next(iter(models.values())).values())).judged)
    yield from (f"# {plain(setting.title)}", "")
    yield from (f"{count} examples of {plain(setting.dataset)}, seed {setting.seed}.", "", "## Training examples", "")
    yield from table(_COLUMNS, [[plain(cell) for cell in row[:2]] + row[2:] for row in _rows(models)])
    yield from ("", _HOW_TO_READ, "", "## What was run", "", *where_it_ran(setting))


def _as_json(models: Models, setting: Setting) -> str:
    content = {
        **dataclasses.asdict(setting),
        "models": {model: {name: _as_data(own) for name, own in records.items()} for model, records in models.items()},
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _as_data(record: TrainingExamplesRecord) -> dict[str, Any]:
    return {
        "judge_accuracy": record.judge_accuracy.as_data(),
        "accuracy": record.accuracy.as_data(),
        **{name: dataclasses.asdict(mean) for name, mean in record.means.items()},
        "parameters": record.parameters,
    }
