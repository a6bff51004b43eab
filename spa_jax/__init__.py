"""Semantic-preserving adversarial attacks and training in JAX: the pure attack functions, importable one by one."""

from spa_jax.attacks import apgd_ce, apgd_dlr, attribute_attack, cw, fgsm, make_attack, mi_fgsm, noise_attack, pgd
from spa_jax.attributes import EDITS, Edit, get_edit
from spa_jax.catalogue import ATTACKS, attack_from_config
from spa_jax.combinators import in_chunks, restarts, shrunk, targeted, with_fields, worst_of
from spa_jax.generated_noise import generated_noise
from spa_jax.inputs import check_logits
from spa_jax.losses import (
    capped_cross_entropy,
    cross_entropy,
    dlr,
    kl_divergence,
    margin,
    smoothed_cross_entropy,
    targeted_cross_entropy,
    targeted_dlr,
    targeted_margin,
)
from spa_jax.manipulators import Manipulator, manipulator
from spa_jax.predict import classifier, eot, normalize, purify, straight_through, victim
from spa_jax.semantic import SpaResult, spa
from spa_jax.solvers import apgd, grid, projected_gradient, random_search, solve, steepest, take_turns
from spa_jax.spaces import attribute, chain, l1, l2, latent, linf, per_example, universal
from spa_jax.types import Example, Result

__all__ = [
    "ATTACKS",
    "EDITS",
    "Edit",
    "Example",
    "Manipulator",
    "Result",
    "SpaResult",
    "apgd",
    "apgd_ce",
    "apgd_dlr",
    "attack_from_config",
    "attribute",
    "attribute_attack",
    "capped_cross_entropy",
    "chain",
    "check_logits",
    "classifier",
    "cross_entropy",
    "cw",
    "dlr",
    "eot",
    "fgsm",
    "generated_noise",
    "get_edit",
    "grid",
    "in_chunks",
    "kl_divergence",
    "l1",
    "l2",
    "latent",
    "linf",
    "make_attack",
    "manipulator",
    "margin",
    "mi_fgsm",
    "noise_attack",
    "normalize",
    "per_example",
    "pgd",
    "projected_gradient",
    "purify",
    "random_search",
    "restarts",
    "shrunk",
    "smoothed_cross_entropy",
    "solve",
    "spa",
    "steepest",
    "straight_through",
    "take_turns",
    "targeted",
    "targeted_cross_entropy",
    "targeted_dlr",
    "targeted_margin",
    "universal",
    "victim",
    "with_fields",
    "worst_of",
]
