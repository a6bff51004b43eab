"""Spaces: what an attack may change about one image, and the lifts that take a space to a batch.

Every space is a frozen pytree dataclass written for ONE example; its numbers are leaves, so one compiled attack serves
every radius and range. The protocol is `spa_jax.types.Space`.
"""

from spa_jax.spaces.attribute import Attribute, attribute
from spa_jax.spaces.bank import Bank, bank
from spa_jax.spaces.base import SpaceBase
from spa_jax.spaces.chain import Chain, chain
from spa_jax.spaces.flow import Flow, flow, flow_loss
from spa_jax.spaces.generated import generated_noise, victim_gradient
from spa_jax.spaces.latent import Latent, latent
from spa_jax.spaces.lift import Lifted, per_example, universal
from spa_jax.spaces.noise import L1, L2, NORMS, LInf, l1, l2, linf, noise_ball
from spa_jax.spaces.ordered import Ordered, order_of, ordered
from spa_jax.spaces.rounded import Rounded, rounded

__all__ = [
    "L1",
    "L2",
    "NORMS",
    "Attribute",
    "Bank",
    "Chain",
    "Flow",
    "LInf",
    "Latent",
    "Lifted",
    "Ordered",
    "Rounded",
    "SpaceBase",
    "attribute",
    "bank",
    "chain",
    "flow",
    "flow_loss",
    "generated_noise",
    "l1",
    "l2",
    "latent",
    "linf",
    "noise_ball",
    "order_of",
    "ordered",
    "per_example",
    "rounded",
    "universal",
    "victim_gradient",
]
