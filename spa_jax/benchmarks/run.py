"""The benchmark of a config: speed against the floor and other libraries, memory, strength; tables and JSON."""

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from spa_jax.benchmarks.autoattack import AUTOATTACK_REQUIREMENTS, check_autoattack, compare_autoattack
from spa_jax.benchmarks.device import check_device, time_device
from spa_jax.benchmarks.generator import check_generator, time_generator
from spa_jax.benchmarks.matrix import check_matrix, fill_matrix, matrix_table
from spa_jax.benchmarks.minimal_norm import check_minimal_norm, compare_minimal_norm
from spa_jax.benchmarks.minimal_norm_peers import NORM_REQUIREMENTS
from spa_jax.benchmarks.peers import REQUIREMENTS, versions
from spa_jax.benchmarks.planted import check_planted, compare_planted
from spa_jax.benchmarks.speed import Row, check_memory, check_speed, measure_memory, time_attacks
from spa_jax.benchmarks.strength import check_strength, compare_strength
from spa_jax.benchmarks.universal import check_universal, check_universal_speed, compare_universal, time_universal
from spa_jax.benchmarks.universal_peers import UNIVERSAL_REQUIREMENTS
from spa_jax.configuration import check_keys, freeze, named
from spa_jax.errors import ConfigError
from spa_jax.evaluation.files import write_files
from spa_jax.runs.checkpoints import prepare_workdir

SCHEMA: Mapping[str, Any] = {
    "name": str,
    "seed": int,
    "data": str | Mapping | None,
    "speed": Mapping | None,
    "memory": Mapping | None,
    "strength": Mapping | None,
    "minimal_norm": Mapping | None,
    "autoattack": Mapping | None,
    "matrix": Mapping | None,
    "generator": Mapping | None,
    "device": Mapping | None,
    "universal": Mapping | None,
    "universal_speed": Mapping | None,
    "planted": Mapping | None,
}
"""Every key of a config; each of the sections, `speed` to `planted`, may be left out."""


def benchmark(config: Mapping[str, Any], workdir: str | Path) -> str:
    """Measure what a config asks for, and write `benchmark.json` and `benchmark.md`, anew after every row.

    Args:
        config: see `SCHEMA`, the schemas of its sections beside their functions, and `configs/bench_*.py`.
        workdir: directory for both files.

    Returns:
        The tables as text.

    Raises:
        ConfigError: a wrong key, name or type, or a library that is not installed; before anything runs.
        ValueError: a number out of range.
        DataNotFoundError: the data of `strength` are not there.
        CheckpointError: the directory cannot be written.
    """
    config = _checked(config)
    workdir = prepare_workdir(workdir)
    before, text = _environment(config), ""
    results: dict[str, list[Row]] = {}
    for section in (name for name in MEASUREMENTS if config.get(name)):
        for row in MEASUREMENTS[section](config, workdir):
            results.setdefault(section, []).append(row)
            text = _write(config, before, results, workdir)
    return text


def _write(config: Mapping[str, Any], before: Row, results: Mapping[str, list[Row]], workdir: Path) -> str:
    text = "\n\n".join(_TABLES.get(section, _table)(section, rows) for section, rows in results.items())
    environment = before | {"load_average_after": os.getloadavg()}
    record = {"config": config, "environment": environment, **results}
    write_files(workdir, {"benchmark.json": _as_json(record), "benchmark.md": f"{text}\n".encode()})
    return text


def _as_json(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=2) + "\n").encode()


MEASUREMENTS: Mapping[str, Callable[[Mapping[str, Any], Path], Iterable[Row]]] = {
    "speed": lambda config, workdir: time_attacks(config["speed"], config["seed"]),
    "memory": lambda config, workdir: measure_memory(config["memory"], config["seed"]),
    "strength": lambda config, workdir: compare_strength(config["strength"], config["data"], config["seed"]),
    "minimal_norm": lambda config, workdir: compare_minimal_norm(
        config["minimal_norm"], config["data"], config["seed"]
    ),
    "autoattack": lambda config, workdir: compare_autoattack(config["autoattack"], config["data"], config["seed"]),
    "matrix": lambda config, workdir: fill_matrix(config["matrix"], config["data"], workdir),
    "generator": lambda config, workdir: time_generator(config["generator"], config["seed"]),
    "device": lambda config, workdir: time_device(config["device"], config["seed"]),
    "universal_speed": lambda config, workdir: time_universal(config["universal_speed"], config["seed"]),
    "universal": lambda config, workdir: compare_universal(config["universal"], config["data"], config["seed"]),
    "planted": lambda config, workdir: compare_planted(config["planted"], config["data"], config["seed"]),
}
"""The sections that a benchmark's config may have, and what each measures."""
_CHECKS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "speed": lambda config: check_speed(config["speed"]),
    "memory": lambda config: check_memory(config["memory"]),
    "strength": lambda config: check_strength(config["strength"]),
    "minimal_norm": lambda config: check_minimal_norm(config["minimal_norm"]),
    "autoattack": lambda config: check_autoattack(config["autoattack"]),
    "matrix": lambda config: check_matrix(config["matrix"], config["data"]),
    "generator": lambda config: check_generator(config["generator"]),
    "device": lambda config: check_device(config["device"]),
    "universal_speed": lambda config: check_universal_speed(config["universal_speed"]),
    "universal": lambda config: check_universal(config["universal"]),
    "planted": lambda config: check_planted(config["planted"]),
}
_TABLES: Mapping[str, Callable[[str, Sequence[Row]], str]] = {"matrix": lambda title, rows: matrix_table(rows)}


def _checked(config: Any) -> Any:
    config = freeze(config)
    check_keys(config, SCHEMA)
    if config.get("data") is not None:
        config["data"] = named(config["data"])
    asked = [section for section in MEASUREMENTS if config.get(section)]
    if not asked:
        raise ConfigError(f"config has no section to measure; give it one of {', '.join(MEASUREMENTS)}")
    for section in {"strength", "minimal_norm", "autoattack", "matrix", "universal", "planted"} & set(asked):
        if not config.get("data"):
            raise ConfigError(f"config.data is missing: the section `{section}` needs images")
    for section in asked:
        _CHECKS[section](config)
    return config


def _environment(config: Mapping[str, Any]) -> Row:
    """What the numbers depend on; a load average above the machine's idle one means that others used its cores."""
    peers: set[str] = set()
    for name in ("speed", "strength", "minimal_norm", "autoattack", "universal", "universal_speed"):
        section = config.get(name) or {}
        peers |= set(section.get("peers", ()))
        peers |= {peer for match in section.get("attacks", {}).values() for peer in match.get("peers", ())}
    known = {**REQUIREMENTS, **NORM_REQUIREMENTS, **AUTOATTACK_REQUIREMENTS, **UNIVERSAL_REQUIREMENTS}
    own = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "devices": [str(device) for device in jax.devices()],
        "versions": own | versions(sorted(peers), known),
        "load_average_before": os.getloadavg(),
    }


# --- tables ---------------------------------------------------------------------------------------------------------

_COLUMNS: Mapping[str, Sequence[str]] = {
    "speed": (
        "network", "work", "form", "devices", "seconds", "examples_per_s", "first_s", "multiple_of_floor",
        "cpu_multiple_of_floor", "floor", "slowdown",
    ),
    "device": (
        "network", "dtype", "work", "attack", "examples_per_s", "multiple_of_floor", "teraflops_per_s", "peak_share",
        "compile_s", "MiB", "skipped",
    ),
    "strength": (
        "victim", "radius", "clean_accuracy", "attack", "library", "robust_accuracy", "by_seed", "all_seeds",
        "ours_minus_theirs", "all_seeds_minus_theirs", "logits_off",
    ),
    "minimal_norm": (
        "victim", "attack", "norm", "images", "steps", "library", "median", "by_seed", "found", "passes", "forwards",
        "backwards", "times_theirs", "nearer", "farther", "logits_off",
    ),
    "autoattack": (
        "victim", "norm", "radius", "images", "seed", "library", "clean_accuracy", "robust_accuracy",
        "above", "seconds", "again_s", "times", "broken", "part_s",
    ),
    "universal_speed": (
        "network", "library", "devices", "seconds", "examples_per_s", "first_s", "multiple_of_floor",
        "cpu_multiple_of_floor", "floor", "slowdown",
    ),
    "planted": (
        "victim", "radius", "defence", "clean", "pgd_20", "apgd_ce", "cascade", "true_at_most", "strongest",
        "caught_by", "cause", "alarms",
    ),
}  # fmt: skip


def _table(title: str, rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, columns aligned."""
    columns = _COLUMNS.get(title, list(rows[0]))
    cells = [[name.replace("_", " ") for name in columns]]
    cells += [[_cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([f"## {title}", "", *lines])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value))
    return str(value)
