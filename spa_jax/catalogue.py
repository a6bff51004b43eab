"""Attacks by name, from plain data, and what such an attack moves."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from spa_jax import spaces
from spa_jax.attacks import apgd_ce, apgd_dlr, attribute_attack, cw, fgsm, mi_fgsm, noise_attack, pgd
from spa_jax.attributes import EDITS
from spa_jax.combinators import in_chunks, inside, restarts, with_fields
from spa_jax.engine import PureAttack
from spa_jax.errors import ConfigError, suggest
from spa_jax.semantic import spa

ATTACKS: Mapping[str, Callable[..., PureAttack]] = {
    "fgsm": fgsm,
    "pgd": pgd,
    "mi_fgsm": mi_fgsm,
    "apgd_ce": apgd_ce,
    "apgd_dlr": apgd_dlr,
    "cw": cw,
    "attribute": attribute_attack,
    "noise": noise_attack,
    "spa": spa,
}
"""The presets that a config may name: `{"name": "pgd", "radius": 8/255, "num_steps": 10, "restarts": 5}`."""


_COMBINED: Mapping[str, Any] = {"restarts": 1, "at_once": 1, "chunk_size": None}


def attack_from_config(spec: Mapping[str, Any], parts: Mapping[str, Any] | None = None) -> PureAttack:
    """An attack from plain data: a preset's name and arguments.

    Every preset also takes `restarts`, `at_once` (as in `restarts`) and `chunk_size` (as `size` in `in_chunks`).
    Attacks built here run on networks of `spa_jax.models`, whose convolutions are fast in a loop: nothing is unrolled.

    Learned parts are named by `{"part": NAME}`: as an `edit`, or among the `attributes`, with their `low` and `high`
    and optionally the `names` of the manipulator's attributes to move; as `noise`, with options of `generated_noise`.

    Args:
        spec: `{"name": "pgd", "radius": 8/255, ...}`.
        parts: the learned parts by name: manipulators, and functions from a radius to a space of generated noise.

    Raises:
        ConfigError: an unknown name or key, or a wrong type, named with the valid ones; a part that is not there.
        ValueError: a number out of range.
    """
    from spa_jax.configuration import build

    options = _with_parts(spec, parts or {})
    repeats, at_once, chunk_size = (options.pop(*entry) for entry in _COMBINED.items())
    attack = build(ATTACKS, options, "attack")
    if any(field.name == "unroll" for field in dataclasses.fields(attack)):
        attack = with_fields(attack, unroll=1)
    attack = restarts(attack, repeats, at_once)
    return attack if chunk_size is None else in_chunks(attack, chunk_size)


def _with_parts(spec: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """The attack's arguments with the learned parts in the place of their names."""
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
        options["noise"] = functools.partial(noise, **settings)
    return options


def names_part(entry: Any) -> bool:
    """Whether an entry of a config names a learned part."""
    return isinstance(entry, Mapping) and "part" in entry


def part_names(spec: Any) -> set[str]:
    """The names of all learned parts that an attack, or any piece of a config, asks for."""
    if names_part(spec):
        return {spec["part"]}
    members = spec.values() if isinstance(spec, Mapping) else spec if isinstance(spec, list | tuple) else ()
    return set().union(*map(part_names, members))


def _learned_attribute(entry: Mapping[str, Any], parts: Mapping[str, Any], path: str) -> spaces.Attribute:
    edit, box = _part(entry, parts, path, ("names", "low", "high"))
    return spaces.attribute(edit, **{name: tuple(bound) for name, bound in box.items()})


def _part(
    entry: Mapping[str, Any], parts: Mapping[str, Any], path: str, valid: tuple[str, ...] | None
) -> tuple[Any, dict[str, Any]]:
    """The part that an entry names, reduced to the attributes it names, and the entry's other options."""
    options = dict(entry)
    name, names = options.pop("part", None), options.pop("names", None)
    if name not in parts:
        raise ConfigError(f"attack.{path}.part={name!r} is no learned part of this run{suggest(name, parts)}")
    unknown = sorted(set(options) - set(options if valid is None else valid))
    if unknown:
        raise ConfigError(f"attack.{path}.{unknown[0]} is unknown{suggest(unknown[0], ('part', *(valid or ())))}")
    part = parts[name] if names is None else parts[name].only(*names)
    return part, options


def named_attributes(attack: PureAttack) -> dict[str, spaces.Attribute]:
    """The attributes that an attack moves by a named edit, inside combinators too."""
    names = {edit.function: name for name, edit in EDITS.items()}
    found: dict[str, spaces.Attribute] = {}

    def look(attack: Any) -> Any:
        lifted = getattr(attack, "space", None)
        space = lifted.space if lifted else None
        members = space.spaces if isinstance(space, spaces.Chain) else (space,)
        attributes = [member for member in members if isinstance(member, spaces.Attribute)]
        for member in attributes:
            function = getattr(member.edit, "func", None)
            if function in names:
                found[names[function]] = member
        return attack

    inside(attack, look)
    return found
