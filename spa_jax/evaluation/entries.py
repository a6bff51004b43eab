"""Entries of a leaderboard, read from the files that runs leave."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from spa_jax.evaluation.card import version_in_words
from spa_jax.evaluation.contents import alarms
from spa_jax.evaluation.drawing import fewest_digits
from spa_jax.evaluation.records import ExampleFlags, ModelReport, Proportion
from spa_jax.evaluation.report import read_report

_NORMS = {
    "LInf": "linf",
    "L2": "l2",
    "L1": "l1",
    "NoisePainter": "generated linf",
    "PerceptualBall": "perceptual",
}
_ORDINARY = ", test split"
"""Left out of a data set's name, so that reports stand beside cards, which do not have it."""

Threat: TypeAlias = frozenset[frozenset[str]]
"""What an attacker may do: one of several sets of limits, each such as {"linf 0.1", "rotation -20 to 20"}."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """How one model withstands one threat model.

    Attributes:
        model: its name.
        dataset: which examples, in words.
        threat: what the attacker may do, in words.
        robust: the share that is classified correctly clean and under all attacks that the threat model allows.
        clean: the share that is classified correctly as it is; None where that is not known.
        claimed: the robust accuracy that others have stated, in [0, 1]; None where nobody did.
        attacks: names of those that were tried.
        alarms: how many signs there are that the accuracy is overestimated.
        source: the file.
    """

    model: str
    dataset: str
    threat: str
    robust: Proportion
    clean: Proportion | None = None
    claimed: float | None = None
    attacks: Sequence[str] = ()
    alarms: int = 0
    source: str = ""


@dataclasses.dataclass(frozen=True)
class Reader:
    """A kind of file that holds entries.

    Attributes:
        takes: whether a file's content, as JSON gives it, is of this kind.
        read: its entries, from the content and the path; it may raise KeyError, TypeError or ValueError.
    """

    takes: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Mapping[str, Any], Path], list[Entry]]


def read_entries(paths: Iterable[str | os.PathLike]) -> list[Entry]:
    """The entries of several files, each a report.json, a card.json of AutoAttack, or of a kind added to `READERS`.

    Raises:
        ValueError: a file that cannot be read, is of no known kind, or holds no model under attack.
    """
    return [entry for path in paths for entry in _read(Path(path).expanduser())]


def _read(path: Path) -> list[Entry]:
    try:
        content = json.loads(path.read_text("utf-8"))
        readers = [reader for reader in READERS.values() if isinstance(content, Mapping) and reader.takes(content)]
        entries = readers[0].read(content, path) if readers else None
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"path={os.fspath(path)!r} cannot be read: {error}") from error
    if entries is None:
        raise ValueError(f"path={os.fspath(path)!r} must be of one of the kinds {', '.join(READERS)}")
    if not entries:
        raise ValueError(f"path={os.fspath(path)!r} holds no model under attack")
    return entries


def _of_report(content: Mapping[str, Any], path: Path) -> list[Entry]:
    found, dataset = [], content["dataset"].removesuffix(_ORDINARY)
    for model, report in read_report(path).items():
        warned = len(alarms({model: report}))
        for threat, names, correct in _judged(report):
            measured = Proportion.of(correct), Proportion.of(report.clean), None
            found.append(Entry(model, dataset, in_words(threat), *measured, names, warned, os.fspath(path)))
    return found


def _judged(report: ModelReport) -> list[tuple[Threat, tuple[str, ...], ExampleFlags]]:
    """Each threat model of a report, the attacks that it allows, and who withstands them all.

    Attacks that look for the nearest image at any distance have none.
    In a cascade an attack ran on what others had left, so that there is one threat model, that of all of them.
    """
    threats = {name: threat_of(record.parameters) for name, record in report.bounded.items()}
    distinct = list(dict.fromkeys(threats.values()))
    if report.survivors_only and distinct:
        distinct = [_largest(frozenset().union(*distinct))]
    judged = []
    for threat in distinct:
        names = tuple(name for name, own in threats.items() if _allows(threat, own))
        correct = np.all([report.clean, *(report.attacks[name].correct for name in names)], axis=0)
        judged.append((threat, names, correct))
    return judged


def _allows(threat: Threat, attack: Threat) -> bool:
    """Whether all that an attack may do is allowed: fewer attributes, or no noise, are allowed too."""
    return all(any(limits <= wider for wider in threat) for limits in attack)


def _largest(threat: Threat) -> Threat:
    return frozenset(own for own in threat if not any(own < other for other in threat))


def threat_of(parameters: Mapping[str, Any]) -> Threat:
    """What an attack may do, from its description in a report."""
    if isinstance(parameters.get("attacks"), list):
        return frozenset().union(*map(threat_of, parameters["attacks"]))
    if isinstance(parameters.get("attack"), Mapping):
        return threat_of(parameters["attack"])
    space = parameters.get("space", {name: parameters[name] for name in ("norm", "radius") if name in parameters})
    return frozenset({frozenset(_limits(space)) or frozenset({str(parameters.get("type", "?"))})})


def _limits(description: Any) -> list[str]:
    """The limits that stand in the description of a space."""
    if isinstance(description, list):
        return [limit for part in description for limit in _limits(part)]
    if not isinstance(description, Mapping):
        return []
    kind = description.get("type")
    if kind == "Attribute":
        low, high = (_number(description[bound]) for bound in ("low", "high"))
        return [f"{description['name']} {low} to {high}"]
    if "bound" in description:
        return [f"{_NORMS.get(str(kind), kind)} {_number(description['bound'])}"]
    if description.get("radius", "inf") != "inf":
        norm = description.get("norm", _NORMS.get(str(kind), kind))
        return [f"{norm} {_number(description['radius'])}"]
    inner = [limit for part in description.values() for limit in _limits(part)]
    return inner or ([] if kind is None else [str(kind)])


def _number(value: Any) -> str:
    return fewest_digits(value) if isinstance(value, int | float) else str(value)


def in_words(threat: Threat) -> str:
    """A threat model as a heading: `linf 0.1 and rotation -20 to 20`."""
    return " or ".join(sorted(" and ".join(sorted(limits)) for limits in threat))


def _of_card(content: Mapping[str, Any], path: Path) -> list[Entry]:
    threat = f"{content['norm']} {_number(content['radius'])}"
    robust, clean = (Proportion(content[share]["correct"], content[share]["total"]) for share in ("robust", "clean"))
    version = version_in_words(content["version"], content.get("give_up_after"))
    tried = f"AutoAttack {version} ({', '.join(part['name'] for part in content['parts'])})"
    entry = Entry(
        content["model"] or path.parent.name,
        content["data"] or "data without a name",
        threat,
        robust,
        clean,
        content["claimed"],
        (tried,),
        len(content["warnings"]),
        os.fspath(path),
    )
    return [entry]


READERS = {
    "report.json": Reader(lambda content: "models" in content and "survivors_only" in content, _of_report),
    "card.json of AutoAttack": Reader(lambda content: content.get("attack") == "autoattack", _of_card),
}
"""The kinds of files that hold entries; another one is one more reader."""
