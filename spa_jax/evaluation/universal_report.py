"""The report on universal perturbations: a table in the terminal, universal.md, its pictures and universal.json."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from spa_jax.evaluation.drawing import MUTED, as_png, shortened, write_title
from spa_jax.evaluation.files import file_name, write_files
from spa_jax.evaluation.markdown import Setting, table, where_it_ran
from spa_jax.evaluation.report import console_table, make_setting, print_wide
from spa_jax.evaluation.universal import UniversalRecord, worst_record


class UniversalFindings(NamedTuple):
    """What universal perturbations do to one model.

    Attributes:
        records: of `evaluate_universal`, by attack.
        curves: by attack, records of perturbations that were made from ever more images.
        transferred: by attack, records of perturbations that were made against the model `source`.
        source: its name; empty where there are none.
    """

    records: Mapping[str, Sequence[UniversalRecord]]
    curves: Mapping[str, Sequence[UniversalRecord]] = {}
    transferred: Mapping[str, Sequence[UniversalRecord]] = {}
    source: str = ""

    @property
    def everything(self) -> dict[str, Sequence[UniversalRecord]]:
        """All records by the name of their row."""
        moved = {f"{attack}, made against {self.source}": own for attack, own in self.transferred.items()}
        return {**self.records, **moved}


Models = Mapping[str, UniversalFindings]

_WIDTH = 205
_CELL, _MOST_NUMBERED, _MOST_NOISES = 0.42, 20, 10


def write_universal_report(
    models: Models,
    directory: str | os.PathLike,
    *,
    title: str,
    dataset: str,
    seed: int,
    config: Any,
    class_names: Sequence[str] | None = None,
) -> str:
    """Print what universal perturbations do to models; write universal.md, universal.json and a picture for each model.

    With several processes, call it in one of them.

    Args:
        models: by name.
        directory: made if it is not there; a report that is there is replaced, file by file.
        title: of the report.
        dataset: which examples, for the reader: "mnist, test split".
        seed: of the evaluation's key.
        config: what was run, as a mapping of plain data or a `ConfigDict`.
        class_names: default: the numbers of the classes.

    Returns:
        The printed table as plain text.

    Raises:
        ValueError: no record, or a directory that cannot be written.
        ConfigError: a config that is not plain data.
    """
    if not any(records for found in models.values() for records in found.records.values()):
        raise ValueError("models hold no record of a universal perturbation")
    setting = make_setting(title, dataset, seed, config, class_names)
    pictures = {}
    for model, found in models.items():
        worst = {name: worst_record(records) for name, records in found.records.items()}
        pictures[f"universal_{file_name(model)}.png"] = (model, universal_png(worst, model, class_names))
    files = {name: png for name, (_, png) in pictures.items()}
    captions = {name: model for name, (model, _) in pictures.items()}
    files["universal.md"] = ("\n".join(_markdown(models, setting, captions)) + "\n").encode()
    files["universal.json"] = _as_json(models, setting, list(pictures)).encode()
    write_files(directory, files)
    named = ("model", "attack")
    shown = console_table(title, (*named, *_COLUMNS), [row[:-2] for row in _rows(models)], left=named)
    return print_wide((shown, _caption(models)), _WIDTH)


# --- Markdown -------------------------------------------------------------------------------------------------------

_COLUMNS = (
    "accuracy",
    "fooling ratio",
    "top answer",
    "effective labels",
    "effective wrong labels",
    "lowest class",
    "smallest drop",
    "spread of classes",
    "at the target",
)

_HOW_TO_READ = """\
How to read it: each perturbation was crafted afresh against the model on other images, and one perturbation (for
class-wise attacks one a class) was added to every image. Where several were made, by seed or target, the row is the one
that leaves the lowest accuracy, and the last column says how many there were.

| column | meaning |
| --- | --- |
| accuracy | share of perturbed images classified correctly, with its 95 % interval (Wilson) |
| fooling ratio | share of images whose answer changes |
| top answer | share of the commonest answer among all answers |
| effective labels | exp of the entropy of the answers: over how many classes they are spread |
| effective wrong labels | the same of the answers to misclassified images |
| lowest class, spread of classes | lowest accuracy of a class, and the standard deviation over classes |
| smallest drop | the least accuracy that a class loses, in percentage points; below 0 where one gains |
| at the target | share of images of other classes that are answered with the target, of targeted attacks |
| passes | forward and backward passes of single images that crafting took |"""

_HOW_TO_READ_TARGETS = """\
Share of the images of other classes that are answered with the target of a perturbation, mean over seeds: over all
targets, at the target where it is highest, and at each."""


def _markdown(models: Models, setting: Setting, pictures: Mapping[str, str]) -> Iterator[str]:
    count = len(_first(models).labels)
    yield from (f"# {setting.title}", "", f"{count} examples of {setting.dataset}, seed {setting.seed}.", "")
    yield from (
        "## Universal perturbations",
        "",
        *table(["model", "attack", *_COLUMNS, "passes", "made"], _rows(models)),
    )
    yield from _broken(models)
    yield from ("", _HOW_TO_READ, "", "## Worst case", "")
    yield from table(["model", "clean", "worst accuracy", "by"], _worst_rows(models))
    if targeted := _target_rows(models):
        yield from ("", "## By target", "", _HOW_TO_READ_TARGETS, "")
        yield from table(targeted[0], targeted[1:])
    if curves := _curve_rows(models):
        yield from ("", "## By the number of crafting images", "")
        yield from table(["model", "attack", "images", "accuracy", "fooling ratio"], curves)
    yield from ("", "## Pictures", "")
    for file, model in pictures.items():
        yield from (f"![Perturbations of {model}, and the answers they lead to]({file})", "")
    yield from ("## What was run", "", *where_it_ran(setting))


def _broken(models: Models) -> Iterator[str]:
    """A line for each attack under which some answers were not finite."""
    for model, found in models.items():
        for attack, records in found.everything.items():
            if broken := max(record.broken for record in records):
                yield from (
                    "",
                    f"- **{model}, {attack}**: up to {broken} of {len(records[0].labels)} perturbed images, or the "
                    "logits of them, were not finite and count as misclassified. What to do: find where the victim "
                    "makes NaN or infinity.",
                )


def _rows(models: Models) -> list[list[str]]:
    rows = []
    for model, found in models.items():
        for attack, records in found.everything.items():
            worst = worst_record(records)
            rows.append([model, attack, *_cells(worst), f"{worst.passes:,}", str(len(records))])
    return rows


def _target_rows(models: Models) -> list[list[str]]:
    """The shares of images answered with each target, the mean over seeds, after a header; empty without targets."""
    shares: dict[tuple[str, str], dict[int, float]] = {}
    for model, found in models.items():
        for attack, records in found.everything.items():
            if targets := sorted({record.target for record in records if record.target is not None}):
                shares[model, attack] = {target: _mean_share(records, target) for target in targets}
    columns = sorted({target for own in shares.values() for target in own})
    columns = columns if len(columns) <= _MOST_NUMBERED else []
    rows = [
        [
            *names,
            *(f"{100 * value:.1f} %" for value in (np.mean(list(own.values())), max(own.values()))),
            *(f"{100 * own[target]:.1f} %" if target in own else "" for target in columns),
        ]
        for names, own in shares.items()
    ]
    return [["model", "attack", "mean", "highest", *map(str, columns)], *rows] if rows else []


def _mean_share(records: Sequence[UniversalRecord], target: int) -> float:
    return float(np.mean([record.target_share.value for record in records if record.target == target]))


def _cells(record: UniversalRecord) -> list[str]:
    return [
        str(record.accuracy),
        f"{100 * record.fooling_ratio.value:.1f} %",
        f"{100 * record.top_share:.1f} %",
        f"{record.effective_labels:.2f}",
        f"{record.effective_wrong_labels:.2f}",
        f"{100 * record.class_minimum:.1f} %",
        f"{100 * record.smallest_drop:.1f}",
        f"{100 * record.class_spread:.1f}",
        "" if record.target is None else f"{record.target_share} at {record.target}",
    ]


def _worst_rows(models: Models) -> list[list[str]]:
    rows = []
    for model, found in models.items():
        named = {name: worst_record(records) for name, records in found.records.items()}
        worst = min(named, key=lambda name: named[name].accuracy.value)
        clean = np.mean(named[worst].clean == named[worst].labels)
        rows.append([model, f"{100 * clean:.1f} %", str(named[worst].accuracy), worst])
    return rows


def _curve_rows(models: Models) -> list[list[str]]:
    return [
        [model, attack, f"{own.crafting_images:,}", str(own.accuracy), f"{100 * own.fooling_ratio.value:.1f} %"]
        for model, found in models.items()
        for attack, records in found.curves.items()
        for own in records
    ]


def _first(models: Models) -> UniversalRecord:
    return next(records[0] for found in models.values() for records in found.records.values())


# --- terminal and JSON ----------------------------------------------------------------------------------------------


def _caption(models: Models) -> str:
    return f"{len(_first(models).labels)} examples; of several perturbations the one that leaves the lowest accuracy"


def _as_json(models: Models, setting: Setting, pictures: Sequence[str]) -> str:
    def of_each(kind: str) -> dict[str, Any]:
        records = {model: getattr(found, kind) for model, found in models.items()}
        return {
            model: {attack: list(map(_as_data, made)) for attack, made in own.items()} for model, own in records.items()
        }

    content = {
        **dataclasses.asdict(setting),
        "pictures": pictures,
        "models": of_each("records"),
        "curves": of_each("curves"),
        "transferred": of_each("transferred"),
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _as_data(record: UniversalRecord) -> dict[str, Any]:
    numbers = (
        "top_share",
        "label_entropy",
        "effective_labels",
        "effective_wrong_labels",
        "class_minimum",
        "smallest_drop",
        "class_spread",
    )
    return {
        "target": record.target,
        "accuracy": record.accuracy.as_data(),
        "fooling_ratio": record.fooling_ratio.as_data(),
        "target_share": None if record.target is None else record.target_share.as_data(),
        **{name: getattr(record, name) for name in numbers},
        "by_class": {str(label): share.as_data() for label, share in record.class_accuracies.items()},
        "flow": record.flow.tolist(),
        "broken": record.broken,
        "crafting_images": record.crafting_images,
        "passes": record.passes,
        "seconds": record.seconds,
        "parameters": record.parameters,
    }


# --- pictures -------------------------------------------------------------------------------------------------------


def universal_png(
    records: Mapping[str, UniversalRecord], model: str, class_names: Sequence[str] | None = None
) -> bytes:
    """For each attack a row: the perturbation, and how many images of each class are answered with each class.

    Noise is shown between its smallest and largest value, grey at 0; of a class-wise perturbation at most ten sets.
    Values of attributes stand in words.

    Args:
        records: by attack.
        model: its name.
        class_names: default: the numbers of the classes.
    """
    from matplotlib.figure import Figure

    classes = next(iter(records.values())).num_classes
    side = max(2.6, min(classes, _MOST_NUMBERED) * _CELL * 0.62)
    height, width = side + 1.0, 3.4 + side + 1.6
    figure = Figure(figsize=(max(6.2, width), 1.1 + height * len(records)))
    total = figure.get_figheight()
    for row, (name, record) in enumerate(records.items()):
        bottom = total - 0.8 - (row + 1) * height + 0.55
        _draw_noise(figure, record, name, (0.35, bottom, 2.4, side))
        _draw_flow(figure, record, class_names, (4.2, bottom, side, side))
    write_title(
        figure, f"Universal perturbations of {model}", "Left: the perturbation. Right: true class to answer, in %"
    )
    return as_png(figure)


def _axes(figure: Any, place: tuple[float, float, float, float]) -> Any:
    width, height = figure.get_size_inches()
    x, y, w, h = place
    return figure.add_axes((x / width, y / height, w / width, h / height))


def _draw_noise(figure: Any, record: UniversalRecord, name: str, place: tuple[float, float, float, float]) -> None:
    axes = _axes(figure, place)
    axes.axis("off")
    noise, words = noise_and_words(record.variables)
    if noise is not None:
        shown = noise / (2 * max(float(np.abs(noise).max()), 1e-12)) + 0.5
        axes.imshow(
            shown[..., 0] if shown.shape[-1] == 1 else shown, cmap="PuOr_r", vmin=0, vmax=1, interpolation="nearest"
        )
    lines = [name, *words, f"accuracy {100 * record.accuracy.value:.1f} %, top answer {100 * record.top_share:.1f} %"]
    axes.text(0, 1.03, "\n".join(lines), fontsize=8.5, va="bottom", transform=axes.transAxes, parse_math=False)


def noise_and_words(variables: Any) -> tuple[Float[np.ndarray, "h w c"] | None, list[str]]:
    """The noise of a perturbation as one image, of a bank's side by side, and the values of its attributes in words."""
    named = variables if isinstance(variables, Mapping) else {"noise": variables}
    words = []
    for name, value in named.items():
        if name != "noise":
            numbers = ", ".join(f"{number:.3g}" for number in np.ravel(jax.tree.leaves(value)[0])[:_MOST_NOISES])
            words.append(f"{name} {numbers}")
    noise = None if "noise" not in named else np.asarray(named["noise"])
    if noise is not None and noise.ndim == 4:
        noise = _side_by_side(noise[:_MOST_NOISES])
    return (noise if noise is not None and noise.ndim == 3 else None), words


def _side_by_side(noises: np.ndarray) -> np.ndarray:
    """Several images in a grid of rows."""
    columns = int(np.ceil(np.sqrt(len(noises))))
    missing = -len(noises) % columns
    full = np.concatenate([noises, np.zeros((missing, *noises.shape[1:]), noises.dtype)])
    return np.concatenate([np.concatenate(list(row), axis=1) for row in full.reshape(-1, columns, *noises.shape[1:])])


def _draw_flow(
    figure: Any, record: UniversalRecord, class_names: Sequence[str] | None, place: tuple[float, float, float, float]
) -> None:
    axes, classes = _axes(figure, place), record.num_classes
    counts = record.flow
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("answer", fontsize=8)
    axes.set_ylabel("true class", fontsize=8)
    axes.tick_params(labelsize=6.5, colors=MUTED, length=0)
    axes.spines[:].set_visible(False)
    if classes > _MOST_NUMBERED:
        return
    names = [shortened(name) for name in class_names] if class_names else [str(i) for i in range(classes)]
    axes.set_xticks(range(classes), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(classes), names)
    for (i, j), share in np.ndenumerate(shares):
        if share >= 0.005:
            color = "white" if share > 0.5 else "black"
            axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=6, color=color)
