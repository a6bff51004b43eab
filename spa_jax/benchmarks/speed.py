"""Speed and memory: attacks of this library and of others on the same networks, in turns, in one run."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spa_jax.attacks.catalogue import attack_from_config
from spa_jax.benchmarks.cells import FLOORS, FORMS, Bench
from spa_jax.benchmarks.floor import Times, median_ratio, summarise, temporary_bytes
from spa_jax.benchmarks.peers import check_peers, check_training_peers
from spa_jax.benchmarks.stock import STOCK
from spa_jax.benchmarks.workers import Spec, Taken, time_in_turns
from spa_jax.configuration import check_keys
from spa_jax.errors import ConfigError, suggest
from spa_jax.models import create_model
from spa_jax.parallel import check_divisible, data_mesh

Row = dict[str, Any]

SPEED_SCHEMA: Mapping[str, Any] = {
    "networks": Mapping,
    "forms": tuple | list,
    "num_classes": int,
    "batch_size": int,
    "repeats": int,
    "devices": tuple | list,
    "attacks": Mapping,
    "peers": tuple | list,
    "peer_attack": str | None,
    "training": Mapping | None,
    "apart": bool | None,
}
"""Section `speed`: every attack on every network in every form on every number of devices.

`forms` are "zoo" (the network of `model` through `classifier`) and "stock" (a user's network, `stock`, as a closure).
`peers` make the attack that `peer_attack` names. `training` has an `attack`, `networks` and `peers`:
adversarial-training steps. `apart=False` times everything in one process.
"""
_TRAINING_SCHEMA: Mapping[str, Any] = {"attack": Mapping, "networks": tuple | list, "peers": tuple | list}
MEMORY_SCHEMA: Mapping[str, Any] = {
    "networks": Mapping,
    "num_classes": int,
    "batch_size": int,
    "attacks": Mapping,
    "num_steps": tuple | list,
}
_NETWORK_SCHEMA: Mapping[str, Any] = {"model": Mapping, "stock": str | None, "input_shape": tuple | list}


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
    attacks, peer_attack = section["attacks"], section.get("peer_attack")
    if section["peers"] and peer_attack not in attacks:
        known = suggest(peer_attack, attacks)
        raise ConfigError(f"config.speed.peer_attack={peer_attack!r} is not one of the attacks{known}")
    if section.get("training"):
        _check_training(section)
    for form in section["forms"]:
        if form not in FORMS:
            raise ConfigError(f"config.speed.forms: {form!r} is unknown{suggest(form, FORMS)}")
    visible = len(jax.devices())
    for devices in section["devices"]:
        if not 1 <= devices <= visible:
            raise ConfigError(f"config.speed.devices holds {devices!r}; JAX sees {visible} (see --host_devices)")
        check_divisible(section["batch_size"], data_mesh(jax.devices()[:devices]))


def _check_training(section: Mapping[str, Any]) -> None:
    training, path = section["training"], "config.speed.training"
    check_keys(training, _TRAINING_SCHEMA, path)
    check_training_peers(training["peers"])
    attack_from_config(training["attack"])
    for name in training["networks"]:
        if name not in section["networks"]:
            raise ConfigError(f"{path}.networks: {name!r} is unknown{suggest(name, section['networks'])}")


def _check_networks(section: Mapping[str, Any], path: str) -> None:
    for name, network in section["networks"].items():
        check_keys(network, _NETWORK_SCHEMA, f"{path}.networks.{name}")
        create_model(num_classes=section["num_classes"], input_shape=network["input_shape"], **network["model"])
        stock = network.get("stock")
        if "stock" in section.get("forms", ()) and stock not in STOCK:
            raise ConfigError(f"{path}.networks.{name}.stock={stock!r} is not a stock network{suggest(stock, STOCK)}")
    for spec in section["attacks"].values():
        attack_from_config(spec)


def time_attacks(section: Mapping[str, Any], seed: int) -> Iterator[Row]:
    """For every network and attack, its forms on each number of devices and the peers, in turns; one row each.

    A row has `network`, `work` (the attack, or "training step"), `form` ("zoo", "stock" or the peer's name), `devices`
    (None for other libraries, which use all threads), `first_s`, the first call in a fresh process, and what
    `spa_jax.benchmarks.floor.summarise` gives. The floor is that of the network in the same process, victim prepared or
    plain, whichever is quicker (`floor`). `slowdown` is the time relative to the first row of the same network and
    work, the median over the rounds.
    """
    for network, work, cells in _groups(section, seed):
        taken = time_in_turns(cells, section["repeats"], _apart(section))
        first = next(iter(taken.values())).times["run"]
        for (form, devices), found in taken.items():
            common = {"network": network, "work": work, "form": form, "devices": devices}
            row = row_of(found, section["batch_size"])
            yield common | row | {"slowdown": median_ratio(found.times["run"].wall, first.wall)}


def _apart(section: Mapping[str, Any]) -> bool:
    """Whether each thing gets a process; on an accelerator, which belongs to one process, none does."""
    return section.get("apart") is not False and jax.default_backend() == "cpu"


_BUILD = "spa_jax.benchmarks.cells:"


def _groups(section: Mapping[str, Any], seed: int) -> Iterator[tuple[str, str, dict[Any, Spec]]]:
    """Network, work, and what is timed in turns for them."""
    training = section.get("training") or {"networks": ()}
    for network in section["networks"]:
        for attack in section["attacks"]:
            peers = section["peers"] if attack == section.get("peer_attack") else ()
            common = {"section": section, "network": network, "attack": section["attacks"][attack], "seed": seed}
            yield network, attack, _cells(section, common, "attack_cell", "peer_cell", peers)
        if network in training["networks"]:
            common = {"section": section, "network": network, "attack": training["attack"], "seed": seed}
            cells = _cells(section, common, "training_cell", "training_peer_cell", training["peers"])
            yield network, "training step", cells


def _cells(
    section: Mapping[str, Any], common: Spec, own: str, other: str, peers: Sequence[str]
) -> dict[tuple[str, int | None], Spec]:
    collective = {"collectives": own == "training_cell"}
    cells: dict[tuple[str, int | None], Spec] = {
        (form, devices): {**common, "build": _BUILD + own, "form": form, "devices": devices, **collective}
        for form in section["forms"]
        for devices in section["devices"]
    }
    return cells | {(peer, None): {**common, "build": _BUILD + other, "peer": peer} for peer in peers}


def row_of(taken: Taken, batch_size: int) -> Row:
    """What was taken of one thing in the words of `time_attacks`, with the multiples of its floor where it has one."""
    own = taken.times["run"]
    floors = {name: floor_of(taken, name) for name in FLOORS if taken.facts.get("passes")}
    floor = min(floors, key=lambda name: statistics.median(floors[name].wall), default=None)
    summary = summarise(own, None if floor is None else floors[floor], batch_size)
    named = {} if floor is None else {"floor": floor, "floor_s": statistics.median(floors[floor].wall)}
    return {"parameters": taken.facts["parameters"], "first_s": own.first} | summary | named


def floor_of(taken: Taken, name: str) -> Times:
    """The passes that an attack needs, from those that were timed."""
    wall, cpu = np.zeros(1), np.zeros(1)
    for kind, (needed, timed) in taken.facts["passes"].items():
        if timed:
            times = taken.times[f"{name} {kind}"]
            wall = wall + needed / timed * np.asarray(times.wall)
            cpu = cpu + needed / timed * np.asarray(times.cpu)
    return Times(0.0, tuple(wall.tolist()), tuple(cpu.tolist()))


# --- memory ---------------------------------------------------------------------------------------------------------


def check_memory(section: Mapping[str, Any]) -> None:
    """Check the section `memory` of a config.

    Raises:
        ConfigError: an unknown or missing key or name.
        ValueError: a number out of range.
    """
    check_keys(section, MEMORY_SCHEMA, "config.memory")
    _check_networks(section, "config.memory")


def measure_memory(section: Mapping[str, Any], seed: int) -> Iterator[Row]:
    """For every network and attack, the compiled program's temporary memory in MiB with each number of steps.

    The rows' columns are `network`, `attack` and one `<n> steps, MiB` a number. Called from Python on a CPU, an attack
    needs that of one step.
    """
    for network in section["networks"]:
        bench = Bench(section, network, seed)
        seen = bench.victim, jnp.asarray(bench.images), jnp.asarray(bench.labels)
        for name, spec in section["attacks"].items():
            attacks = {steps: attack_from_config(dict(spec) | {"num_steps": steps}) for steps in section["num_steps"]}
            sizes = {steps: temporary_bytes(attack, *seen) for steps, attack in attacks.items()}
            yield {"network": network, "attack": name} | {f"{n} steps, MiB": size / 2**20 for n, size in sizes.items()}
