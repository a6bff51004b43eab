"""AutoAttack on a whole split, in parts that can be interrupted, with one card as its result."""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from spa_jax.attacks import PureAttack, autoattack_parts
from spa_jax.attacks.minimal_norm import DISTANCES
from spa_jax.attacks.survivors import SMALLEST_BATCH, Rows
from spa_jax.data.types import Examples
from spa_jax.errors import suggest
from spa_jax.evaluation.card import PartRecord, RobustnessCard
from spa_jax.evaluation.files import file_name, write_files
from spa_jax.evaluation.judging import Verdict, classify_clean, judge_found
from spa_jax.evaluation.records import Check, ExampleFlags, Proportion
from spa_jax.evaluation.report import library_versions
from spa_jax.evaluation.sanity import Ball, check_victim, climb
from spa_jax.evaluation.sweep import DeviceBatch, Progress, Sweep, example_keys, make_sweep, stream
from spa_jax.losses import margin
from spa_jax.parallel import from_process_0
from spa_jax.types import Images, Key, Labels, Predict, Scalar, Victim
from spa_jax.validation import require_count, require_number
from spa_jax.victims.tracing import is_randomized

_FEWEST_CLASSES = 4
_QUERIES = "Square"
_MORE_BY_QUERIES = 0.002
"""AutoAttack's: if Square breaks more than this share of the images after the gradients, they may be masked."""
_ROUNDING = 1e-5
_VICTIM = "victim.npz"
_SAME = 1e-4
"""What differs by less in a fingerprint is rounding."""

_Margins: TypeAlias = Float[np.ndarray, " n"]
_Fingerprint: TypeAlias = Mapping[str, np.ndarray]
"""What a victim makes of the first batch, by name and on scales on which rounding is far below 1e-4."""


def autoattack(
    victim: Victim,
    split: Examples,
    radius: Scalar,
    *,
    norm: str = "linf",
    version: str = "standard",
    parts: Sequence[str] | None = None,
    give_up_after: int | None = None,
    seed: int = 0,
    batch_size: int = 500,
    workdir: str | os.PathLike | None = None,
    model: str = "",
    data: str = "",
    claimed: float | None = None,
    sanity: bool = True,
    mesh: Mesh | None = None,
    on_batch: Progress | None = None,
) -> RobustnessCard:
    """The robust accuracy under AutoAttack (Croce & Hein 2020, 2021), every attack on what those before it have left.

    The victim classifies each attacked image anew. Every draw is keyed by the seed, the attack's name and the example's
    index, so that batch size, devices and an interruption do not matter, apart from float rounding. A victim of fewer
    than 4 classes is attacked by the margin where DLR needs more.

    With a `workdir` what is known is written after every batch, each file whole or not at all, and a call with the same
    settings, images and victim goes on from there. The card is written beside it, as `card.json`. Images and victim are
    known again by who is right clean, and up to rounding by the logits and gradients at the images of the first batch.

    Checks that look for signs of a false accuracy: those of `sanity_checks`, for the version "rand" without
    `deterministic`; `randomized`, a victim that draws under another version; and `queries`, Square breaks more than
    0.2 % of all images after the gradient attacks.

    Args:
        victim: any function from images to logits, or `spa_jax.randomized(f)`.
        split: the examples.
        radius: of the ball, on the [0, 1] scale.
        norm: "linf", "l2" or "l1".
        version: "standard", "plus" or "rand", see `spa_jax.autoattack`.
        parts: names of the attacks that run, in this order. Default: all of the version, in the published order.
        give_up_after: images in a row that withstand an attack before it ends; every attack but the first then begins
            with those that came nearest to being misclassified. What it never looked at is taken to stand. Not
            AutoAttack's; 64 is our choice for a quick look. None: no attack gives up.
        seed: of all draws.
        batch_size: examples at once over all devices, at most; what an attack is given is dealt out evenly to batches.
        workdir: where to keep what is known; None: nothing is written.
        model, data: names for the card.
        claimed: the robust accuracy that is claimed, in [0, 1], for the card.
        sanity: whether the checks of `sanity_checks` run.
        mesh: the devices. Default: all of them.
        on_batch: called with the attack's name, examples done and examples in all.

    Raises:
        ValueError: a number out of range, an unknown norm, version or part, or as `evaluate`.
    """
    if give_up_after is not None:
        require_count("give_up_after", give_up_after)
    if claimed is not None:
        require_number("claimed", claimed, "an accuracy in [0, 1]", lambda share: 0 <= share <= 1)
    chosen_parts(autoattack_parts(radius, norm, version), parts)
    sweep = make_sweep(split, batch_size, mesh)
    classes = sweep.check_labels(sweep.place(victim), split.take(np.arange(1))["label"])
    loss = "dlr" if classes >= _FEWEST_CLASSES else "margin"
    attacks = chosen_parts(autoattack_parts(radius, norm, version, loss), parts)
    whole, key = sweep.place(victim), jax.random.key(seed)
    clean, labels, _ = classify_clean(whole, sweep, key, 1)
    settings: dict[str, Any] = {"norm": norm, "radius": float(radius), "version": version, "loss": loss, "seed": seed}
    settings["give_up_after"] = give_up_after
    versions = library_versions()
    ball, told = Ball(norm, float(radius)), settings | {"parts": list(attacks), "spa_jax": versions["spa_jax"]}
    kept = _Kept()
    if workdir is not None:
        images, fingerprint = _first_batch(whole, sweep, with_gradient=set(attacks) != {_QUERIES})
        kept = _Kept.within(Path(workdir).expanduser(), told, [clean, labels, images], fingerprint)
    cascade, records, standing = _Cascade(victim, sweep, key, ball, kept, on_batch), [], _Standing.all_of(clean)
    for number, (name, attack) in enumerate(attacks.items()):
        record, standing = cascade.run(name, attack, standing, give_up_after if number else None)
        records.append(record)
    checks = [*_own_checks(victim, version, records, len(split))]
    if sanity and float(radius) > 0:
        found = check_victim(whole, sweep, [ball], key)
        checks += [check for check in found if version != "rand" or check.name != "deterministic"]
    proportions: dict[str, Any] = {"clean": Proportion.of(clean), "robust": Proportion.of(standing.flags)}
    named: dict[str, Any] = {"model": model, "data": data, "claimed": claimed, "versions": versions}
    card = RobustnessCard(**settings, **proportions, **named, parts=records, checks=checks)
    kept.write("card.json", card.as_json().encode())
    return card


def chosen_parts(attacks: Mapping[str, PureAttack], names: Sequence[str] | None) -> dict[str, PureAttack]:
    """The named ones of the attacks in the order of the names, or all of them.

    Raises:
        ValueError: an unknown name, or none.
    """
    for name in names or ():
        if name not in attacks:
            raise ValueError(f"parts holds {name!r}, which is not an attack of this version{suggest(name, attacks)}")
    if names is not None and not names:
        raise ValueError("parts=() must name at least one attack")
    return {name: attacks[name] for name in names or attacks}


# --- one attack -----------------------------------------------------------------------------------------------------


class _Standing(NamedTuple):
    """Which examples stand after the attacks so far [n], and the largest margin at which each has been seen [n]."""

    flags: ExampleFlags
    margins: _Margins

    @classmethod
    def all_of(cls, flags: ExampleFlags) -> "_Standing":
        """Before the first attack."""
        return cls(flags, np.full(len(flags), -np.inf))

    def nearest_first(self) -> Rows:
        """Those that stand, by their margins."""
        rows = np.flatnonzero(self.flags)
        return rows[np.argsort(-self.margins[rows], kind="stable")]

    def after(self, known: "_Known") -> "_Standing":
        """With what an attack has found; what it has not seen stands."""
        return _Standing(self.flags & (known.left | ~known.seen), np.fmax(self.margins, known.margins))


@dataclasses.dataclass
class _Known:
    """What is known of one attack.

    Attributes:
        seen: [n], which examples it has attacked.
        left: [n], which of them it left.
        margins: [n], of the victim at the image that it returned, minus infinity where it has seen none.
        seconds, nonfinite, invalid: sums over batches.
    """

    seen: ExampleFlags
    left: ExampleFlags
    margins: _Margins
    seconds: float = 0.0
    nonfinite: int = 0
    invalid: int = 0

    @classmethod
    def nothing_of(cls, count: int) -> "_Known":
        """Of an attack that has not begun."""
        return cls(np.zeros(count, bool), np.zeros(count, bool), np.full(count, -np.inf))

    def withstood(self, rows: Rows) -> int:
        """How many of the last rows that it has seen stood, without one between them that fell."""
        left = self.left[rows[self.seen[rows]]]
        return len(left) - max((int(row) + 1 for row in np.flatnonzero(~left)), default=0)

    def add(self, rows: Any, verdict: Verdict, seconds: float) -> None:
        """What was found of a batch."""
        self.seen[rows] = True
        self.left[rows] = verdict.stands
        self.margins[rows] = verdict.margin
        self.seconds += seconds
        self.nonfinite += int(np.sum(~verdict.finite))
        self.invalid += int(np.sum(verdict.finite & ~verdict.inside))


class _Cascade(NamedTuple):
    """What all attacks of one evaluation share; the victim is placed for each of them."""

    victim: Victim
    sweep: Sweep
    key: Key
    ball: Ball
    kept: "_Kept"
    on_batch: Progress | None

    def run(
        self, name: str, attack: PureAttack, standing: _Standing, give_up_after: int | None
    ) -> tuple[PartRecord, _Standing]:
        """The attack on what stands, batch by batch, until all is seen or it gives up; what stands after it."""
        known, total = self.kept.read(name, len(standing.flags)), int(standing.flags.sum())
        rows, patience, size = np.flatnonzero(standing.flags), total, even_batch(total, self.sweep)
        if give_up_after is not None:
            rows, patience, devices = standing.nearest_first(), give_up_after, self.sweep.mesh.size
            size = min(size, devices * -(-patience // devices))
        sweep = dataclasses.replace(self.sweep, batch_size=size)
        victim = sweep.place(self.victim, [attack])
        while known.withstood(rows) < patience and len(batch := rows[~known.seen[rows]][:size]):
            started = time.perf_counter()
            verdict = self._judged(name, attack, victim, sweep, batch)
            known.add(batch, verdict, time.perf_counter() - started)
            self.kept.save(name, known)
            if self.on_batch:
                self.on_batch(name, int(known.seen[rows].sum()), total)
        seen, broken = int(known.seen[rows].sum()), int((known.seen & ~known.left)[rows].sum())
        sums = known.seconds, attack.num_steps, known.nonfinite, known.invalid  # type: ignore[attr-defined]
        return PartRecord(name, seen, broken, *sums, spared=total - seen), standing.after(known)

    def _judged(self, name: str, attack: PureAttack, victim: Victim, sweep: Sweep, rows: Any) -> Verdict:
        """The victim's own answers to the attacked images, as `evaluate` has them."""
        attack_key, judge_key = stream(self.key, "attack", name), stream(self.key, "judge", name)
        predict = sweep.predict(victim)

        def attacked(batch: DeviceBatch) -> Verdict:
            found = attack(example_keys(attack_key, batch.index), victim, batch.images, batch.labels)
            verdict = judge_found(predict, judge_key, batch, found)
            near = DISTANCES[self.ball.norm](found.x, batch.images) <= self.ball.radius * (1 + _ROUNDING) + _ROUNDING
            return verdict._replace(inside=verdict.inside & near)

        return sweep.run(name, attacked, rows)


def even_batch(total: int, sweep: Sweep) -> int:
    """How many examples at a time make batches of one size, which is compiled once, with little padding.

    The size is at most that of the sweep, and a multiple of about an eighth of itself, so that sizes recur.
    """
    share = max(SMALLEST_BATCH, -(-total // max(1, -(-total // sweep.batch_size))))
    eighth = 2 ** max(0, (share - 1).bit_length() - 4)
    unit = sweep.mesh.size * -(-eighth // sweep.mesh.size)
    return min(sweep.batch_size, unit * -(-share // unit))


# --- what is kept ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Kept:
    """The files of one evaluation: what is known of each attack, and the card. Without a directory there are none."""

    directory: Path | None = None

    @classmethod
    def within(
        cls, workdir: Path, settings: Mapping[str, Any], arrays: Sequence[np.ndarray], fingerprint: _Fingerprint
    ) -> "_Kept":
        """In a directory for each evaluation: settings and `arrays` tell it from others, and the victim's fingerprint.

        The fingerprint is compared with that of the directory up to rounding; another victim has another directory.
        Process 0 looks for all.
        """
        told = [json.dumps(settings, sort_keys=True).encode(), *(np.ascontiguousarray(array) for array in arrays)]
        digest = hashlib.sha256(b"".join(map(bytes, told))).hexdigest()[:12]
        name = file_name(f"{settings['norm']}_{settings['radius']:g}_{settings['version']}_{digest}")

        def directory(number: int) -> Path:
            return workdir / (name if number == 1 else f"{name}_{number}")

        fitting = (number for number in itertools.count(1) if _is_of(directory(number) / _VICTIM, fingerprint))
        chosen = directory(int(from_process_0(np.array(next(fitting)))))
        kept = cls(chosen)
        kept.write("settings.json", json.dumps(settings, indent=2).encode())
        if not (chosen / _VICTIM).exists():
            kept._write_arrays(_VICTIM, fingerprint)
        return kept

    def write(self, name: str, content: bytes) -> None:
        """One file, whole or not at all."""
        if self.directory is not None and jax.process_index() == 0:
            write_files(self.directory, {name: content})

    def save(self, name: str, known: _Known) -> None:
        """What is known of an attack."""
        self._write_arrays(_npz(name), dataclasses.asdict(known))

    def _write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        self.write(name, buffer.getvalue())

    def read(self, name: str, count: int) -> _Known:
        """What was known when this evaluation was interrupted, or nothing."""
        if self.directory is None or not (path := self.directory / _npz(name)).exists():
            return _Known.nothing_of(count)
        with np.load(path) as saved:
            sums = float(saved["seconds"]), int(saved["nonfinite"]), int(saved["invalid"])
            return _Known(saved["seen"], saved["left"], saved["margins"], *sums)


def _npz(name: str) -> str:
    return f"{file_name(name)}.npz"


def _first_batch(victim: Victim, sweep: Sweep, with_gradient: bool) -> tuple[Any, _Fingerprint]:
    """The images of the first batch, and what the victim makes of them.

    Victims that differ in what they hide from gradients alone have the same logits.
    """
    predict = sweep.predict(victim)

    def look(batch: DeviceBatch) -> Any:
        return batch.images, _look(predict, batch.index, batch.images, batch.labels, with_gradient)

    return sweep.run("clean", look, np.arange(min(sweep.batch_size, len(sweep.split))))


@jax.jit(static_argnames="with_gradient")
def _look(predict: Predict, index: Any, images: Images, labels: Labels, with_gradient: bool) -> dict[str, Any]:
    """Logits in units of their typical size, and of the margin's gradient the size and a random projection."""
    keys = example_keys(jax.random.key(0), index)

    gradient: Any = None
    if with_gradient:
        _, logits, gradient = climb(margin, predict, keys, images, labels)
    else:
        logits = predict(keys, images)
    logits = logits.astype(jnp.float32)
    typical = jnp.median(jnp.abs(logits), axis=-1, keepdims=True)
    found = {"logits": logits / jnp.where(typical > 0, typical, 1), "typical": jnp.log(typical)}
    if gradient is None:
        return found
    gradient = gradient.astype(jnp.float32).reshape(len(images), -1)
    size = jnp.sqrt(jnp.sum(gradient**2, axis=-1))
    direction = jax.random.normal(jax.random.key(1), gradient.shape[1:], jnp.float32)
    projected = gradient @ direction / jnp.where(size > 0, size, 1)
    return found | {"gradient": jnp.log(size), "projected": projected}


def _is_of(path: Path, fingerprint: _Fingerprint) -> bool:
    """Whether a file holds the same fingerprint up to rounding, or does not exist."""
    if not path.exists():
        return True
    with np.load(path) as saved:
        return set(saved) == set(fingerprint) and all(
            saved[name].shape == own.shape and np.allclose(saved[name], own, rtol=_SAME, atol=_SAME, equal_nan=True)
            for name, own in fingerprint.items()
        )


# --- checks ---------------------------------------------------------------------------------------------------------


def _own_checks(victim: Victim, version: str, records: Sequence[PartRecord], total: int) -> Iterator[Check]:
    draws = is_randomized(victim) and version != "rand"
    yield Check(
        "randomized",
        not draws,
        f"version={version!r} on a victim that {'draws at random' if is_randomized(victim) else 'draws nothing'}",
        "take version='rand', which follows the mean gradient over draws",
        {},
        "single draws decide" if draws else "",
    )
    first = next((i for i, part in enumerate(records) if part.name == _QUERIES), None)
    if not first:
        return
    broken, before = records[first].broken, ", ".join(part.name for part in records[:first])
    masked = broken > _MORE_BY_QUERIES * total
    yield Check(
        "queries",
        not masked,
        f"Square, which takes no gradient, broke {broken} of {records[first].attacked} images that {before} left",
        "gradients do not lead to what queries find: look for operations that hide them, and attack through or around "
        "them (`crafted_on`, `straight_through`, `eot`)",
        {"broken": float(broken), "share": broken / total},
        "gradients are masked" if masked else "",
    )
