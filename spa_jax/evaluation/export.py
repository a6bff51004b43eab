"""Adversarial images and the variables that made them, stored as one .npz file."""

import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from spa_jax.attacks.base import PureAttack
from spa_jax.data.types import Examples
from spa_jax.evaluation.changes import attack_distances, attribute_spaces, moves_noise
from spa_jax.evaluation.judging import judge, run_attack
from spa_jax.evaluation.sweep import DeviceBatch, Progress, make_sweep, stream
from spa_jax.evaluation.universal import UniversalRecord, evaluate_universal
from spa_jax.types import Flags, Images, Key, Victim
from spa_jax.validation import require_count


def export_attack(
    victim: Victim,
    split: Examples,
    attack: PureAttack,
    path: str | os.PathLike,
    *,
    key: Key,
    batch_size: int,
    mesh: Mesh | None = None,
    levels: int | None = None,
    on_batch: Progress | None = None,
) -> dict[str, np.ndarray]:
    """Attack every example of a split and store what was found.

    The file holds `x` float32 [n, h, w, c] in [0, 1], `label`, `index` (in the split), `value` and `success` [n], each
    variable as `variables/NAME`, and how far each image was moved as `distance/NAME` (see `attack_distances`). Of an
    attack by attributes and noise it also holds the edited images A(x, a) without the noise, as `edited/x`, and whether
    these alone fool the victim, as `edited/success`. It is written whole or not at all.

    `success` is not the attack's own word: the victim judges each stored image anew, with fresh keys, and fails where
    its logits are not finite. `value` is the attack's loss as it was in the search.

    Args:
        victim: any function from images to logits, or `spa_jax.randomized(f)`.
        split: the examples.
        attack: with per-example variables.
        path: ends in .npz; its directory is made.
        key: of the whole export.
        batch_size: examples at once over all devices.
        mesh: default: all devices.
        levels: as for `evaluate`: 255 stores and judges images whose pixels an 8-bit file holds exactly.
        on_batch: called with the progress after each batch.

    Returns:
        What was stored.

    Raises:
        ValueError: the path does not end in .npz, or an input breaks the attack's rules.
        OSError: the file cannot be written.
    """
    if levels is not None:
        require_count("levels", levels)
    path = _prepared(path)
    sweep = make_sweep(split, batch_size, mesh, on_batch)
    victim = sweep.place(victim, [attack])
    predict = sweep.predict(victim)

    def fools(purpose: str, batch: DeviceBatch, images: Images) -> Flags:
        verdict = judge(predict, stream(key, purpose), batch.index, images, batch.labels)
        return verdict.inside & ~(verdict.correct & verdict.finite)

    def run(batch: DeviceBatch) -> Any:
        found, edited = run_attack(attack, victim, key, batch, levels)
        arrays = {"x": found.x, "variables": found.variables, "value": found.value}
        arrays |= {"label": batch.labels, "index": batch.index, "success": fools("judge", batch, found.x)}
        arrays["distance"] = attack_distances(found, batch.images, edited)
        if attribute_spaces(attack) and moves_noise(attack):
            arrays["edited"] = {"x": edited, "success": fools("judge edited", batch, edited)}
        return arrays

    arrays = _named(sweep.run("attack", run, np.arange(len(split))))
    if jax.process_index() == 0:
        _write(path, arrays)
    return arrays


def export_universal(
    victim: Victim,
    crafting: Examples,
    split: Examples,
    attack: PureAttack,
    path: str | os.PathLike,
    *,
    key: Key,
    batch_size: int,
    num_epochs: int = 1,
    target: int | None = None,
    mesh: Mesh | None = None,
    on_batch: Progress | None = None,
) -> UniversalRecord:
    """Craft one universal perturbation on a split, measure it on another, and store it.

    The file holds the perturbation alone, each variable as `variables/NAME` (`variables/noise` where there is nothing
    else), and of the measured split `label`, `clean` (the victim's answers to the images as they are) and `answer`
    [n], -1 where one is not finite; `target` where there is one. `attack.apply(variables, ...)` makes the images. It
    is written whole or not at all.

    Args:
        victim: any function from images to logits, or `spa_jax.randomized(f)`.
        crafting, split: the images to craft from, and to measure on.
        attack: with shared variables.
        path: ends in .npz; its directory is made.
        key, batch_size, num_epochs, target, mesh, on_batch: as for `evaluate_universal`.

    Returns:
        What was measured.

    Raises:
        ValueError: the path does not end in .npz, or an input breaks the rules of `evaluate_universal`.
        OSError: the file cannot be written.
    """
    path = _prepared(path)
    targets = None if target is None else {"attack": (target,)}
    common: dict[str, Any] = {"num_epochs": num_epochs, "mesh": mesh, "on_batch": on_batch, "targets": targets}
    attacks = {"attack": attack}
    found = evaluate_universal(victim, crafting, split, attacks, key=key, batch_size=batch_size, **common)
    (record,) = found["attack"]
    variables = record.variables if isinstance(record.variables, dict) else {"noise": record.variables}
    arrays = {"variables": variables, "label": record.labels, "clean": record.clean, "answer": record.answers}
    if jax.process_index() == 0:
        _write(path, _named(arrays | ({} if target is None else {"target": np.int32(target)})))
    return record


def _prepared(path: str | os.PathLike) -> Path:
    """The path of the file, whose directory is there."""
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path={os.fspath(path)!r} must end in .npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _named(tree: Any) -> dict[str, np.ndarray]:
    """The tree's arrays by their path, such as `variables/noise`."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in flat}


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as temporary:
        try:
            np.savez_compressed(temporary, allow_pickle=False, **arrays)
        except BaseException:
            os.unlink(temporary.name)
            raise
    os.replace(temporary.name, path)
