"""Victims by name, from plain data: classifiers, and the defences that stand before them."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from spa_jax.configuration import build, check_spec, named
from spa_jax.errors import ConfigError, shown, suggest
from spa_jax.types import Count, Victim
from spa_jax.victims.draws import eot, fixed_draw, majority_vote
from spa_jax.victims.transforms import TRANSFORMS, transform_from_config
from spa_jax.victims.wrappers import bypassed, purify
from spa_jax.victims.wrappers import straight_through as _straight_through

ATTACKED = "attacked"
"""In the place of a victim: the one that is attacked."""

_REFERENCES = ("model", "victim", "part")
_GIVEN = ("victim", "purifier")


def _purified(victim: Any, purifier: Any, straight_through: bool = False) -> Any:
    return purify(victim, _straight_through(purifier) if straight_through else purifier)


def _fixed(victim: Any, seed: Count = 0) -> Any:
    return fixed_draw(victim, jax.random.key(seed))


VICTIMS: Mapping[str, Callable[..., Any]] = {
    "purify": _purified,
    "eot": eot,
    "majority_vote": majority_vote,
    "fixed_draw": _fixed,
    "bypassed": bypassed,
}
"""What a config may make of a `victim`: `{"name": "eot", "victim": {"victim": "purified"}, "n": 20}`."""


def victim_from_config(
    spec: Any, known: Callable[[str, str | None], Victim], parts: Mapping[str, Any], path: str = "victim"
) -> Victim:
    """A victim from plain data.

    Args:
        spec: what it is made of: `{"model": NAME}`, a classifier of the config; `{"victim": NAME}`, another of its
            victims; `{"part": NAME}`, a classifier that is one of its parts; "attacked", the victim that an attack is
            made against; or a mapping with a `name` of `VICTIMS`, its `victim`, and its options. `purify` takes a
            `purifier`: a part, `{"part": NAME}`, with another `transform` than it was trained with or none, or a
            transform alone, `{"name": "rt2"}`; and `straight_through`, whether its gradient is the identity.
            `fixed_draw` takes a `seed`.
        known: from a kind of reference ("model", "victim" or "attacked") and a name to the victim.
        parts: the learned parts by name.
        path: where it stands, for messages.

    Raises:
        ConfigError: an unknown name or key, or a wrong type, named with the valid ones.
        ValueError: a number out of range.
    """
    check_victim(spec, path)
    spec = named(spec)
    if spec.get("name") == ATTACKED:
        return known(ATTACKED, None)
    if "name" not in spec:
        ((kind, name),) = spec.items()
        return parts[name] if kind == "part" else known(kind, name)
    given = {"victim": victim_from_config(spec["victim"], known, parts, f"{path}.victim")}
    if "purifier" in spec:
        given["purifier"] = _purifier(spec["purifier"], parts, f"{path}.purifier")
    options = {key: value for key, value in spec.items() if key not in _GIVEN}
    return build(VICTIMS, options, "victim", path, **given)


def _purifier(entry: Any, parts: Mapping[str, Any], path: str) -> Any:
    """A transform alone, or a part: a function of a transform, by default of the one that it was trained with."""
    entry = named(entry)
    if "part" not in entry:
        return transform_from_config(entry, path)
    options = {}
    if "transform" in entry:
        options["transform"] = transform_from_config(named(entry["transform"]), f"{path}.transform")
    return parts[entry["part"]](**options)


def victim_in_words(spec: Any, trained_with: Mapping[str, Any]) -> str:
    """What a victim of a config is made of: "the model standard behind the purifier unet (transform rt2)".

    Args:
        spec: checked by `check_victim`.
        trained_with: from each part that is a purifier to the transform of its training, by name or as a mapping; a
            part that is not there is told without one.
    """
    spec = named(spec)
    if "name" not in spec:
        ((kind, name),) = spec.items()
        return f"the {kind} {name}"
    if spec["name"] == ATTACKED:
        return "the victim that is attacked"
    inner = victim_in_words(spec["victim"], trained_with)
    if spec["name"] == "purify":
        suffix = ", straight through" if spec.get("straight_through") else ""
        return f"{inner} behind {_purifier_in_words(named(spec['purifier']), trained_with)}{suffix}"
    return _WORDS[spec["name"]].format(inner, **{"seed": 0} | dict(spec))


_WORDS = {
    "eot": "the mean over {n} draws of {0}",
    "majority_vote": "the majority vote of {n} draws of {0}",
    "fixed_draw": "one fixed draw (seed {seed}) of {0}",
    "bypassed": "{0}, every purifier straight through",
}


def _purifier_in_words(entry: Mapping[str, Any], trained_with: Mapping[str, Any]) -> str:
    if "part" not in entry:
        return f"the transform {entry['name']}"
    told = f"the purifier {entry['part']}"
    if "transform" not in entry and entry["part"] not in trained_with:
        return told
    transform = named(entry["transform"] if "transform" in entry else trained_with[entry["part"]])
    return f"{told} (no transform)" if transform is None else f"{told} (transform {transform['name']})"


def check_victim(spec: Any, path: str = "victim") -> None:
    """Check a victim of a config before what it refers to is there: names and types.

    Raises:
        ConfigError: as `victim_from_config`.
    """
    if spec == ATTACKED or spec == {"name": ATTACKED}:
        return
    if not isinstance(spec, Mapping):
        references = ", ".join(f'{{"{kind}": NAME}}' for kind in _REFERENCES)
        raise ConfigError(f"{path}={shown(spec)} must be a mapping with a `name`, {references}, or {ATTACKED!r}")
    if "name" not in spec:
        if len(spec) != 1 or not set(spec) <= set(_REFERENCES) or not isinstance(next(iter(spec.values())), str):
            raise ConfigError(f"{path}={shown(spec)} must name a model, a victim or a part, or have a `name`")
        return
    check_spec(VICTIMS, spec, "victim", path)
    check_victim(spec["victim"], f"{path}.victim")
    if "purifier" in spec:
        _check_purifier(named(spec["purifier"]), f"{path}.purifier")


def _check_purifier(entry: Any, path: str) -> None:
    if not isinstance(entry, Mapping) or ("part" not in entry and "name" not in entry):
        raise ConfigError(f"{path}={shown(entry)} must be {{'part': NAME}}, or a transform with a `name`")
    if "part" not in entry:
        check_spec(TRANSFORMS, entry, "transform", path)
        return
    if unknown := sorted(set(entry) - {"part", "transform"}):
        raise ConfigError(f"{path}.{unknown[0]} is unknown{suggest(unknown[0], ('part', 'transform'))}")
    if (transform := named(entry.get("transform"))) is not None:
        check_spec(TRANSFORMS, transform, "transform", f"{path}.transform")


def references(spec: Any) -> list[tuple[str, str | None]]:
    """The models, victims and parts that a checked victim is made of, each with its kind; "attacked" has no name."""
    spec = named(spec)
    if spec.get("name") == ATTACKED:
        return [(ATTACKED, None)]
    return references(spec["victim"]) if "name" in spec else list(spec.items())
