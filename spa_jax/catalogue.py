"""Attacks by name, from plain data, and what such an attack moves."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from spa_jax import spaces
from spa_jax.attacks import apgd_ce, apgd_dlr, attribute_attack, cw, fgsm, mi_fgsm, pgd
from spa_jax.attributes import EDITS
from spa_jax.combinators import in_chunks, inside, restarts, with_fields
from spa_jax.engine import PureAttack
from spa_jax.semantic import spa

ATTACKS: Mapping[str, Callable[..., PureAttack]] = {
    "fgsm": fgsm,
    "pgd": pgd,
    "mi_fgsm": mi_fgsm,
    "apgd_ce": apgd_ce,
    "apgd_dlr": apgd_dlr,
    "cw": cw,
    "attribute": attribute_attack,
    "spa": spa,
}
"""The presets that a config may name: `{"name": "pgd", "radius": 8/255, "num_steps": 10, "restarts": 5}`."""


_COMBINED: Mapping[str, Any] = {"restarts": 1, "at_once": 1, "chunk_size": None}


def attack_from_config(spec: Mapping[str, Any]) -> PureAttack:
    """An attack from plain data: a preset's name and arguments.

    Every preset also takes `restarts`, `at_once` (as in `restarts`) and `chunk_size` (as `size` in `in_chunks`).
    Attacks built here run on networks of `spa_jax.models`, whose convolutions are fast in a loop: nothing is unrolled.

    Raises:
        ConfigError: an unknown name or key, or a wrong type, named with the valid ones.
        ValueError: a number out of range.
    """
    from spa_jax.configuration import build

    options = dict(spec)
    repeats, at_once, chunk_size = (options.pop(*entry) for entry in _COMBINED.items())
    attack = build(ATTACKS, options, "attack")
    if any(field.name == "unroll" for field in dataclasses.fields(attack)):
        attack = with_fields(attack, unroll=1)
    attack = restarts(attack, repeats, at_once)
    return attack if chunk_size is None else in_chunks(attack, chunk_size)


def named_attributes(attack: PureAttack) -> dict[str, spaces.Attribute]:
    """The attributes that an attack moves by a named edit, inside combinators too."""
    names = {edit.function: name for name, edit in EDITS.items()}
    found: dict[str, spaces.Attribute] = {}

    def look(attack: Any) -> Any:
        lifted = getattr(attack, "space", None)
        space = lifted.space if lifted else None
        members = space.spaces if isinstance(space, spaces.Chain) else (space,)
        attributes = [member for member in members if isinstance(member, spaces.Attribute)]
        found.update({names[member.edit]: member for member in attributes if member.edit in names})
        return attack

    inside(attack, look)
    return found
