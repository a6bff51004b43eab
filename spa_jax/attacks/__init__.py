"""Attacks: space x loss x solver against a victim, and attacks made of attacks.

Every attack is pure steps on a visible state (`init`, `step`, `result`), calling it is all of them, and it is a frozen
pytree: its numbers (radius, ranges, step sizes) are leaves, so one compiled program serves them all; its structure
(steps, names, order) is static.
"""

from spa_jax.attacks.base import PureAttack
from spa_jax.attacks.carlini_wagner import cw
from spa_jax.attacks.cascade import autoattack, autoattack_parts, in_turn
from spa_jax.attacks.catalogue import ATTACKS, attack_from_config
from spa_jax.attacks.combinators import in_chunks, restarts, worst_of
from spa_jax.attacks.composite import caa
from spa_jax.attacks.crafted import crafted_on
from spa_jax.attacks.deepfool import deepfool
from spa_jax.attacks.fab import fab, fab_t
from spa_jax.attacks.fast_minimum_norm import ddn, fmn
from spa_jax.attacks.gradient import apgd_ce, apgd_dlr, apgd_t, fgsm, mi_fgsm, pgd, spat
from spa_jax.attacks.iterative import AttackState, IterativeAttack, Stage, make_attack, stage
from spa_jax.attacks.label_only import random_attack, rays
from spa_jax.attacks.query import square
from spa_jax.attacks.spa import attribute_attack, noise_attack, spa
from spa_jax.attacks.spatial import stadv
from spa_jax.attacks.stopping import until_broken
from spa_jax.attacks.targets import multi_targeted
from spa_jax.attacks.universal import cb_uap, deepfool_uap, uap

__all__ = [
    "ATTACKS",
    "AttackState",
    "IterativeAttack",
    "PureAttack",
    "Stage",
    "apgd_ce",
    "apgd_dlr",
    "apgd_t",
    "attack_from_config",
    "attribute_attack",
    "autoattack",
    "autoattack_parts",
    "caa",
    "cb_uap",
    "crafted_on",
    "cw",
    "ddn",
    "deepfool",
    "deepfool_uap",
    "fab",
    "fab_t",
    "fgsm",
    "fmn",
    "in_chunks",
    "in_turn",
    "make_attack",
    "mi_fgsm",
    "multi_targeted",
    "noise_attack",
    "pgd",
    "random_attack",
    "rays",
    "restarts",
    "spa",
    "spat",
    "square",
    "stadv",
    "stage",
    "uap",
    "until_broken",
    "worst_of",
]
