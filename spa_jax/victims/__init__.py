"""Victims: any function from images to logits, with the defences that stand before it, ready for a compiled attack.

On a CPU a victim is rewritten so that its convolutions and max-poolings are quick; `rewriting(False)` switches it off.
"""

from spa_jax.victims.catalogue import VICTIMS, victim_from_config, victim_in_words
from spa_jax.victims.draws import eot, fixed_draw, majority_vote
from spa_jax.victims.purifiers import Purifier, purifier
from spa_jax.victims.tracing import as_victim, call, rewriting, trace_for
from spa_jax.victims.transforms import TRANSFORMS, RandomTransform, rt1, rt2, rt3, transform_from_config
from spa_jax.victims.wrappers import (
    Classifier,
    bypassed,
    classifier,
    normalize,
    purification_stages,
    purify,
    randomized,
    straight_through,
)

__all__ = [
    "TRANSFORMS",
    "VICTIMS",
    "Classifier",
    "Purifier",
    "RandomTransform",
    "as_victim",
    "bypassed",
    "call",
    "classifier",
    "eot",
    "fixed_draw",
    "majority_vote",
    "normalize",
    "purification_stages",
    "purifier",
    "purify",
    "randomized",
    "rewriting",
    "rt1",
    "rt2",
    "rt3",
    "straight_through",
    "trace_for",
    "transform_from_config",
    "victim_from_config",
    "victim_in_words",
]
