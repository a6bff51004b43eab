"""The victims that a config composes of its models and parts: checked before anything is there."""

from collections.abc import Iterable, Mapping
from typing import Any

from spa_jax.attacks.catalogue import surrogates
from spa_jax.errors import ConfigError, suggest
from spa_jax.runs.settings import check_model_name
from spa_jax.victims.catalogue import ATTACKED, check_victim, references, victim_from_config


def check_victims(config: Mapping[str, Any], models: Iterable[str], classifiers: Iterable[str], path: str) -> None:
    """Check the victims of a config, and those that its attacks are crafted on.

    Args:
        config: of one model, complete.
        models: all models of the config, by name.
        classifiers: those of them that are classifiers.
        path: of the config, for messages.

    Raises:
        ConfigError: a name that a model has, or that cannot be a directory; an unknown name, key or option; victims
            that are made of each other; "attacked" outside of an attack.
    """
    victims = config["victims"] or {}
    for name, spec in victims.items():
        check_model_name(name, f"the name in {path}.victims")
        if name in models:
            raise ConfigError(f"{path}.victims holds the name {name!r}, which a model has")
        check_victim(spec, f"{path}.victims.{name}")
        if (ATTACKED, None) in references(spec):
            raise ConfigError(f"{path}.victims.{name}: {ATTACKED!r} stands for the victim of an attack only")
        _check_references(spec, config, classifiers, f"{path}.victims.{name}", (name,))
    for name, spec in config["evaluation"]["attacks"].items():
        for own in surrogates(spec):
            _check_references(own, config, classifiers, f"{path}.evaluation.attacks.{name}.victim", ())


def _check_references(
    spec: Any, config: Mapping[str, Any], classifiers: Iterable[str], path: str, seen: tuple[str, ...]
) -> None:
    """Every name is known, no victim is made of itself, and every number holds."""
    victims = config["victims"] or {}
    for kind, name in references(spec):
        valid, what = {"model": (classifiers, "classifier"), "victim": (victims, "victim")}.get(kind, ((name,), ""))
        if name not in valid:
            raise ConfigError(f"{path}.{kind}={name!r} is not a {what} of this config{suggest(str(name), valid)}")
        if kind == "victim" and name in seen:
            raise ConfigError(f"{path}: the victims {', '.join(map(repr, seen))} are made of each other")
        if kind == "victim":
            _check_references(victims[name], config, classifiers, path, (*seen, str(name)))
    try:
        victim_from_config(spec, lambda kind, name: _absent, _Anything(), path)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


class _Anything(dict):
    """Stands for every part where a victim is only checked."""

    def __missing__(self, name: str) -> Any:
        return lambda **options: _absent


def _absent(images: Any) -> Any:
    raise AssertionError("a victim that was only checked")
