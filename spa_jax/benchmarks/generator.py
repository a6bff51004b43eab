"""Generated noise: how long a step through all mini-steps takes beside its bare passes, and the memory it needs."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spa_jax.benchmarks.cells import Bench
from spa_jax.benchmarks.floor import Times, alternate, median_ratio, summarise
from spa_jax.benchmarks.speed import Row
from spa_jax.configuration import check_keys
from spa_jax.losses import cross_entropy
from spa_jax.models import create_model, init_variables
from spa_jax.spaces import attribute, chain, per_example
from spa_jax.spaces.generated import generated_noise, victim_look
from spa_jax.training.recipes.noise_generator import NoiseObjective, generator_loss
from spa_jax.types import Example, Images, Keys, SeenVictim
from spa_jax.validation import require_count
from spa_jax.victims import randomized

GENERATOR_SCHEMA: Mapping[str, Any] = {
    "networks": Mapping,
    "generator": Mapping,
    "num_classes": int,
    "batch_size": int,
    "radius": float,
    "num_steps": int,
    "repeats": int,
}
_NETWORK_SCHEMA: Mapping[str, Any] = {"model": Mapping, "input_shape": tuple | list}
_ROTATION = 20.0


def check_generator(section: Mapping[str, Any]) -> None:
    """Check the section `generator` of a config before anything runs.

    Raises:
        ConfigError: an unknown or missing key or name.
        ValueError: a number out of range.
    """
    check_keys(section, GENERATOR_SCHEMA, "config.generator")
    for name, network in section["networks"].items():
        check_keys(network, _NETWORK_SCHEMA, f"config.generator.networks.{name}")
        create_model("noise_generator", **_form(section, network["input_shape"]), **section["generator"])
    require_count("repeats", section["repeats"])
    NoiseObjective(section["radius"], section["num_steps"])


def _form(section: Mapping[str, Any], input_shape: Any) -> dict[str, Any]:
    return {"num_classes": section["num_classes"], "input_shape": tuple(input_shape)}


def time_generator(section: Mapping[str, Any], seed: int) -> list[Row]:
    """For every network two rows: `attack`, one joint step of rotation and z, and `training`, a generator's gradient.

    `multiple_of_passes` and `cpu_multiple_of_passes` are the times relative to the step's bare passes, compiled and run
    one by one: for each mini-step a forward and a backward pass of victim and generator, and one of the victim at the
    end. The forward pass that is computed anew to save memory is not among them. `MiB` is the temporary memory of the
    compiled step, with one mini-step and with all of them, activations computed anew or `kept`.
    """
    return [row for name in section["networks"] for row in _rows_of(_Steps(section, name, seed), section, name)]


def _rows_of(steps: "_Steps", section: Mapping[str, Any], name: str) -> list[Row]:
    kinds: dict[str, Callable[..., Any]] = {"attack": steps.attack, "training": steps.training}
    total = section["num_steps"]
    runs: dict[Any, Callable[[], Any]] = {}
    memory: dict[str, Row] = {}
    for kind, make in kinds.items():
        program = make(total, True)
        sizes = [_mebibytes(made) for made in (make(1, True), program, make(total, False))]
        memory[kind] = dict(
            zip(("MiB, 1 step", f"MiB, {total} steps", f"MiB, {total} steps, kept"), sizes, strict=True)
        )
        runs[kind] = functools.partial(_wait, program)
        runs[kind, "passes"] = functools.partial(steps.run_passes, kind == "training", total)
    times = alternate(runs, section["repeats"])
    return [
        {"network": name, "step": kind} | _ratios(times[kind], times[kind, "passes"], section) | memory[kind]
        for kind in kinds
    ]


def _ratios(step: Times, passes: Times, section: Mapping[str, Any]) -> Row:
    row = summarise(step, None, section["batch_size"])
    return {
        "examples_per_s": row["examples_per_s"],
        "seconds": row["seconds"],
        "multiple_of_passes": median_ratio(step.wall, passes.wall),
        "cpu_multiple_of_passes": median_ratio(step.cpu, passes.cpu),
    }


def _wait(program: Callable[[], Any]) -> None:
    jax.block_until_ready(program())


def _mebibytes(program: Any) -> float:
    analysis: Any = program.func.memory_analysis()
    return analysis.temp_size_in_bytes / 2**20


class _Steps:
    """Compiled steps on one victim and one generator with random weights, and the passes that they are made of."""

    def __init__(self, section: Mapping[str, Any], name: str, seed: int):
        bench = Bench(section, name, seed)
        self.radius = section["radius"]
        self.model = create_model("noise_generator", **_form(section, bench.input_shape), **section["generator"])
        self.variables = init_variables(self.model, jax.random.key(seed + 1), bench.input_shape)
        self.victim = bench.predict("prepared")
        self.x, self.y = jnp.asarray(bench.images), jnp.asarray(bench.labels)
        self.z = jax.random.normal(jax.random.key(seed + 2), (len(self.x), self.model.latent_dim))
        self.passes = {training: self._passes(training) for training in (False, True)}

    def attack(self, num_steps: int, remat: bool) -> Any:
        """Loss and gradient of rotation and z; one step of the joint attack."""

        def loss(v: Any, variables: Any, victim: Any, x: Any, y: Any) -> Any:
            noise = generated_noise(self.model, variables, self.radius, num_steps=num_steps, remat=remat)
            space = per_example(chain(rotation=attribute("rotation", -_ROTATION, _ROTATION), noise=noise))
            seen = Example(x, y, key=_keys(x), predict=SeenVictim(victim))
            return jnp.sum(cross_entropy(victim(seen.key, space.apply(v, seen)), seen))

        v = {"rotation": jnp.zeros(len(self.x)), "noise": self.z}
        return _compiled(jax.value_and_grad(loss), v, self.variables, self.victim, self.x, self.y)

    def training(self, num_steps: int, remat: bool) -> Any:
        """Loss and gradient of the generator's weights."""
        objective = NoiseObjective(self.radius, num_steps, remat=remat)

        def loss(params: Any, statistics: Any, predict: Any, examples: Example) -> Any:
            victim = randomized(predict)
            return generator_loss(objective, self.model, params, statistics, victim, jnp.mean, examples)

        params, statistics = self.variables["params"], self.variables["batch_stats"]
        examples = Example(self.x, self.y, key=_keys(self.x))
        return _compiled(jax.value_and_grad(loss, has_aux=True), params, statistics, self.victim, examples)

    def run_passes(self, training: bool, num_steps: int) -> None:
        """The bare passes of a step, one after the other."""
        victim, generator = self.passes[training]
        for _ in range(num_steps):
            _wait(victim)
            _wait(generator)
        _wait(victim)

    def _passes(self, training: bool) -> tuple[Any, Any]:
        x, y, z = (jnp.repeat(leaf, 1 + training, axis=0) for leaf in (self.x, self.y, self.z))
        statistics = {"batch_stats": self.variables["batch_stats"]}
        mode: dict[str, Any] = {"train": True, "mutable": ["batch_stats"]} if training else {"train": False}

        def painted(params: Any, noise: Any, z: Any) -> Any:
            found: Any = self.model.apply({"params": params, **statistics}, x, x, noise, y, z, **mode)
            return jnp.sum((found[0] if training else found) ** 2)

        victim = _compiled(lambda victim, x: victim_look(victim, _keys(x), y)(x), self.victim, x)
        arguments = (0, 1, 2) if training else (1, 2)
        return victim, _compiled(jax.value_and_grad(painted, arguments), self.variables["params"], x, z)


def _keys(x: Images) -> Keys:
    return jax.random.split(jax.random.key(0), len(x))


def _compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    return functools.partial(jax.jit(function).lower(*arguments).compile(), *arguments)
