"""Universal perturbations of other libraries, and a hand-written PyTorch loop, behind one small interface.

Each is imported only when it is made, and given its best case, as in `spa_jax.benchmarks.peers`.
"""

import dataclasses
import os
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from spa_jax.benchmarks.peers import Counted, Task, art_classifier, check_peers, seed_libraries, to_torch_images


class Crafted(NamedTuple):
    """A universal perturbation and what it took.

    Attributes:
        noise: [h, w, c].
        passes: forward passes of one image, each with its backward pass; alone they count half.
    """

    noise: Float[np.ndarray, "h w c"]
    passes: float


UniversalPeer: TypeAlias = Callable[[np.ndarray, np.ndarray], Crafted]
"""`(images [n, h, w, c] in [0, 1], labels [n]) -> Crafted`, NumPy to NumPy."""


@dataclasses.dataclass(frozen=True)
class UniversalTask(Task):
    """The perturbation that every peer makes.

    Attributes:
        batch_size: images of a step.
        num_epochs: passes over the images.
        cap: at which the cross entropy of an image is clipped.
    """

    batch_size: int
    num_epochs: int
    cap: float = 9.0


def make_universal_peer(name: str, task: UniversalTask) -> UniversalPeer:
    """The peer of that name, ready to be called; its order comes from the task's seed.

    Raises:
        ConfigError: the name is unknown, or its library is not installed.
    """
    check_peers([name], UNIVERSAL_REQUIREMENTS)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when PyTorch is imported
    return UNIVERSAL_PEERS[name](task)


def _torch_loop(task: UniversalTask) -> UniversalPeer:
    import torch

    seed_libraries(task.seed)
    counted = Counted(task.torch_module().to(memory_format=torch.channels_last))

    def run(images: np.ndarray, labels: np.ndarray) -> Crafted:
        counted.reset()
        x, y = to_torch_images(images, channels_last=True), torch.from_numpy(np.array(labels, np.int64))
        noise = _climb(task, counted.module, x, y)
        return Crafted(noise[0].permute(1, 2, 0).contiguous().numpy(), (counted.forwards + counted.backwards) / 2)

    return run


def _climb(task: UniversalTask, module: Any, x: Any, y: Any) -> Any:
    """SGD-UAP as one would write it for speed: one gradient of the mean clipped loss a batch, its sign, the ball."""
    import torch

    noise = torch.zeros_like(x[:1])
    for _ in range(task.num_epochs):
        order = torch.randperm(len(x))
        for rows in order.split(task.batch_size)[: len(x) // task.batch_size]:
            noise.requires_grad_(True)
            losses = torch.nn.functional.cross_entropy(module((x[rows] + noise).clamp(0, 1)), y[rows], reduction="none")
            (gradient,) = torch.autograd.grad(losses.clamp(max=task.cap).mean(), noise)
            noise = noise.detach().add_(gradient.sign_(), alpha=task.step_size).clamp_(-task.radius, task.radius)
    return noise


def _art(task: UniversalTask) -> UniversalPeer:
    from art.attacks.evasion import UniversalPerturbation

    classifier = art_classifier(task)
    seed_libraries(task.seed)
    counted = Counted(classifier.model)
    attack = UniversalPerturbation(
        classifier,
        attacker="deepfool",
        attacker_params={"verbose": False},
        delta=0.0,
        max_iter=task.num_epochs,
        eps=task.radius,
        batch_size=task.batch_size,
        verbose=False,
    )

    def run(images: np.ndarray, labels: np.ndarray) -> Crafted:
        random.seed(task.seed)  # ART draws its order from Python's generator
        counted.reset()
        attack.generate(np.ascontiguousarray(np.asarray(images).transpose(0, 3, 1, 2)), np.asarray(labels))
        return Crafted(attack.noise[0].transpose(1, 2, 0), (counted.forwards + counted.backwards) / 2)

    return run


UNIVERSAL_PEERS: Mapping[str, Callable[[UniversalTask], UniversalPeer]] = {
    "torch_loop_uap": _torch_loop,
    "art_universal": _art,
}
"""The other libraries' universal perturbations by the name a config gives them.

ART's is the accumulation of DeepFool's vectors (Moosavi-Dezfooli et al. 2017) until all images are fooled or the epochs
are over. It takes no step size, and more passes an epoch.
"""

UNIVERSAL_REQUIREMENTS: Mapping[str, tuple[str, ...]] = {
    "torch_loop_uap": ("torch",),
    "art_universal": ("torch", "art"),
}
"""The libraries that each of them imports."""
