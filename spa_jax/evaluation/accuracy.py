"""Accuracy on clean and on attacked images of a whole split, with the signs that it is too good to be true."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from spa_jax.attacks import ATTACKS
from spa_jax.data.types import Examples
from spa_jax.errors import shown
from spa_jax.evaluation.judging import judge_all
from spa_jax.evaluation.records import ModelReport
from spa_jax.evaluation.sanity import above_clean, check_victim, noise_balls
from spa_jax.evaluation.sweep import AnyAttack, Progress, make_sweep
from spa_jax.parallel import replicate
from spa_jax.trees import as_pytree
from spa_jax.types import DistanceOfImages, Key, Victim
from spa_jax.validation import checked_keys, require_count, require_number

_DRAWS = 10
RESERVED_NAMES = ("clean", "worst_case")


def evaluate(
    victim: Victim,
    split: Examples,
    attacks: Mapping[str, AnyAttack],
    *,
    key: Key,
    batch_size: int,
    mesh: Mesh | None = None,
    survivors_only: bool = True,
    sanity: bool = True,
    levels: int | None = None,
    judge_draws: int = _DRAWS,
    examples_per_class: int = 0,
    perceptual: DistanceOfImages | None = None,
    on_batch: Progress | None = None,
) -> ModelReport:
    """Classify every example of a split as it is and under each attack, and check whether the result can be believed.

    The success that an attack reports is not used: the victim classifies each attacked image anew, with fresh keys. A
    finite image that is not in [0, 1] (to 1e-6) is not a success. An image that is not finite, logits with a NaN, and
    logits whose largest is infinite count as misclassified, also where the attack met them on its way. An example that
    is misclassified clean counts as wrong under every attack.

    Every random draw is keyed by `key`, the attack's name and the example's index in the split, so batch size, devices
    and the other attacks do not matter, apart from float rounding. The victim is prepared once for all batches. Models
    of one architecture whose weights are leaves (`spa_jax.classifier`) share the compiled programs.

    Where there are attacks, the result's `checks` are those of `sanity_checks` at the norm and radius of every noise
    that the attacks search, and its `findings` are the checks that did not pass, each with the cause it suspects. They
    look at 128 examples at most, rounded up to whole batches, and cost about 15 forward and backward passes over these,
    and 15 more for each different norm and radius, with 10 forward passes, in l-infinity 110; of a randomised victim
    twice as much. Of a randomised victim that is judged over several draws, `above_clean[NAME]` is one more for each
    attack: attacked, the images are not right more often than they are as they are, within two standard errors. Of a
    deterministic one this cannot be seen here, since an example that is misclassified clean counts as wrong.

    Args:
        victim: any function from images to logits, or `spa_jax.randomized(f)`.
        split: the examples.
        attacks: per-example attacks by name; they are called without targets.
        key: of the whole evaluation.
        batch_size: examples at once over all devices; rounded up to a multiple of their number. The victim is shown
            batches of this size only, the last one padded, so it may be one that takes no other.
        mesh: the devices. Default: all of them.
        survivors_only: True runs a cascade: each attack only on what all before it have left, which gives the worst
            case for the least work, and for each attack the worst case so far. False runs each attack on everything
            classified correctly clean, which gives its own accuracy too.
        sanity: whether the checks run.
        levels: 255 to judge attacked images as an 8-bit file stores them, with pixels rounded to multiples of 1 / 255;
            this may undo an attack that ends close to the boundary. None: as the attack returns them.
        judge_draws: how often a randomised victim classifies each image, with fresh keys each time. The first draw
            decides who is correct; `over_draws` of the result has the mean accuracy and who is right in all or in some
            draw. 10 is our choice; each costs a forward pass, where an attack costs many.
        examples_per_class: how many images that an attack fooled are kept of each class, the first in the split's
            order, with half as many survivors, those with the largest loss, for `report.html`; see
            `spa_jax.evaluation.gallery`. They come from the evaluation itself: nothing is attacked twice.
        perceptual: a further distance that the report tells of every attack that fooled, from the attacked images and
            the originals to [b], such as `spa_jax.perceptual.perceptual_distance(features)`.
        on_batch: called with what is running (the attack's name, "clean" at first, a check's at last), examples done
            and examples in all.

    Raises:
        ValueError: a broken rule, naming the value: empty split, an attack that is universal or called "clean" or
            "worst_case", labels out of range, images outside of [0, 1], a victim that returns no logits.
    """
    _check_inputs(split, attacks)
    key = checked_keys(key, len(split), shared=True)
    if levels is not None:
        require_count("levels", levels)
    judge_draws = require_count("judge_draws", judge_draws)
    require_number("examples_per_class", examples_per_class, "0 or larger", lambda count: count >= 0)
    sweep = make_sweep(split, batch_size, mesh, on_batch)
    victim = sweep.place(victim, attacks.values())
    measure = None if perceptual is None else replicate(as_pytree(perceptual), sweep.mesh)
    report = judge_all(victim, sweep, attacks, key, survivors_only, levels, judge_draws, examples_per_class, measure)
    if not (sanity and attacks):
        return report
    found = check_victim(victim, sweep, noise_balls(attacks.values()), key)
    return dataclasses.replace(report, checks=[*found, *above_clean(report)])


def _check_inputs(split: Any, attacks: Any) -> None:
    if not isinstance(split, Examples):
        kind = type(split).__name__
        raise ValueError(f"split={kind} must be dataset.test, or spa_jax.data.Split(images, labels)")
    if not isinstance(attacks, Mapping):
        raise ValueError(f"attacks={shown(attacks)} must be a mapping of names to attacks, as {{'pgd': pgd(8/255)}}")
    for name, attack in attacks.items():
        _check_attack(name, attack)


def _check_attack(name: str, attack: AnyAttack) -> None:
    if name in RESERVED_NAMES:
        raise ValueError(f"attacks hold the name {name!r}, which the report uses for itself")
    if not callable(attack):
        raise ValueError(f"attacks[{name!r}]={shown(attack)} must be an attack (key, victim, images, labels) -> Result")
    if attack in ATTACKS.values():
        raise ValueError(
            f"attacks[{name!r}]={shown(attack)} must be an attack: call it first, as {attack.__name__}(...)"
        )
    if getattr(attack, "shared", False):
        raise ValueError(
            f"attacks[{name!r}] shares its variables over all images: attacks are evaluated per example, not universal"
        )
