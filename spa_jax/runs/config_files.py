"""Config files and settings of the command line: `--config FILE:arguments --config.key=value`.

The command line is that of `ml_collections.config_flags`, and a file may return a `ConfigDict`. Beyond it, settings
reach keys that the file leaves to their defaults, entries that it does not have, and fractions: they are put into the
config as the file gives it, before defaults are filled in and everything is checked (`spa_jax.runs.experiment`).
"""

import ast
import contextlib
import importlib.machinery
import importlib.util
import inspect
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spa_jax.configuration import freeze, named
from spa_jax.errors import ConfigError, suggest

_MODULE = "config_file"
_STEP = re.compile(r"""\.?(?:\[(?:"([^"]*)"|'([^']*)'|(\d+))\]|([^.\[\]]+))""")
_SPECIAL = {"true": True, "false": False, "none": None, "inf": math.inf, "-inf": -math.inf, "nan": math.nan}


def load_config(text: str) -> dict[str, Any]:
    """What the function `get_config` of a config file returns, as plain data in the order in which it is written.

    Modules beside the file can be imported, as from a script.

    Args:
        text: `FILE` or `FILE:arguments`; the arguments go to `get_config` as one text, see
            `spa_jax.configuration.parse_arguments`.

    Raises:
        ConfigError: there is no such file; it fails, with file, line and cause on one line; or it returns no config.
    """
    file, has_arguments, arguments = text.partition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise ConfigError(f"--config={text}: there is no file {str(path)!r}")
    try:
        with _importable(path.parent):
            get_config = _function_of(path)
            if has_arguments and not inspect.signature(get_config).parameters:
                raise ConfigError(f"{file}: get_config() takes no arguments, so :{arguments} cannot be given to it")
            config = freeze(get_config(arguments) if has_arguments else get_config())
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(_located(error, path)) from error
    if not isinstance(config, Mapping):
        raise ConfigError(f"{file}: get_config() returned {config!r}; it must return a mapping")
    return dict(config)


def split_settings(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """A command line without its settings of the config, and these: key and text, in their order.

    They are written `--config.key=value` or `--config.key value`; `--config.key` alone and `--noconfig.key` stand for
    true and false.
    """
    others: list[str] = []
    settings: list[tuple[str, str]] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--":
            return [*others, argument, *waiting], settings
        found = re.match(r"--?(no)?config\.(.+)", argument, flags=re.DOTALL)
        if found is None:
            others.append(argument)
            continue
        negated, setting = found.groups()
        key, has_value, value = setting.partition("=")
        if not has_value:
            follows = waiting and not negated and not re.match(r"-+[a-zA-Z]", waiting[0])
            value = "false" if negated else waiting.pop(0) if follows else "true"
        settings.append((key, value))
    return others, settings


def with_setting(config: Any, key: str, text: str) -> Any:
    """A config in which one entry is set; entries on the way to it that are not there are made.

    Args:
        config: plain data; stays as it is.
        key: dotted, as `evaluation.attacks.PGD-20.radius`; a name with dots is written `attacks["a.b"]`. Entries of a
            sequence are named by their position or their `name`: `baselines[0].recipe`, `baselines.pgd.recipe`.
        text: read by `parse_value`; in the place of text it is kept as it is, unless it is "none".

    Raises:
        ConfigError: the key cannot be read, or leads into something that has no entries.
    """
    steps = ["".join(found.groups(default="")) for found in _STEP.finditer(key)]
    if not steps or "".join(found.group() for found in _STEP.finditer(key)) != key:
        raise ConfigError(f'--config.{key}={text}: this is not a key; keys are written a.b, a[0] or a["b"]')
    return _set(config, steps, text, f"--config.{key}={text}")


def _set(node: Any, steps: Sequence[str], text: str, flag: str) -> Any:
    if not steps:
        return text if isinstance(node, str) and text.lower() != "none" else parse_value(text)
    node, (step, *rest) = {} if node is None else named(node), steps
    if isinstance(node, Mapping):
        return {**node, step: _set(node.get(step), rest, text, flag)}
    if not isinstance(node, list | tuple):
        raise ConfigError(f"{flag}: {node!r} has no entry {step!r}")
    names = [entry.get("name") if isinstance(entry, Mapping) else None for entry in node]
    place = int(step) if step.isdecimal() else names.index(step) if step in names else len(node)
    if place >= len(node):
        raise ConfigError(f"{flag}: there is no entry {step!r}{suggest(step, [name for name in names if name])}")
    return [_set(entry, rest, text, flag) if i == place else entry for i, entry in enumerate(node)]


def parse_value(text: str) -> Any:
    """A value as people write it: a Python literal, a fraction as `8/255` (in a tuple too), true, false, none, inf.

    Everything else is text.
    """
    if text.lower() in _SPECIAL:
        return _SPECIAL[text.lower()]
    try:
        return ast.literal_eval(_Fractions().visit(ast.parse(text.strip(), mode="eval")).body)
    except (SyntaxError, ValueError, TypeError, ZeroDivisionError, MemoryError, RecursionError):
        return text


class _Fractions(ast.NodeTransformer):
    """Divisions of numbers, done."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        left, right = self.visit(node.left), self.visit(node.right)
        if isinstance(node.op, ast.Div):
            return ast.Constant(ast.literal_eval(left) / ast.literal_eval(right))
        return node


@contextlib.contextmanager
def _importable(directory: Path) -> Iterator[None]:
    """Within, the modules of a directory can be imported; afterwards they are forgotten, for others of their names."""
    place, known = str(directory.resolve()), set(sys.modules)
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)
        for name in set(sys.modules) - known:
            if name == _MODULE or _lies_in(getattr(sys.modules[name], "__file__", None), directory):
                del sys.modules[name]


def _lies_in(file: str | None, directory: Path) -> bool:
    return file is not None and Path(file).resolve().parent == directory.resolve()


def _function_of(path: Path) -> Callable[..., Any]:
    loader = importlib.machinery.SourceFileLoader(_MODULE, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(_MODULE, loader))  # type: ignore[arg-type]
    sys.modules[_MODULE] = module
    loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(f"{path}: the file has no function get_config")
    return module.get_config


def _located(error: Exception, path: Path) -> str:
    """File, line and cause of what went wrong in a config file or a module beside it."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _lies_in(frame.filename, path.parent)]
    place = f"{own[-1].filename}:{own[-1].lineno}" if own else str(path)
    return f"{place}: {type(error).__name__}: {' '.join(str(error).split())}"
