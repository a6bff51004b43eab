"""The result of AutoAttack on one model as plain data: one card for people and for programs."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spa_jax.evaluation.contents import Alarm, Section
from spa_jax.evaluation.files import file_name, write_files
from spa_jax.evaluation.records import Check, Proportion

FORMAT = 1
_WORDS = """\
The attacks of AutoAttack one after the other, each on the images that those before it have left. The images may be
fewer than those of the other attacks."""


@dataclasses.dataclass(frozen=True)
class PartRecord:
    """One attack of a cascade.

    Attributes:
        name: of the attack.
        attacked: how many images it was given, of those that the attacks before it have left.
        broken: how many of these it broke.
        seconds: wall time, compilation included.
        steps: that an image takes which stands to the end.
        nonfinite: how many of the broken ones are so because an image or an answer was not finite.
        invalid: how many images it returned that were not in [0, 1]; these are not successes.
        spared: how many images it was not given, since it had given up.
    """

    name: str
    attacked: int
    broken: int
    seconds: float
    steps: int
    nonfinite: int = 0
    invalid: int = 0
    spared: int = 0

    @property
    def most_passes(self) -> int:
        """Steps over all images, if none had been broken before its last step: a bound of the work."""
        return self.attacked * self.steps


@dataclasses.dataclass(frozen=True)
class RobustnessCard:
    """What AutoAttack has found of one model; see `spa_jax.evaluation.autoattack`.

    Attributes:
        model, data: names, as they were given.
        norm, radius, version, loss, seed: of the attack.
        clean: the accuracy on the images as they are.
        robust: the accuracy under all attacks together, with its interval over the images.
        parts: the attacks in their order.
        checks: signs that the number is not to be believed; those that did not pass are warnings.
        claimed: the accuracy that was claimed, in [0, 1], or None.
        versions: of the libraries.
        give_up_after: images in a row that withstand an attack before it gives up, or None.
    """

    model: str
    data: str
    norm: str
    radius: float
    version: str
    loss: str
    seed: int
    clean: Proportion
    robust: Proportion
    parts: Sequence[PartRecord]
    checks: Sequence[Check]
    claimed: float | None
    versions: Mapping[str, str]
    give_up_after: int | None = None

    @property
    def warnings(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]

    @property
    def overclaimed(self) -> bool:
        """Whether the claimed accuracy lies above the interval of what was measured."""
        return self.claimed is not None and self.claimed > self.robust.high

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        plain = ("model", "data", "norm", "radius", "version", "loss", "seed", "give_up_after")
        standing, parts = self.clean.correct, []
        for part in self.parts:
            standing -= part.broken
            parts.append(dataclasses.asdict(part) | {"standing": standing, "most_passes": part.most_passes})
        return {
            "format": FORMAT,
            "attack": "autoattack",
            **{name: getattr(self, name) for name in plain},
            "images": self.robust.total,
            "clean": self.clean.as_data(),
            "robust": self.robust.as_data(),
            "claimed": self.claimed,
            "overclaimed": self.overclaimed,
            "parts": parts,
            "seconds": sum(part.seconds for part in self.parts),
            "warnings": [
                {"check": w.name, "cause": w.cause, "seen": w.message, "advice": w.advice} for w in self.warnings
            ],
            "versions": dict(self.versions),
        }

    def as_json(self) -> str:
        """The card as a file holds it."""
        return json.dumps(self.as_data(), indent=2) + "\n"

    def __str__(self) -> str:
        """A few lines for a terminal."""
        lines = [
            f"{self.model or 'model'} on {self.robust.total} images of {self.data or 'a split'}, "
            f"AutoAttack {version_in_words(self.version, self.give_up_after)}, {self.norm} {self.radius:g}",
            f"  clean     {self.clean}",
        ]
        standing = self.clean.correct
        for part in self.parts:
            standing -= part.broken
            share = Proportion(standing, self.clean.total)
            of = f"the nearest {part.attacked} of {part.attacked + part.spared}" if part.spared else part.attacked
            lines.append(f"  {part.name:<10}{share}  broke {part.broken} of {of} in {part.seconds:.1f} s")
        lines.append(f"  robust    {self.robust}" + ("" if self.claimed is None else f", claimed {self.claimed:.1%}"))
        if self.overclaimed:
            lines.append("  the claimed accuracy lies above the interval of what was measured")
        return "\n".join(lines + [f"  warning: {w.cause}: {w.message}" for w in self.warnings])


def version_in_words(version: str, give_up_after: int | None) -> str:
    """What is to be written beside a number: one whose attacks gave up is not AutoAttack's own."""
    return version + ("" if give_up_after is None else f", giving up after {give_up_after} images")


def write_cards(cards: Mapping[str, RobustnessCard], directory: Path) -> None:
    """Write a card for each model into `autoattack/`.

    Args:
        cards: by model.
        directory: of the report.

    Raises:
        ValueError: it cannot be written.
    """
    write_files(
        directory / "autoattack", {f"{file_name(name)}.json": c.as_json().encode() for name, c in cards.items()}
    )


def cards_section(cards: Mapping[str, RobustnessCard]) -> Section:
    """The cards as a part of a report; their checks that did not pass, and claims above the interval, are alarms."""
    header = ("model", "attack", "images", "clean", "robust", "claimed", "broken by")
    found = [alarm for name, card in cards.items() for alarm in _alarms(name, card)]
    rows = [_row(name, card) for name, card in cards.items()]
    return Section("autoattack", "AutoAttack", _WORDS, header, rows, ("attack", "broken by"), found)


def _row(name: str, card: RobustnessCard) -> tuple[str | Proportion, ...]:
    broken = ", ".join(f"{part.name} {part.broken}" for part in card.parts)
    claimed = "" if card.claimed is None else f"{100 * card.claimed:.1f} %"
    attack = f"{version_in_words(card.version, card.give_up_after)}, {card.norm} {card.radius:g}"
    return name, attack, f"{card.robust.total:,}", card.clean, card.robust, claimed, broken


def _alarms(name: str, card: RobustnessCard) -> Iterator[Alarm]:
    for check in card.warnings:
        yield Alarm(name, f"AutoAttack, {check.name}", check.cause, check.message, check.advice)
    if card.claimed is not None and card.overclaimed:
        seen = f"{100 * card.claimed:.1f} % is claimed, and {card.robust} measured"
        advice = "find out by which attack, on which images and within which ball it was measured"
        yield Alarm(name, "AutoAttack, claimed", "the claimed accuracy lies above the interval", seen, advice)
