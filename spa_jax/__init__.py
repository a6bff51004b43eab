"""Semantic-preserving adversarial attacks and training in JAX: the pure attack functions, importable one by one.

The presets and what most programs need stand here; `spaces`, `losses`, `goals`, `solvers` and `victims` hold the rest.
"""

from spa_jax import goals, losses, solvers, spaces, victims
from spa_jax.attacks import (
    ATTACKS,
    AttackState,
    apgd_ce,
    apgd_dlr,
    attack_from_config,
    attribute_attack,
    cb_uap,
    crafted_on,
    cw,
    deepfool_uap,
    fgsm,
    in_chunks,
    make_attack,
    mi_fgsm,
    noise_attack,
    pgd,
    restarts,
    spa,
    spat,
    stage,
    uap,
    worst_of,
)
from spa_jax.edits import EDITS, Edit, get_edit
from spa_jax.manipulators import Manipulator, manipulator
from spa_jax.parallel import on_all_devices
from spa_jax.spaces import attribute, chain, generated_noise, per_example, universal
from spa_jax.types import Example, Result
from spa_jax.validation import check_logits
from spa_jax.victims import (
    classifier,
    eot,
    fixed_draw,
    majority_vote,
    normalize,
    purify,
    randomized,
    straight_through,
)

__all__ = [
    "ATTACKS",
    "EDITS",
    "AttackState",
    "Edit",
    "Example",
    "Manipulator",
    "Result",
    "apgd_ce",
    "apgd_dlr",
    "attack_from_config",
    "attribute",
    "attribute_attack",
    "cb_uap",
    "chain",
    "check_logits",
    "classifier",
    "crafted_on",
    "cw",
    "deepfool_uap",
    "eot",
    "fgsm",
    "fixed_draw",
    "generated_noise",
    "get_edit",
    "goals",
    "in_chunks",
    "losses",
    "majority_vote",
    "make_attack",
    "manipulator",
    "mi_fgsm",
    "noise_attack",
    "normalize",
    "on_all_devices",
    "per_example",
    "pgd",
    "purify",
    "randomized",
    "restarts",
    "solvers",
    "spa",
    "spaces",
    "spat",
    "stage",
    "straight_through",
    "uap",
    "universal",
    "victims",
    "worst_of",
]
