"""The named errors of spa_jax; each of them is a ValueError."""

import difflib
from collections.abc import Iterable
from typing import Any

_LONGEST_VALUE = 100


class SpaError(ValueError):
    """Base of all errors that spa_jax raises by a name of its own."""


class DataNotFoundError(SpaError):
    """A data set is not where it was looked for, or lies there in a form that cannot be read."""


class CheckpointError(SpaError):
    """A checkpoint cannot be written, is damaged, is not there, or belongs to another model."""


class ConfigError(SpaError):
    """A config has a misspelt or missing key or a wrong type, or is not the one a checkpoint was made with."""


def suggest(name: Any, valid: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest valid one, if one is near, and all of them."""
    near = difflib.get_close_matches(str(name), list(valid), n=1)
    return (f"; did you mean {near[0]!r}?" if near else ";") + f" valid: {listed(valid)}"


def listed(names: Iterable[str]) -> str:
    """Names in order, for a message."""
    return ", ".join(sorted(names)) or "none"


def shown(value: Any) -> str:
    """A value in one line of a message, cut where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
