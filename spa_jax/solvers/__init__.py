"""Solvers: how the variables of an attack climb, one step at a time."""

from spa_jax.solvers.apgd import Apgd, apgd
from spa_jax.solvers.base import Best, Problem, better, fold_in, is_stronger
from spa_jax.solvers.climbed import Climbed, climbed
from spa_jax.solvers.component_wise import ComponentWise, component_wise
from spa_jax.solvers.gradient import ProjectedGradient, Rule, projected_gradient, rule, steepest, take_turns
from spa_jax.solvers.l1_apgd import L1Apgd, l1_apgd
from spa_jax.solvers.labels import LabelState, TrackLabels, track_labels
from spa_jax.solvers.mask import SharedMask, shared_mask
from spa_jax.solvers.search import Grid, RandomSearch, grid, random_search
from spa_jax.solvers.square import Square, square

__all__ = [
    "Apgd",
    "Best",
    "Climbed",
    "ComponentWise",
    "Grid",
    "L1Apgd",
    "LabelState",
    "Problem",
    "ProjectedGradient",
    "RandomSearch",
    "Rule",
    "SharedMask",
    "Square",
    "TrackLabels",
    "apgd",
    "better",
    "climbed",
    "component_wise",
    "fold_in",
    "grid",
    "is_stronger",
    "l1_apgd",
    "projected_gradient",
    "random_search",
    "rule",
    "shared_mask",
    "square",
    "steepest",
    "take_turns",
    "track_labels",
]
