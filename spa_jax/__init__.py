"""Semantic-preserving adversarial attacks and training in JAX: the pure attack functions, importable one by one."""

from spa_jax.attacks import (
    ATTACKS,
    SpaResult,
    apgd_ce,
    apgd_dlr,
    attack_from_config,
    attribute_attack,
    cw,
    fgsm,
    make_attack,
    mi_fgsm,
    pgd,
    restarts,
    spa,
    targeted,
    with_fields,
    worst_of,
)
from spa_jax.attributes import EDITS, Edit, get_edit
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
from spa_jax.predict import check_logits, classifier, eot, normalize, purify, straight_through, victim
from spa_jax.solvers import apgd, grid, projected_gradient, random_search, solve, steepest, take_turns
from spa_jax.spaces import attribute, chain, l1, l2, latent, linf, per_example, universal
from spa_jax.types import Example, Result

__all__ = [name for name in dir() if not name.startswith("_")]
