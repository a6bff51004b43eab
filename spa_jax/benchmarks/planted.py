"""Planted defences: what each claims, what attackers who know it leave, and which alarms it raises."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from spa_jax.attacks import apgd_ce, apgd_dlr, crafted_on, pgd, rays
from spa_jax.attacks.base import PureAttack
from spa_jax.attacks.cascade import autoattack_parts
from spa_jax.benchmarks.defences import DEFENCES, UNDEFENDED, Defence
from spa_jax.benchmarks.speed import Row
from spa_jax.benchmarks.strength import check_victims, train_victim
from spa_jax.configuration import check_keys
from spa_jax.data import arrays_of, load_dataset
from spa_jax.data.types import Split
from spa_jax.errors import ConfigError, suggest
from spa_jax.evaluation.accuracy import evaluate
from spa_jax.evaluation.cascade import autoattack, chosen_parts
from spa_jax.evaluation.records import Check, ModelReport, Proportion
from spa_jax.evaluation.sweep import evenly_spaced
from spa_jax.types import Count, Scalar, Victim
from spa_jax.validation import require_count
from spa_jax.victims import bypassed, eot
from spa_jax.victims.tracing import is_randomized

PLANTED_SCHEMA: Mapping[str, Any] = {
    "model": Mapping,
    "batch_size": int,
    "learning_rate": float,
    "victims": Mapping,
    "num_images": int,
    "defences": tuple | list,
    "queries": int,
    "parts": tuple | list,
}
"""Section `planted`: a victim has a `recipe`, `num_epochs` and the `radius` that it is attacked at.

`defences` are names of `DEFENCES`; `queries` of the search by labels; `parts` of the standard cascade, () for all.
"""
_CLAIMS = {"PGD-20": lambda radius: pgd(radius, 20), "APGD-CE": apgd_ce}
_DRAWS = 20
_STORED = 1000


def check_planted(section: Mapping[str, Any]) -> None:
    """Check the section `planted` of a config before anything is read or trained.

    Raises:
        ConfigError: an unknown or missing key or name.
        ValueError: a number out of range.
    """
    check_keys(section, PLANTED_SCHEMA, "config.planted")
    check_victims(section, "config.planted")
    for name in ("num_images", "queries"):
        require_count(name, section[name])
    for name in section["defences"]:
        if name not in DEFENCES:
            raise ConfigError(f"config.planted.defences: {name!r} is unknown{suggest(name, DEFENCES)}")
    for victim in section["victims"].values():
        chosen_parts(autoattack_parts(victim["radius"]), section["parts"] or None)


def compare_planted(section: Mapping[str, Any], data: Mapping[str, Any], seed: int) -> Iterator[Row]:
    """Train each network, and judge it as it is and behind each planted defence, on the same test images.

    Args:
        section: see `PLANTED_SCHEMA`.
        data: arguments of `load_dataset`.
        seed: of the training and of all attacks.

    Returns:
        One row for each network and defence, as `judge_defence` makes it.
    """
    dataset = load_dataset(**data)
    images, labels = arrays_of(evenly_spaced(dataset.test, section["num_images"]))
    stored = jnp.asarray(arrays_of(evenly_spaced(dataset.train, _STORED))[0])
    for name, spec in section["victims"].items():
        _, network = train_victim(section, spec, dataset, seed)
        for defence in ("undefended", *section["defences"]):
            planted = DEFENCES.get(defence, UNDEFENDED)
            options = {"queries": section["queries"], "parts": section["parts"], "seed": seed}
            row = judge_defence(planted, network, stored, Split(images, labels), spec["radius"], **options)
            jax.clear_caches()  # a process may map no more than 65,530 pieces of memory, which 15 defences exceed
            yield {"victim": name, "radius": spec["radius"], "images": len(labels), "defence": defence} | row


def judge_defence(
    defence: Defence,
    network: Victim,
    stored: Any,
    split: Split,
    radius: Scalar,
    *,
    queries: Count = 1000,
    parts: Sequence[str] = (),
    seed: int = 0,
) -> Row:
    """Judge a network behind a defence: its claims, the cascade, the truth at most, and the alarms.

    An attacker who knows the defence attacks the network without it (APGD-CE and APGD-DLR), steps straight through what
    stands before it, climbs the mean over 20 draws where it draws, or searches by labels alone; what is found is judged
    by the defended network. The numbers are our choice.

    Args:
        defence: the defence.
        network: a function from images to logits that draws nothing.
        stored: training images [n, h, w, c] that the defence may look at.
        split: the examples, judged in one batch.
        radius: of the l-infinity ball.
        queries: of the search by labels.
        parts: of the standard cascade; (): all.
        seed: of all draws.

    Returns:
        Accuracies in [0, 1]: `clean`; the claims `pgd_20` and `apgd_ce`; `cascade`, AutoAttack's, the version "rand"
        where the victim draws; `true_at_most`, on images that withstand all of these and the attacks that know the
        defence, of a victim that draws the mean over 10 draws under the attack that is worst for each image, or the
        cascade's if that is lower; `strongest`, which attack alone leaves least. `alarms`, the names of all checks that
        failed; `cause`, that of the check which ought to name what is wrong, else of the first alarm; `caught_by`:
        "alarm" where that check failed, "cascade" where the cascade's accuracy lies in the interval of the truth or
        below, both, or nothing.
    """
    victim = defence.plant(network, stored)
    attacks = {name: attack(radius) for name, attack in _CLAIMS.items()} | knowing(victim, network, radius, queries)
    options: dict[str, Any] = {"batch_size": len(split)}
    report = evaluate(victim, split, attacks, key=jax.random.key(seed), survivors_only=False, **options)
    version = "rand" if is_randomized(victim) else "standard"
    chosen = parts if parts and version == "standard" else None
    card = autoattack(victim, split, radius, version=version, parts=chosen, seed=seed, sanity=False, **options)
    alone = {name: share.value for name, share in report.accuracies.items() if name in attacks}
    alone["cascade"] = card.robust.value
    true = min(_left(report), card.robust.value)
    alarms = [*report.findings, *card.warnings]
    return {
        "clean": report.accuracies["clean"].value,
        "pgd_20": alone["PGD-20"],
        "apgd_ce": alone["APGD-CE"],
        "cascade": alone["cascade"],
        "true_at_most": true,
        "strongest": min(alone, key=alone.__getitem__),
        "alone": alone,
        "caught_by": _caught(defence, alarms, card.robust, true),
        "cause": _cause(defence, alarms),
        "alarms": [alarm.name for alarm in alarms],
    }


def knowing(victim: Victim, network: Victim, radius: Scalar, queries: Count) -> dict[str, PureAttack]:
    """The attacks, by name, of somebody who knows that `victim` is `network` behind a defence."""
    surrogates = {"straight through": bypassed(victim), "mean over draws": victim}
    if not is_randomized(victim):
        surrogates = {name: own for name, own in surrogates.items() if own is not victim}
    else:
        surrogates = {name: eot(own, _DRAWS) for name, own in surrogates.items()}
    return {
        "transfer": crafted_on(apgd_ce(radius), network),
        "transfer, DLR": crafted_on(apgd_dlr(radius), network),
        **{name: crafted_on(apgd_ce(radius), surrogate) for name, surrogate in surrogates.items()},
        "labels alone": rays(radius, queries),
    }


def _left(report: ModelReport) -> float:
    """The accuracy under the worst of all attacks for each image, over draws where there are several."""
    over_draws = report.over_draws.get("worst_case")
    return report.accuracies["worst_case"].value if over_draws is None else over_draws.mean


def _is_named(defence: Defence, alarm: Check) -> bool:
    return alarm.name.partition("[")[0] == defence.check


def _cause(defence: Defence, alarms: Sequence[Check]) -> str:
    """Of the check that ought to name it, else of the first alarm."""
    return next((alarm.cause for alarm in sorted(alarms, key=lambda alarm: not _is_named(defence, alarm))), "")


def _caught(defence: Defence, alarms: Sequence[Check], cascade: Proportion, true: float) -> str:
    is_broken = cascade.value <= Proportion(round(true * cascade.total), cascade.total).high
    caught = {"alarm": any(_is_named(defence, alarm) for alarm in alarms), "cascade": is_broken}
    return ", ".join(name for name, holds in caught.items() if holds)
