"""Minimal-norm attacks of other libraries behind one small interface.

Each is imported only when it is made, and given its best case, as in `spa_jax.benchmarks.peers`: foolbox without its
final check and without a radius, torchattacks and AutoAttack's authors' code with one that no image exceeds.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float

from spa_jax.benchmarks.peers import Counted, Task, check_peers, in_torch, seed_libraries

_NO_RADIUS = 1e9


class Found(NamedTuple):
    """The nearest images that were found, and what that took.

    Attributes:
        images: [n, h, w, c]; the clean ones where nothing was found.
        forwards, backwards: forward and backward passes of one image, over all images.
    """

    images: Float[np.ndarray, "n h w c"]
    forwards: int
    backwards: int


NormPeer: TypeAlias = Callable[[np.ndarray, np.ndarray], Found]
"""`(images [n, h, w, c] in [0, 1], labels [n]) -> Found`, NumPy to NumPy."""


def make_norm_peer(name: str, task: Task) -> NormPeer:
    """The peer of that name, ready to be called; its draws come from the task's seed.

    Args:
        name: one of `NORM_PEERS`.
        task: of which the radius and the step size are not read.

    Raises:
        ConfigError: the name is unknown, or its library is not installed.
    """
    check_peers([name], NORM_REQUIREMENTS)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when PyTorch is imported
    counted = Counted(task.torch_module())
    attack = in_torch(NORM_PEERS[name](task, counted.module))

    def run(images: np.ndarray, labels: np.ndarray) -> Found:
        seed_libraries(task.seed)
        counted.reset()
        found = attack(images, labels)
        return Found(found, counted.forwards, counted.backwards)

    return run


def _foolbox(attack: str, **options: Any) -> Callable[[Task, Any], Any]:
    def make(task: Task, module: Any) -> Any:
        import foolbox

        model = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
        made = getattr(foolbox.attacks, attack)(steps=task.num_steps, **options)
        return lambda x, y: made.run(model, x, foolbox.criteria.Misclassification(y))

    return make


def _fab(norm: str) -> Callable[[Task, Any], Any]:
    def make(task: Task, module: Any) -> Any:
        import torchattacks

        return torchattacks.FAB(module, norm=norm, eps=_NO_RADIUS, steps=task.num_steps, seed=task.seed)

    return make


def _fab_of_its_authors(task: Task, module: Any) -> Any:
    from autoattack.fab_pt import FABAttack_PT

    attack = FABAttack_PT(module, norm="L1", n_iter=task.num_steps, eps=_NO_RADIUS, seed=task.seed, device="cpu")
    return attack.perturb


NORM_PEERS: Mapping[str, Callable[[Task, Any], Any]] = {
    "foolbox_deepfool_l2": _foolbox("L2DeepFoolAttack", candidates=10),
    "foolbox_deepfool_linf": _foolbox("LinfDeepFoolAttack", candidates=10),
    "foolbox_ddn": _foolbox("DDNAttack"),
    "foolbox_fmn_l2": _foolbox("L2FMNAttack"),
    "foolbox_fmn_linf": _foolbox("LInfFMNAttack"),
    "foolbox_fmn_l1": _foolbox("L1FMNAttack"),
    "torchattacks_fab_l2": _fab("L2"),
    "torchattacks_fab_linf": _fab("Linf"),
    "autoattack_authors_fab_l1": _fab_of_its_authors,
}
"""The other libraries' minimal-norm attacks by the name a config gives them.

FAB in l1 is that of AutoAttack's authors, since torchattacks 3.5.1 fails there.
"""

NORM_REQUIREMENTS: Mapping[str, tuple[str, ...]] = {name: ("torch", name.split("_")[0]) for name in NORM_PEERS}
"""The libraries that each of them imports."""
