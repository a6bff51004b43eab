"""Solvers: how the variables of an attack climb, one step at a time."""

from spa_jax.solvers.apgd import Apgd, apgd
from spa_jax.solvers.base import Best, Problem, better, fold_in, is_stronger
from spa_jax.solvers.gradient import ProjectedGradient, projected_gradient, steepest, take_turns
from spa_jax.solvers.search import Grid, RandomSearch, grid, random_search

__all__ = [
    "Apgd",
    "Best",
    "Grid",
    "Problem",
    "ProjectedGradient",
    "RandomSearch",
    "apgd",
    "better",
    "fold_in",
    "grid",
    "is_stronger",
    "projected_gradient",
    "random_search",
    "steepest",
    "take_turns",
]
