"""Configs hold data only: parsing their arguments, checking them, building what they name, storing and comparing them.

Everything here takes plain nested mappings as well as `ml_collections.ConfigDict`, whose keys count in the order in
which they were set: it is the order of the edits in a chain and of the attacks in a cascade.
"""

import dataclasses
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from spa_jax.errors import ConfigError, listed, suggest

_TRUTHS = {"true": True, "1": True, "false": False, "0": False}
_SEQUENCES = (tuple, list, Sequence, Iterable)
_DATA = (bool, int, float, str, type(None), list, tuple, Mapping)


def parse_arguments(arg: str | None, **defaults: Any) -> dict[str, Any]:
    """Read what stands behind the colon of `--config FILE:arguments`.

    `parse_arguments(arg, epochs=30, model="small", debug=False)` reads `"epochs=2,debug"`, as big_vision does. A
    default decides the type of its argument: bool (the bare name means True), int, float (also a fraction, `8/255`),
    str, or a tuple of one of them, written `a|b|c`.

    Args:
        arg: the text, as `get_config(arg=None)` receives it; None or "" leaves the defaults.
        defaults: every argument there is, by name.

    Returns:
        The defaults, overridden.

    Raises:
        ConfigError: an unknown name (the valid ones are listed) or a repeated one, or a text that is not of the
            default's type.
    """
    values: dict[str, Any] = {}
    for item in filter(None, (arg or "").split(",")):
        name, has_value, text = item.strip().partition("=")
        if name not in defaults:
            raise ConfigError(f"argument {item.strip()!r} of the config file is unknown{suggest(name, defaults)}")
        if name in values:
            raise ConfigError(f"argument {name!r} of the config file is given twice")
        values[name] = _parse(name, text if has_value else None, defaults[name])
    return defaults | values


def build(
    registry: Mapping[str, Callable[..., Any]], spec: Any, kind: str, path: str = "config", **provided: Any
) -> Any:
    """Call the constructor that `spec` names, after `check_spec`: `registry[spec["name"]](**rest)`.

    An int for a float becomes a float and a list for a tuple a tuple, so a config read back from JSON builds the same.

    Args:
        registry: constructors by name.
        spec: mapping with `name` and the keyword arguments of that constructor.
        kind: what the registry holds, for messages: "attack", "model" ...
        path: where the spec stands, for messages: "config.attack".
        provided: what the program knows (number of classes ...); goes to constructors that take it; `spec` wins.

    Raises:
        ConfigError: as `check_spec`.
    """
    check_spec(registry, spec, kind, path, provided)
    spec = _plain(spec)
    parameters = _parameters(registry[spec["name"]])
    arguments = {key: value for key, value in provided.items() if key in parameters}
    for key, value in spec.items():
        if key != "name":
            arguments[key] = _convert(value, parameters[key].annotation) if key in parameters else value
    return registry[spec["name"]](**arguments)


def check_spec(
    registry: Mapping[str, Callable[..., Any]],
    spec: Any,
    kind: str,
    path: str = "config",
    provided: Iterable[str] = (),
) -> None:
    """Check `spec` against the signature of the constructor it names; nothing is called.

    Checked are names, and types as far as the annotation is made of bool, int, float, str, None, tuple, list, Mapping,
    Literal and unions of them; the rest is left to the constructor. An int serves as a float, a list as a tuple, a bool
    as neither int nor float.

    Args:
        registry: constructors by name.
        spec: mapping with `name` and the keyword arguments of that constructor.
        kind: what the registry holds, for messages.
        path: where the spec stands, for messages.
        provided: names of arguments that the program adds, see `build`.

    Raises:
        ConfigError: the spec is not a mapping or has no name; the name or an argument is unknown; an argument is
            missing or has a wrong type. The message has the dotted path, the rule, the nearest name and all valid ones.
    """
    spec = _plain(spec)
    if not isinstance(spec, Mapping) or "name" not in spec:
        raise ConfigError(f"{path}={spec!r} must be a mapping with a `name`; {kind}s by name: {listed(registry)}")
    name = spec["name"]
    if name not in registry:
        raise ConfigError(f"{path}.name={name!r} is not a known {kind}{suggest(name, registry)}")
    parameters = _parameters(registry[name])
    _check_names(spec, parameters, f"{kind} {name!r}", path, provided)
    for key, value in spec.items():
        if key != "name" and key in parameters:
            check_type(value, parameters[key].annotation, f"{path}.{key}")


def check_keys(config: Any, allowed: Mapping[str, Any], path: str = "config") -> None:
    """Check that `config` has the keys of `allowed` and no others, with values of their types.

    Args:
        config: nested mappings of data.
        allowed: for each key a type or union (`float | None`), a nested mapping that is checked in turn, or
            `typing.Any`. A key whose type admits None may be left out.
        path: name of `config` itself, for messages.

    Raises:
        ConfigError: an unknown key, a missing key or a wrong type, by its dotted path; the valid ones are listed.
    """
    config = _plain(config)
    if not isinstance(config, Mapping):
        raise ConfigError(f"{path}={config!r} must be a mapping with the keys {listed(allowed)}")
    for key in config:
        if key not in allowed:
            raise ConfigError(f"{path}.{key} is unknown{suggest(key, allowed)}")
    for key, expected in allowed.items():
        if key not in config:
            if isinstance(expected, Mapping) or not _matches(None, expected):
                raise ConfigError(f"{path}.{key} is missing; {path} has the keys {listed(allowed)}")
        elif isinstance(expected, Mapping):
            check_keys(config[key], expected, f"{path}.{key}")
        else:
            check_type(config[key], expected, f"{path}.{key}")


def named(spec: Any) -> Any:
    """A spec, or what a config names by text alone: `"digits"` stands for `{"name": "digits"}`."""
    return {"name": spec} if isinstance(spec, str) else spec


def with_defaults(section: Any, record: Any, path: str = "config") -> dict[str, Any]:
    """A section of a config with every key that a dataclass has, in the order of its fields, and its defaults.

    Args:
        section: nested mappings of data.
        record: a dataclass; its types and its `__post_init__` are the rules.
        path: name of the section, for messages.

    Raises:
        ConfigError: as `check_keys`, or a value that the record refuses, by its dotted path.
    """
    types_of, fields = typing.get_type_hints(record), dataclasses.fields(record)
    section = _plain(section)
    if isinstance(section, Mapping):
        section = {field.name: _default(field) for field in fields if _has_default(field)} | dict(section)
    check_keys(section, types_of, path)
    full = {field.name: section[field.name] for field in fields}
    try:
        record(**{key: _convert(value, types_of[key]) for key, value in full.items()})
    except ValueError as error:
        raise ConfigError(f"{path}.{error}") from error
    return full


def _has_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def freeze(config: Any, path: str = "config") -> Any:
    """The config as plain JSON data: mappings become dicts, tuples lists.

    `json.loads(json.dumps(freeze(c))) == freeze(c)` unless it holds a NaN: a stored config compares with a running one.

    Raises:
        ConfigError: a key that is not text, or a value that is not data (a function, an array ...), by its dotted path.
    """
    config = _plain(config)
    if isinstance(config, Mapping):
        if strange := [key for key in config if not isinstance(key, str)]:
            raise ConfigError(f"{path} has the key {strange[0]!r}; keys must be text")
        return {key: freeze(value, f"{path}.{key}") for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [freeze(value, f"{path}.{index}") for index, value in enumerate(config)]
    if not isinstance(config, _DATA):
        raise ConfigError(
            f"{path}={config!r} is not data: a config holds numbers, text, None, tuples and mappings only"
        )
    return config


def diff(a: Any, b: Any) -> list[str]:
    """One line `key: value in a -> value in b` for every leaf on which two configs differ, sorted by dotted key.

    A leaf that only one of them has shows as `(absent)` in the other. Numbers are compared by value: 1 equals 1.0. The
    order of keys does not count, but for `attributes`, which are applied in that order.
    """
    left, right = dict(_leaves(freeze(a))), dict(_leaves(freeze(b)))
    keys = sorted(left.keys() | right.keys())
    changed = [key for key in keys if key not in left or key not in right or left[key] != right[key]]
    return [f"{key}: {_shown(left, key)} -> {_shown(right, key)}" for key in changed]


def _plain(config: Any) -> Any:
    """A `ConfigDict` as a dict in the order in which its keys were set; by itself it lists them alphabetically."""
    if not hasattr(config, "to_dict"):
        return config
    return {key: _plain(config[key]) for key in vars(config).get("_fields", config)}


def _parse(name: str, text: str | None, default: Any) -> Any:
    if isinstance(default, bool) and text is None:
        return True
    try:
        if text is None:
            raise ValueError
        if isinstance(default, tuple):
            example = default[0] if default else ""
            return tuple(_parse_scalar(part, example) for part in text.split("|"))
        return _parse_scalar(text, default)
    except (ValueError, KeyError, ZeroDivisionError):
        given = name if text is None else f"{name}={text}"
        wanted = f"a tuple, written {name}=a|b" if isinstance(default, tuple) else f"of type {type(default).__name__}"
        message = f"argument {given!r} of the config file must be {wanted}; its default is {default!r}"
        raise ConfigError(message) from None


def _parse_scalar(text: str, default: Any) -> Any:
    if isinstance(default, bool):
        return _TRUTHS[text.lower()]
    if isinstance(default, int):
        return int(text)
    if isinstance(default, float):
        numerator, _, denominator = text.partition("/")
        return float(numerator) / float(denominator or 1)
    return text


def _parameters(constructor: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(constructor, eval_str=True).parameters
    except NameError:  # annotations as text whose names exist for type checkers only
        return inspect.signature(constructor).parameters


def _check_names(
    spec: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], what: str, path: str, provided: Iterable[str]
) -> None:
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = {key: parameter for key, parameter in parameters.items() if parameter.kind not in variadic}
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in spec:
        if key != "name" and key not in named and not takes_any:
            raise ConfigError(f"{path}.{key} is unknown to {what}{suggest(key, named)}")
    known = {"name", *spec, *provided}
    for key, parameter in named.items():
        if key not in known and parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"{path}.{key} is missing: {what} needs it; it takes {listed(named)}")


def check_type(value: Any, annotation: Any, path: str) -> None:
    """Check a value against an annotation, as far as `check_spec` does; the message calls it `path`.

    Raises:
        ConfigError: it is of another type.
    """
    if not _matches(value, annotation):
        raise ConfigError(f"{path}={value!r} must be {_described(annotation)}, not {type(value).__name__}")


def _matches(value: Any, annotation: Any) -> bool:
    """Whether a config's value may stand where `annotation` is asked for; what cannot be checked accepts everything."""
    members = _members(annotation)
    checkable = _checkable(annotation)
    if not isinstance(value, _DATA) or not checkable or any(member in (Any, object) for member in members):
        return True
    return any(_matches_one(value, kind) for kind in checkable)


def _matches_one(value: Any, kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return value in typing.get_args(kind)
    if origin in _SEQUENCES:
        return isinstance(value, list | tuple) and _elements_match(value, kind)
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, Mapping if origin in (dict, Mapping) else origin)


def _elements_match(values: Sequence[Any], kind: Any) -> bool:
    elements = typing.get_args(kind)
    if not elements:
        return True
    if typing.get_origin(kind) is tuple and elements[-1] is not Ellipsis:
        return len(values) == len(elements) and all(map(_matches, values, elements))
    return all(_matches(value, elements[0]) for value in values)


def _members(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(annotation) for member in _members(part)]
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    return [type(None) if annotation is None else annotation]


def _checkable(annotation: Any) -> list[Any]:
    """The members of a union that can be checked; where there is one, data cannot be meant for the others."""
    plain = (bool, int, float, str, type(None), dict, Mapping, *_SEQUENCES)
    generic = (typing.Literal, dict, Mapping, *_SEQUENCES)
    return [kind for kind in _members(annotation) if kind in plain or typing.get_origin(kind) in generic]


def _described(annotation: Any) -> str:
    def name(kind: Any) -> str:
        if kind is type(None):
            return "None"
        return kind.__name__ if typing.get_origin(kind) is None else str(kind).replace("typing.", "")

    return " or ".join(dict.fromkeys(name(kind) for kind in _checkable(annotation)))


def _convert(value: Any, annotation: Any) -> Any:
    kinds = _checkable(annotation)
    origins = {typing.get_origin(kind) or kind for kind in kinds}
    if isinstance(value, int) and not isinstance(value, bool) and float in origins and int not in origins:
        return float(value)
    if isinstance(value, list) and tuple in origins and list not in origins:
        return _as_tuple(value)
    return value


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value


def _leaves(config: Any, path: str = "") -> Iterable[tuple[str, Any]]:
    holds_more = isinstance(config, list) and any(isinstance(item, dict | list) for item in config)
    if not config or not (isinstance(config, dict) or holds_more):
        yield path, config
        return
    edits = list(config.values()) if isinstance(config, dict) and path.endswith("attributes") else [None]
    if all(isinstance(edit, dict) for edit in edits):
        yield f"{path} (order)", list(config)
    for key, value in config.items() if isinstance(config, dict) else enumerate(config):
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return json.dumps(leaves[key]) if key in leaves else "(absent)"
