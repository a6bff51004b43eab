"""Universal perturbations beside those of other libraries: what they fool on images held out, and how fast they are."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spa_jax.attacks import uap
from spa_jax.attacks.catalogue import attack_from_config
from spa_jax.attacks.universal import Accumulated
from spa_jax.benchmarks.cells import FLOORS, Bench, Cell, bare_passes
from spa_jax.benchmarks.floor import Passes, median_ratio
from spa_jax.benchmarks.peers import check_peers
from spa_jax.benchmarks.speed import Row, floor_of, row_of
from spa_jax.benchmarks.strength import check_victims, train_victim
from spa_jax.benchmarks.universal_peers import UNIVERSAL_REQUIREMENTS, Crafted, UniversalTask, make_universal_peer
from spa_jax.benchmarks.workers import Spec, Taken, time_in_turns
from spa_jax.configuration import check_keys
from spa_jax.data import arrays_of, load_dataset
from spa_jax.data.types import Examples, Split
from spa_jax.evaluation.sweep import evenly_spaced
from spa_jax.evaluation.universal import UniversalRecord, clean_answers, craft, measure_universal, passes_of
from spa_jax.models import create_model, parameter_count
from spa_jax.parallel import data_mesh
from spa_jax.validation import require_count
from spa_jax.victims import Classifier, call

UNIVERSAL_SCHEMA: Mapping[str, Any] = {
    "model": Mapping,
    "batch_size": int,
    "learning_rate": float,
    "victims": Mapping,
    "crafting_images": int,
    "crafting_batch": int,
    "num_epochs": int,
    "num_images": int,
    "seeds": tuple | list,
    "attacks": Mapping,
}
"""Section `universal`: victims as in `strength`; `num_epochs` passes over the crafting images in batches.

An attack is an `attack` without its radius, `peers`, and maybe a `target`.
"""
_ATTACK_SCHEMA: Mapping[str, Any] = {"attack": Mapping, "peers": tuple | list, "target": int | None}

UNIVERSAL_SPEED_SCHEMA: Mapping[str, Any] = {
    "networks": Mapping,
    "num_classes": int,
    "batch_size": int,
    "num_images": int,
    "repeats": int,
    "devices": tuple | list,
    "attack": Mapping,
    "peers": tuple | list,
}
"""Section `universal_speed`: one pass over `num_images` images in batches."""
_NETWORK_SCHEMA: Mapping[str, Any] = {"model": Mapping, "input_shape": tuple | list}


# --- strength -------------------------------------------------------------------------------------------------------


def check_universal(section: Mapping[str, Any]) -> None:
    """Check the section `universal` of a config before anything is read or trained.

    Raises:
        ConfigError: an unknown or missing key, name or library.
        ValueError: a number out of range.
    """
    path = "config.universal"
    check_keys(section, UNIVERSAL_SCHEMA, path)
    check_victims(section, path)
    for name in ("crafting_images", "crafting_batch", "num_epochs", "num_images"):
        require_count(name, section[name])
    for name, match in section["attacks"].items():
        check_keys(match, _ATTACK_SCHEMA, f"{path}.attacks.{name}")
        if not attack_from_config(dict(match["attack"]) | {"radius": 0.0}).shared:
            raise ValueError(f"{path}.attacks.{name}.attack has variables for each image")
        check_peers(match["peers"], UNIVERSAL_REQUIREMENTS)


def compare_universal(section: Mapping[str, Any], data: Mapping[str, Any], seed: int) -> Iterator[Row]:
    """Train each victim, make perturbations of the same images with ours and theirs, and measure them on others.

    Peers get the radius, the step size, the batches and the epochs of the attack that they are set against. Noise
    beyond the radius is cut. The Flax network judges all.

    Args:
        section: see `UNIVERSAL_SCHEMA`.
        data: arguments of `load_dataset`.
        seed: of the training.

    Returns:
        One row for each victim, attack and library: `clean_accuracy`; the means over the seeds of `accuracy` (one each
        in `by_seed`), `fooling_ratio`, `target_share` of targeted ones, and `passes`, see `Crafted`;
        `ours_minus_theirs`, by how many points ours leaves more (above 0 our attack is the weaker one).
    """
    dataset = load_dataset(**data)
    crafting = evenly_spaced(dataset.train, section["crafting_images"])
    held_out = evenly_spaced(dataset.test, section["num_images"])
    for name, spec in section["victims"].items():
        learner, victim = train_victim(section, spec, dataset, seed)
        common = {"victim": name, "radius": spec["radius"], "images": len(held_out), "crafting": len(crafting)}
        for row in _attack_victim(section, spec["radius"], learner.model, victim, crafting, held_out):
            yield common | row


def _attack_victim(
    section: Mapping[str, Any], radius: float, model: Any, victim: Classifier, crafting: Examples, held_out: Examples
) -> Iterator[Row]:
    options: dict[str, Any] = {"key": jax.random.key(0), "batch_size": section["crafting_batch"]}
    options |= {"clean": clean_answers(victim, held_out, **options)}
    for name, match in section["attacks"].items():
        target = match.get("target")
        spec = dict(match["attack"]) | {"radius": radius}
        makers = {"spa_jax": functools.partial(_ours, section, spec, victim, crafting, target)}
        for peer in match["peers"]:
            makers[peer] = functools.partial(_theirs, peer, section, spec, model, victim, crafting)
        ours: Row = {}
        for library, make in makers.items():
            made = [make(seed) for seed in section["seeds"]]
            noises = [np.clip(own.noise, -radius, radius) for own in made]
            records = [measure_universal(uap(radius), victim, held_out, v, target=target, **options) for v in noises]
            row = _summary(records, made)
            ours = ours or row
            points = 100 * (ours["accuracy"] - row["accuracy"])
            yield {"attack": name, "target": target, "library": library} | row | {"ours_minus_theirs": points}


def _summary(records: Sequence[UniversalRecord], made: Sequence[Crafted]) -> Row:
    targeted = records[0].target is not None
    return {
        "clean_accuracy": float(np.mean(records[0].clean == records[0].labels)),
        "accuracy": float(np.mean([record.accuracy.value for record in records])),
        "by_seed": [record.accuracy.value for record in records],
        "fooling_ratio": float(np.mean([record.fooling_ratio.value for record in records])),
        "target_share": float(np.mean([record.target_share.value for record in records])) if targeted else None,
        "passes": float(np.mean([own.passes for own in made])),
    }


def _ours(
    section: Mapping[str, Any],
    spec: Mapping[str, Any],
    victim: Classifier,
    crafting: Examples,
    target: int | None,
    seed: int,
) -> Crafted:
    """One batch of all images for the accumulation of vectors, which goes through it image by image."""
    attack: Any = attack_from_config(spec)
    batch_size = len(crafting) if isinstance(attack, Accumulated) else section["crafting_batch"]
    shown = [0]
    state = craft(
        attack,
        victim,
        crafting,
        key=jax.random.key(seed),
        batch_size=batch_size,
        num_epochs=section["num_epochs"],
        target=target,
        on_batch=lambda _, done, total: shown.append(done),
    )
    return Crafted(np.asarray(attack.found(state)), passes_of(state, shown[-1]))


def _theirs(
    peer: str,
    section: Mapping[str, Any],
    spec: Mapping[str, Any],
    model: Any,
    victim: Classifier,
    crafting: Examples,
    seed: int,
) -> Crafted:
    x, labels = arrays_of(crafting)
    common = {"batch_size": section["crafting_batch"], "num_epochs": section["num_epochs"], "seed": seed}
    task = universal_task(spec, model, victim.variables, x, **common)
    return make_universal_peer(peer, task)(x, labels)


def universal_task(
    spec: Mapping[str, Any],
    model: Any,
    variables: Mapping[str, Any],
    images: np.ndarray,
    batch_size: int,
    num_epochs: int,
    seed: int,
) -> UniversalTask:
    """The task of a preset such as `{"name": "uap", "radius": 0.1}`, with the steps of our attack.

    Raises:
        ConfigError: an unknown name or key.
        ValueError: a number out of range.
    """
    attack_from_config(spec)
    relative = spec.get("rel_step_size")
    step_size = spec.get("step_size") or (0.1 if relative is None else relative) * spec["radius"]
    num_steps = num_epochs * (len(images) // batch_size)
    shape = images.shape[1:]
    return UniversalTask(model, variables, shape, spec["radius"], step_size, num_steps, seed, batch_size, num_epochs)


# --- speed ----------------------------------------------------------------------------------------------------------


def check_universal_speed(section: Mapping[str, Any]) -> None:
    """Check the section `universal_speed` of a config before anything runs.

    Raises:
        ConfigError: an unknown or missing key, name or library.
        ValueError: a number out of range.
    """
    path = "config.universal_speed"
    check_keys(section, UNIVERSAL_SPEED_SCHEMA, path)
    for name, network in section["networks"].items():
        check_keys(network, _NETWORK_SCHEMA, f"{path}.networks.{name}")
        create_model(num_classes=section["num_classes"], input_shape=network["input_shape"], **network["model"])
    for name in ("batch_size", "num_images", "repeats"):
        require_count(name, section[name])
    if section["num_images"] % section["batch_size"]:
        raise ValueError(f"num_images={section['num_images']} must be a multiple of batch_size={section['batch_size']}")
    attack_from_config(section["attack"])
    check_peers(section["peers"], UNIVERSAL_REQUIREMENTS)


def time_universal(section: Mapping[str, Any], seed: int) -> Iterator[Row]:
    """One epoch of a universal perturbation, ours on each number of devices and the peers', in turns; one row each.

    Every thing has a process of its own. The floor of all is that of our first process: one compiled input gradient of
    a batch, as often as there are batches. Weights are random, and labels are the network's own answers, so that a peer
    that passes over images which are fooled already has something to do.

    Returns:
        Rows with `network`, `library`, `devices` and what `spa_jax.benchmarks.floor.summarise` gives; `slowdown` is the
        time relative to the first row of the network.
    """
    for network in section["networks"]:
        common: Spec = {"section": section, "network": network, "attack": section["attack"], "seed": seed}
        ours = {
            ("spa_jax", count): {**common, "build": f"{__name__}:universal_cell", "devices": count}
            for count in section["devices"]
        }
        build = f"{__name__}:universal_peer_cell"
        theirs = {(peer, None): {**common, "build": build, "peer": peer} for peer in section["peers"]}
        taken = time_in_turns(ours | theirs, section["repeats"])
        first = next(iter(taken.values()))
        for (library, devices), found in taken.items():
            common = {"network": network, "library": library, "devices": devices}
            yield common | _multiples(found, first) | row_of(found, section["num_images"])


def _multiples(found: Taken, first: Taken) -> Row:
    """Multiples of the floor of the first process, whichever form of it is the quicker."""
    floors = [floor_of(first, name) for name in FLOORS]
    floor, own = min(floors, key=lambda times: np.median(times.wall)), found.times["run"]
    return {
        "multiple_of_floor": median_ratio(own.wall, floor.wall),
        "cpu_multiple_of_floor": median_ratio(own.cpu, floor.cpu),
        "slowdown": median_ratio(own.wall, first.times["run"].wall),
    }


class _Data:
    """A network with random weights, and images with its answers as labels."""

    def __init__(self, section: Mapping[str, Any], network: str, seed: int) -> None:
        self.bench = Bench(section, network, seed)
        images = Bench({**section, "batch_size": section["num_images"]}, network, seed).images
        answers = [
            np.argmax(call(self.bench.victim, None, jnp.asarray(part)), -1)
            for part in np.split(images, len(images) // section["batch_size"])
        ]
        self.split = Split(images, np.concatenate(answers).astype(np.int32))


def universal_cell(
    section: Mapping[str, Any], network: str, attack: Mapping[str, Any], seed: int, devices: int = 1
) -> Cell:
    """One epoch of our attack on one number of devices, and the bare passes of its batches."""
    data, mesh, made = _Data(section, network, seed), data_mesh(jax.devices()[:devices]), attack_from_config(attack)
    options: dict[str, Any] = {"key": jax.random.key(seed), "batch_size": section["batch_size"], "mesh": mesh}
    victim = data.bench.victim
    shares, floors = bare_passes(data.bench, mesh, Passes(gradients=len(data.split) // section["batch_size"]))
    facts = {"parameters": parameter_count(data.bench.variables), "passes": shares}
    return facts, {"run": lambda: jax.block_until_ready(craft(made, victim, data.split, **options))} | floors


def universal_peer_cell(
    section: Mapping[str, Any], network: str, attack: Mapping[str, Any], seed: int, peer: str
) -> Cell:
    """One epoch of another library."""
    data = _Data(section, network, seed)
    images, labels, bench = data.split.images, data.split.labels, data.bench
    task = universal_task(attack, bench.model, bench.variables, images, section["batch_size"], 1, seed)
    made = make_universal_peer(peer, task)
    return {"parameters": parameter_count(bench.variables)}, {"run": lambda: made(images, labels)}
