"""L-infinity attacks of other libraries, and hand-written PyTorch loops, behind one small interface.

Each is imported only when it is made; the README says how to install them. Each is given its best case: weights that
ask for no gradient, foolbox without its final check, ART the whole batch at once, threads that sleep while they wait
(`OMP_WAIT_POLICY`). Converting the images is part of a call; it takes about a millisecond.
"""

import dataclasses
import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import numpy as np

from spa_jax.attacks.catalogue import attack_from_config
from spa_jax.attacks.iterative import default_step
from spa_jax.benchmarks.floor import count_passes
from spa_jax.benchmarks.torch_port import to_torch
from spa_jax.errors import ConfigError, suggest

Peer: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`(images [b, h, w, c] in [0, 1], labels [b]) -> adversarial images [b, h, w, c]`, NumPy to NumPy."""


@dataclasses.dataclass(frozen=True)
class Task:
    """The attack that every peer runs.

    Attributes:
        model: the Flax network.
        variables: its weights.
        input_shape: (h, w, c) of one image.
        radius: of the l-infinity ball, on the [0, 1] scale.
        step_size: on the [0, 1] scale; the APGDs choose their own.
        num_steps: gradient steps.
        seed: of the random starts.
    """

    model: nn.Module
    variables: Mapping[str, Any]
    input_shape: tuple[int, int, int]
    radius: float
    step_size: float
    num_steps: int
    seed: int

    def torch_module(self) -> Any:
        """The network in PyTorch."""
        return to_torch(self.model, self.variables, self.input_shape)


def task_of(
    spec: Mapping[str, Any],
    model: nn.Module,
    variables: Mapping[str, Any],
    input_shape: tuple[int, int, int],
    seed: int,
) -> Task:
    """The task of a preset such as `{"name": "pgd", "radius": 8 / 255, "num_steps": 10}`, with the steps of our attack.

    Raises:
        ConfigError: an unknown name or key.
        ValueError: a number out of range.
    """
    steps = count_passes(attack_from_config(spec)).gradients
    share = spec.get("rel_step_size")
    step_size = (default_step(steps) if share is None else share) * spec["radius"]
    return Task(model, variables, input_shape, spec["radius"], spec.get("step_size") or step_size, steps, seed)


def make_peer(name: str, task: Task) -> Peer:
    """The peer of that name, ready to be called; its starts come from the global seeds of PyTorch and NumPy, set here.

    foolbox on JAX draws its starts from a key of its own, which begins at 0 in every process, whatever the seed.

    Raises:
        ConfigError: the name is unknown, or its library is not installed.
    """
    check_peers([name])
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when PyTorch is imported
    if "torch" in REQUIREMENTS[name]:
        seed_libraries(task.seed)
    return PEERS[name](task)


def check_peers(names: Sequence[str], requirements: Mapping[str, tuple[str, ...]] | None = None) -> None:
    """Check that peers exist and that what they need is installed.

    Args:
        names: of peers.
        requirements: the libraries of each peer that there is. Default: `REQUIREMENTS`.

    Raises:
        ConfigError: otherwise, naming what to install.
    """
    requirements = REQUIREMENTS if requirements is None else requirements
    for name in names:
        if name not in requirements:
            raise ConfigError(f"peer={name!r} is unknown{suggest(name, requirements)}")
    missing = sorted({library for name in names for library in requirements[name] if not _is_installed(library)})
    if missing:
        raise ConfigError(f"peers={list(names)!r} need {', '.join(missing)}: see `bench` in the README")


def _is_installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def versions(names: Sequence[str], requirements: Mapping[str, tuple[str, ...]] | None = None) -> dict[str, str]:
    """The versions of the libraries behind the peers, of which `requirements` are as for `check_peers`."""
    requirements = REQUIREMENTS if requirements is None else requirements
    libraries = sorted({library for name in names for library in requirements[name]})
    return {library: importlib.metadata.version(_PACKAGES.get(library, library)) for library in libraries}


def seed_libraries(seed: int) -> None:
    """Set the global seeds of PyTorch and NumPy."""
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed)


# --- PyTorch --------------------------------------------------------------------------------------------------------


def to_torch_images(images: np.ndarray, channels_last: bool) -> Any:
    """Images [b, h, w, c] as a tensor [b, c, h, w], in memory as they were or channels first."""
    import torch

    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).contiguous(memory_format=layout)


class Counted:
    """A network in PyTorch, and the forward and backward passes of one image that it has made."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.reset()
        [*module.children()][-1].register_forward_hook(self._forward)  # ART calls layer by layer

    def reset(self) -> None:
        """Count from 0 again."""
        self.forwards = self.backwards = 0

    def _forward(self, module: Any, inputs: Any, output: Any) -> None:
        self.forwards += len(output)
        if output.requires_grad:
            output.register_hook(self._backward)

    def _backward(self, gradient: Any) -> None:
        self.backwards += len(gradient)


def in_torch(attack: Callable[[Any, Any], Any], channels_last: bool = False) -> Peer:
    """A peer from an attack on channels-first PyTorch images."""

    def run(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        import torch

        x = to_torch_images(images, channels_last)
        adversarial = attack(x, torch.from_numpy(np.array(labels, np.int64)))
        return adversarial.detach().permute(0, 2, 3, 1).contiguous().numpy()

    return run


def _torchattacks_pgd(task: Task) -> Peer:
    import torchattacks

    attack = torchattacks.PGD(task.torch_module(), eps=task.radius, alpha=task.step_size, steps=task.num_steps)
    return in_torch(attack)


def _torchattacks_apgd(task: Task) -> Peer:
    import torchattacks

    attack = torchattacks.APGD(task.torch_module(), eps=task.radius, steps=task.num_steps, seed=task.seed, loss="ce")
    return in_torch(attack)


def _foolbox_torch_pgd(task: Task) -> Peer:
    import foolbox

    model = foolbox.PyTorchModel(task.torch_module(), bounds=(0, 1), device="cpu")
    return in_torch(lambda x, y: _foolbox_attack(task).run(model, x, _misclassified(y), epsilon=task.radius))


def _foolbox_attack(task: Task) -> Any:
    import foolbox

    return foolbox.attacks.LinfPGD(abs_stepsize=task.step_size, steps=task.num_steps, random_start=True)


def _misclassified(labels: Any) -> Any:
    import foolbox

    return foolbox.criteria.Misclassification(labels)


def _torch_loop(task: Task) -> Peer:
    import torch

    return _hand_written(task, task.torch_module().to(memory_format=torch.channels_last))


def _torch_compiled_loop(task: Task) -> Peer:
    import torch

    return _hand_written(task, torch.compile(task.torch_module().to(memory_format=torch.channels_last)))


def _hand_written(task: Task, module: Any) -> Peer:
    return in_torch(functools.partial(_loop, task, module), channels_last=True)


def _loop(task: Task, module: Any, x: Any, y: Any) -> Any:
    """PGD as one would write it for speed: channels last, bounds once, no more than a gradient a step."""
    import torch

    low, high = (x - task.radius).clamp_(min=0), (x + task.radius).clamp_(max=1)
    adversarial = torch.clamp(x + torch.empty_like(x).uniform_(-task.radius, task.radius), 0, 1)
    for _ in range(task.num_steps):
        adversarial.requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(module(adversarial), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        adversarial = adversarial.detach().add_(gradient.sign_(), alpha=task.step_size).clamp_(low, high)
    return adversarial


TrainingStep: TypeAlias = Callable[[np.ndarray, np.ndarray], float]
"""`(images [b, h, w, c], labels [b]) -> loss`: one update of the weights, from which the next call continues."""


def make_training_peer(name: str, task: Task, learning_rate: float, momentum: float) -> TrainingStep:
    """A PGD adversarial-training step of that name: the attack in inference mode, an update with momentum.

    Raises:
        ConfigError: the name is unknown, or its library is not installed.
    """
    check_training_peers([name])
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import torch

    seed_libraries(task.seed)
    module = task.torch_module().to(memory_format=torch.channels_last).requires_grad_(True)
    optimizer = torch.optim.SGD(module.parameters(), learning_rate, momentum)
    called = torch.compile(module) if name == "torch_compile_training" else module

    def step(images: np.ndarray, labels: np.ndarray) -> float:
        x, y = to_torch_images(images, channels_last=True), torch.from_numpy(np.array(labels, np.int64))
        module.eval()
        adversarial = _loop(task, called, x, y)
        module.train()
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(called(adversarial), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


TRAINING_PEERS = ("torch_loop_training", "torch_compile_training")
"""Hand-written training steps by the name a config gives them."""


def check_training_peers(names: Sequence[str]) -> None:
    """Check that training steps exist and that what they need is installed.

    Raises:
        ConfigError: otherwise, naming what to install.
    """
    for name in names:
        if name not in TRAINING_PEERS:
            raise ConfigError(f"peer={name!r} is unknown{suggest(name, TRAINING_PEERS)}")
    if names and not _is_installed("torch"):
        raise ConfigError(f"peers={list(names)!r} need torch: see `bench` in the README")


# --- ART ------------------------------------------------------------------------------------------------------------


def _art_pgd(task: Task) -> Peer:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch

    return _in_art(
        ProjectedGradientDescentPyTorch(
            art_classifier(task), eps=task.radius, eps_step=task.step_size, max_iter=task.num_steps, **_ART_OPTIONS,
            num_random_init=1,
        )
    )  # fmt: skip


def _art_apgd(task: Task) -> Peer:
    from art.attacks.evasion import AutoProjectedGradientDescent

    return _in_art(
        AutoProjectedGradientDescent(
            art_classifier(task), eps=task.radius, eps_step=2 * task.radius, max_iter=task.num_steps, **_ART_OPTIONS,
            nb_random_init=1, loss_type="cross_entropy",
        )
    )  # fmt: skip


_ART_OPTIONS = {"batch_size": 1024, "verbose": False}


def _in_art(attack: Any) -> Peer:
    def run(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        channels_first = np.ascontiguousarray(np.asarray(images).transpose(0, 3, 1, 2))
        return attack.generate(channels_first, np.asarray(labels)).transpose(0, 2, 3, 1)

    return run


def art_classifier(task: Task) -> Any:
    """The network as ART takes it."""
    import torch
    from art.estimators.classification import PyTorchClassifier

    height, width, channels = task.input_shape
    return PyTorchClassifier(
        task.torch_module(),
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=(channels, height, width),
        nb_classes=task.model.num_classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


# --- foolbox on JAX -------------------------------------------------------------------------------------------------


def _foolbox_jax_pgd(task: Task) -> Peer:
    import foolbox

    logits = jax.jit(lambda images: task.model.apply(task.variables, images, train=False))
    model = foolbox.JAXModel(logits, bounds=(0, 1))

    def run(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        x, y = jax.device_put((np.asarray(images), np.asarray(labels)))
        return np.asarray(_foolbox_attack(task).run(model, x, _misclassified(y), epsilon=task.radius))

    return run


# --- by name --------------------------------------------------------------------------------------------------------

PEERS: Mapping[str, Callable[[Task], Peer]] = {
    "torchattacks_pgd": _torchattacks_pgd,
    "torchattacks_apgd_ce": _torchattacks_apgd,
    "foolbox_torch_pgd": _foolbox_torch_pgd,
    "foolbox_jax_pgd": _foolbox_jax_pgd,
    "art_pgd": _art_pgd,
    "art_apgd_ce": _art_apgd,
    "torch_loop_pgd": _torch_loop,
    "torch_compile_pgd": _torch_compiled_loop,
}
"""The other libraries' attacks by the name a config gives them."""

REQUIREMENTS: Mapping[str, tuple[str, ...]] = {
    "torchattacks_pgd": ("torch", "torchattacks"),
    "torchattacks_apgd_ce": ("torch", "torchattacks"),
    "foolbox_torch_pgd": ("torch", "foolbox"),
    "foolbox_jax_pgd": ("foolbox",),
    "art_pgd": ("torch", "art"),
    "art_apgd_ce": ("torch", "art"),
    "torch_loop_pgd": ("torch",),
    "torch_compile_pgd": ("torch",),
}
"""The libraries that each of them imports."""

_PACKAGES = {"art": "adversarial-robustness-toolbox"}
