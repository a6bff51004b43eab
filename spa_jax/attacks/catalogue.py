"""Attacks by name, from plain data."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from spa_jax.attacks.base import PureAttack
from spa_jax.attacks.carlini_wagner import cw
from spa_jax.attacks.cascade import autoattack
from spa_jax.attacks.combinators import in_chunks, restarts, worst_of
from spa_jax.attacks.composite import caa
from spa_jax.attacks.crafted import crafted_on
from spa_jax.attacks.deepfool import deepfool
from spa_jax.attacks.fab import fab, fab_t
from spa_jax.attacks.fast_minimum_norm import ddn, fmn
from spa_jax.attacks.gradient import apgd_ce, apgd_dlr, apgd_t, fgsm, mi_fgsm, pgd, spat
from spa_jax.attacks.label_only import random_attack, rays
from spa_jax.attacks.query import square
from spa_jax.attacks.spa import attribute_attack, noise_attack, spa
from spa_jax.attacks.spatial import stadv
from spa_jax.attacks.universal import cb_uap, deepfool_uap, uap
from spa_jax.configuration import build, check_keys, check_spec, named
from spa_jax.errors import ConfigError, shown, suggest
from spa_jax.spaces.attribute import attribute
from spa_jax.spaces.generated import generated_noise
from spa_jax.types import Victim
from spa_jax.victims.catalogue import check_victim

ATTACKS: Mapping[str, Callable[..., PureAttack]] = {
    "fgsm": fgsm,
    "pgd": pgd,
    "spat": spat,
    "mi_fgsm": mi_fgsm,
    "apgd_ce": apgd_ce,
    "apgd_dlr": apgd_dlr,
    "apgd_t": apgd_t,
    "cw": cw,
    "square": square,
    "deepfool": deepfool,
    "ddn": ddn,
    "fmn": fmn,
    "fab": fab,
    "fab_t": fab_t,
    "rays": rays,
    "random": random_attack,
    "autoattack": autoattack,
    "attribute": attribute_attack,
    "noise": noise_attack,
    "spa": spa,
    "caa": caa,
    "stadv": stadv,
    "uap": uap,
    "cb_uap": cb_uap,
    "deepfool_uap": deepfool_uap,
}
"""The presets that a config may name: `{"name": "pgd", "radius": 8/255, "num_steps": 10, "restarts": 5}`."""


_GIVEN = ("model", "variables", "radius")
_COMBINED: Mapping[str, Any] = {"restarts": 1, "at_once": 1, "chunk_size": None, "levels": None, "draws": 1}


_OF_ATTACKS: Mapping[str, Mapping[str, Any]] = {
    "crafted_on": {"attack": str | Mapping, "victim": str | Mapping},
    "worst_of": {"attacks": tuple | list},
}
"""What is made of other attacks, by the keys that it has."""
_NAMES = {**ATTACKS, "crafted_on": crafted_on, "worst_of": worst_of}


def attack_from_config(
    spec: Mapping[str, Any],
    parts: Mapping[str, Any] | None = None,
    surrogate: Callable[[Any], Victim] | None = None,
) -> PureAttack:
    """An attack from plain data: a preset's name and arguments.

    Every preset also takes `restarts`, `at_once` (as in `restarts`), `chunk_size` (as `size` in `in_chunks`),
    `levels` (as in `PureAttack.rounded`: 255 for images that an 8-bit file can hold) and `draws` (as in
    `PureAttack.averaged`: how many draws of a randomised victim each step follows).

    Learned parts are named by `{"part": NAME}`: as an `edit`, or among the `attributes`, with their `low` and `high`
    and optionally the `names` of the manipulator's attributes to move; as `noise`, with options of `generated_noise`.

    Attacks are made of attacks by `{"name": "worst_of", "attacks": [...]}`, and by `{"name": "crafted_on",
    "attack": {...}, "victim": {...}}`, whose surrogate is a victim as `spa_jax.victims.victim_from_config` takes it.

    Args:
        spec: `{"name": "pgd", "radius": 8/255, ...}`.
        parts: the learned parts by name: manipulators, and functions from a radius to a space of generated noise.
        surrogate: from a victim of a config to the victim, for `crafted_on`.

    Raises:
        ConfigError: an unknown name or key, or a wrong type, named with the valid ones; a part that is not there.
        ValueError: a number out of range.
    """
    options = _with_parts(spec, parts or {})
    repeats, at_once, chunk_size, levels, draws = (options.pop(*entry) for entry in _COMBINED.items())
    attack = _of_attacks(options, parts, surrogate) or build(ATTACKS, options, "attack")
    attack = attack if draws == 1 else attack.averaged(draws)
    attack = restarts(attack if levels is None else attack.rounded(levels), repeats, at_once)
    return attack if chunk_size is None else in_chunks(attack, chunk_size)


def _of_attacks(options: Mapping[str, Any], parts: Any, surrogate: Any) -> PureAttack | None:
    if options.get("name") not in _OF_ATTACKS:
        return None
    _check_of_attacks(options, "attack")
    members = [attack_from_config(named(own), parts, surrogate) for own in _members(options)]
    if options["name"] == "worst_of":
        return worst_of(*members)
    if surrogate is None:
        raise ConfigError("attack.name='crafted_on' takes its surrogate from a run: it belongs to evaluation.attacks")
    return crafted_on(members[0], surrogate(options["victim"]))


def _check_of_attacks(options: Mapping[str, Any], path: str) -> None:
    check_keys(options, {"name": str, **_OF_ATTACKS[options["name"]]}, path)


def _members(spec: Mapping[str, Any]) -> list[Any]:
    """The attacks that one of `_OF_ATTACKS` is made of."""
    return list(spec["attacks"]) if spec["name"] == "worst_of" else [spec["attack"]]


def simple_specs(spec: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The presets that a checked attack is made of, or itself."""
    if spec["name"] not in _OF_ATTACKS:
        return [spec]
    return [simple for own in _members(spec) for simple in simple_specs(named(own))]


def surrogates(spec: Mapping[str, Any]) -> list[Any]:
    """The victims that a checked attack is crafted on."""
    if spec["name"] not in _OF_ATTACKS:
        return []
    own = [spec["victim"]] if spec["name"] == "crafted_on" else []
    return own + [victim for member in _members(spec) for victim in surrogates(named(member))]


def check_attack(spec: Mapping[str, Any], path: str = "attack") -> None:
    """Check an attack of a config before its learned parts are there: names and types, and without parts all of it.

    Args:
        spec: as for `attack_from_config`.
        path: where it stands, for messages.

    Raises:
        ConfigError: as `attack_from_config`, or a number out of range.
    """
    options = _with_parts(spec, None) if isinstance(spec, Mapping) else {}
    own = {key: value for key, value in options.items() if key not in _COMBINED}
    if own.get("name") in _OF_ATTACKS:
        _check_of_attacks(own, path)
        for member in _members(own):
            check_attack(named(member), f"{path}.{'attacks' if 'attacks' in own else 'attack'}")
        if "victim" in own:
            check_victim(own["victim"], f"{path}.victim")
        return
    check_spec(_NAMES, own or spec, "attack", path)
    if not part_names(spec):
        try:
            attack_from_config(spec)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error


def takes(spec: Mapping[str, Any], argument: str) -> bool:
    """Whether the preset that a checked attack names has an argument of that name."""
    return spec["name"] in ATTACKS and argument in inspect.signature(ATTACKS[spec["name"]]).parameters


def _with_parts(spec: Mapping[str, Any], parts: Mapping[str, Any] | None) -> dict[str, Any]:
    """The attack's arguments with the learned parts in the place of their names; without parts, with stand-ins."""
    if not isinstance(spec, Mapping):
        raise ConfigError(f"attack={shown(spec)} must be a mapping with a `name` and its arguments")
    options = dict(spec)
    if names_part(options.get("edit")):
        options["edit"] = _part(options["edit"], parts, "edit", ("names",))[0]
    if isinstance(attributes := options.get("attributes"), Mapping):
        options["attributes"] = {
            name: _learned_attribute(entry, parts, f"attributes.{name}") if names_part(entry) else entry
            for name, entry in attributes.items()
        }
    if isinstance(options.get("noise"), Mapping):
        noise, settings = _part(options["noise"], parts, "noise", None)
        check_spec({"noise": generated_noise}, {"name": "noise", **settings}, "noise", "attack.noise", _GIVEN)
        options["noise"] = functools.partial(noise, **settings)
    return options


def names_part(entry: Any) -> bool:
    """Whether an entry of a config names a learned part."""
    return isinstance(entry, Mapping) and "part" in entry


def part_names(spec: Any) -> set[str]:
    """The names of all learned parts that an attack, or any section of a config, uses."""
    if names_part(spec):
        return {spec["part"]}
    members = spec.values() if isinstance(spec, Mapping) else spec if isinstance(spec, list | tuple) else ()
    return set().union(*map(part_names, members))


def _learned_attribute(entry: Mapping[str, Any], parts: Mapping[str, Any] | None, path: str) -> Any:
    edit, box = _part(entry, parts, path, ("names", "low", "high"))
    return attribute(edit, **{name: tuple(bound) for name, bound in box.items()})


def _part(
    entry: Mapping[str, Any], parts: Mapping[str, Any] | None, path: str, valid: tuple[str, ...] | None
) -> tuple[Any, dict[str, Any]]:
    """The part that an entry names, reduced to the attributes it names, and the entry's other options."""
    options = dict(entry)
    name, names = options.pop("part", None), options.pop("names", None)
    if parts is not None and name not in parts:
        raise ConfigError(f"attack.{path}.part={name!r} is not a learned part of this run{suggest(name, parts)}")
    unknown = sorted(set(options) - set(options if valid is None else valid))
    if unknown:
        raise ConfigError(f"attack.{path}.{unknown[0]} is unknown{suggest(unknown[0], ('part', *(valid or ())))}")
    if parts is None:
        return _ABSENT, options
    return parts[name] if names is None else parts[name].only(*names), options


class _Absent:
    """In the place of a learned part that is not trained yet, where an attack is only checked; it is never called."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError("a part of an attack that was only checked")

    read = __call__


_ABSENT = _Absent()
