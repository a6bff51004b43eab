"""Speed and memory: attacks of this library and of others on the same networks, in turns, in one run."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from spa_jax.benchmarks.floor import (
    Times,
    alternate,
    gradient_count,
    median_ratio,
    run_gradients,
    summarise,
    temporary_bytes,
)
from spa_jax.benchmarks.peers import Task, check_peers, make_peer
from spa_jax.catalogue import attack_from_config
from spa_jax.configuration import check_keys
from spa_jax.engine import PureAttack
from spa_jax.errors import ConfigError
from spa_jax.models import create_model, init_variables, parameter_count
from spa_jax.parallel import check_divisible, data_mesh, replicate, shard_batch
from spa_jax.predict import Victim, classifier

Row = dict[str, Any]
_Runs = dict[tuple[str, int | None], Callable[[], Any]]

SPEED_SCHEMA: Mapping[str, Any] = {
    "networks": Mapping,
    "num_classes": int,
    "batch_size": int,
    "repeats": int,
    "devices": tuple | list,
    "attacks": Mapping,
    "reference": str,
    "peers": tuple | list,
    "peer_attack": {"radius": float, "step_size": float, "num_steps": int},
}
MEMORY_SCHEMA: Mapping[str, Any] = {
    "networks": Mapping,
    "num_classes": int,
    "batch_size": int,
    "attacks": Mapping,
    "num_steps": tuple | list,
}
_NETWORK_SCHEMA: Mapping[str, Any] = {"model": Mapping, "input_shape": tuple | list}


class Bench:
    """A network with random weights, and random images and labels for it: what is computed does not depend on them."""

    def __init__(self, section: Mapping[str, Any], name: str, seed: int):
        network = section["networks"][name]
        self.input_shape = tuple(network["input_shape"])
        classes, batch = section["num_classes"], section["batch_size"]
        self.model = create_model(num_classes=classes, input_shape=self.input_shape, **network["model"])
        self.variables = init_variables(self.model, jax.random.key(seed), self.input_shape)
        random = np.random.default_rng(seed)
        self.images = random.uniform(size=(batch, *self.input_shape)).astype(np.float32)
        self.labels = random.integers(classes, size=batch).astype(np.int32)

    def on(self, devices: int) -> tuple[Any, Any, Any]:
        """Victim, images and labels on the first devices."""
        mesh = data_mesh(jax.devices()[:devices])
        victim = replicate(classifier(self.model, self.variables), mesh)
        return victim, *shard_batch((self.images, self.labels), mesh)


# --- speed ----------------------------------------------------------------------------------------------------------


def check_speed(section: Mapping[str, Any]) -> None:
    """Check the section `speed` of a config before anything runs.

    Raises:
        ConfigError: an unknown or missing key, name or library.
        ValueError: a number out of range; more devices than there are.
    """
    check_keys(section, SPEED_SCHEMA, "config.speed")
    _check_networks(section, "config.speed")
    check_peers(section["peers"])
    if section["reference"] not in section["attacks"]:
        raise ConfigError(f"config.speed.reference={section['reference']!r} must be one of the attacks")
    visible = len(jax.devices())
    for devices in section["devices"]:
        if not 1 <= devices <= visible:
            raise ConfigError(f"config.speed.devices holds {devices!r}; JAX sees {visible} (see --host_devices)")
        check_divisible(section["batch_size"], data_mesh(jax.devices()[:devices]))


def _check_networks(section: Mapping[str, Any], path: str) -> None:
    for name, network in section["networks"].items():
        check_keys(network, _NETWORK_SCHEMA, f"{path}.networks.{name}")
    for spec in section["attacks"].values():
        attack_from_config(spec)


def time_attacks(section: Mapping[str, Any], seed: int) -> list[Row]:
    """For every network, all attacks and peers in turns; one row each.

    A row has `network`, `parameters`, `attack`, `devices` (None for other libraries, which use all threads) and what
    `spa_jax.benchmarks.floor.summarise` gives; `slowdown` is the time relative to the attack `reference` on the first
    number of devices, the median over the rounds.
    """
    return [row for name in section["networks"] for row in _time_network(section, name, seed)]


def _time_network(section: Mapping[str, Any], name: str, seed: int) -> list[Row]:
    bench = Bench(section, name, seed)
    runs: _Runs = {}
    for devices in section["devices"]:
        runs |= _our_runs(section, bench, devices)
    runs |= {(peer, None): _peer_run(section, bench, peer, seed) for peer in section["peers"]}
    times = alternate(runs, section["repeats"])
    reference = times[section["reference"], section["devices"][0]]
    common = {"network": name, "parameters": parameter_count(bench.variables)}
    return [
        common | _row(section, times, attack, devices) | {"slowdown": median_ratio(taken.wall, reference.wall)}
        for (attack, devices), taken in times.items()
        if not attack.startswith(_FLOOR)
    ]


_FLOOR = "floor of "


def _our_runs(section: Mapping[str, Any], bench: Bench, devices: int) -> _Runs:
    """Our attacks on so many devices, and before the attacks of each number of steps their floor."""
    predict, x, y = bench.on(devices)
    runs: _Runs = {}
    for name, spec in section["attacks"].items():
        attack = attack_from_config(spec)
        steps = gradient_count(attack)
        runs.setdefault((f"{_FLOOR}{steps}", devices), functools.partial(run_gradients, predict, x, y, steps))
        runs[name, devices] = functools.partial(_run, attack, predict, x, y)
    return runs


def _run(attack: PureAttack, predict: Victim, x: Any, y: Any) -> None:
    jax.block_until_ready(attack(jax.random.key(0), predict, x, y))


def _peer_run(section: Mapping[str, Any], bench: Bench, name: str, seed: int) -> Callable[[], Any]:
    task = Task(bench.model, bench.variables, bench.input_shape, **section["peer_attack"], seed=seed)
    peer = make_peer(name, task)
    return lambda: peer(bench.images, bench.labels)


def _row(section: Mapping[str, Any], times: Mapping[Any, Times], attack: str, devices: int | None) -> Row:
    floor = None
    if devices is not None:
        steps = gradient_count(attack_from_config(section["attacks"][attack]))
        floor = times[f"{_FLOOR}{steps}", devices]
    return {"attack": attack, "devices": devices} | summarise(times[attack, devices], floor, section["batch_size"])


# --- memory ---------------------------------------------------------------------------------------------------------


def check_memory(section: Mapping[str, Any]) -> None:
    """Check the section `memory` of a config.

    Raises:
        ConfigError: an unknown or missing key or name.
        ValueError: a number out of range.
    """
    check_keys(section, MEMORY_SCHEMA, "config.memory")
    _check_networks(section, "config.memory")


def measure_memory(section: Mapping[str, Any], seed: int) -> list[Row]:
    """For every network and attack, the compiled program's temporary memory in MiB with each number of steps.

    The rows' columns are `network`, `attack` and one `<n> steps, MiB` a number.
    """
    rows = []
    for network in section["networks"]:
        predict, x, y = Bench(section, network, seed).on(1)
        for name, spec in section["attacks"].items():
            attacks = {steps: attack_from_config(dict(spec) | {"num_steps": steps}) for steps in section["num_steps"]}
            sizes = {steps: temporary_bytes(attack, predict, x, y) for steps, attack in attacks.items()}
            rows.append(
                {"network": network, "attack": name} | {f"{n} steps, MiB": size / 2**20 for n, size in sizes.items()}
            )
    return rows
