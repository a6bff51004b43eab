"""The examples in the docstrings of the presets and combinators run and print what they say."""

import doctest

import pytest

import spa_jax
from spa_jax.perceptual import perceptual_attack, perceptual_distance

COMBINATORS = (
    spa_jax.restarts,
    spa_jax.in_chunks,
    spa_jax.worst_of,
    spa_jax.crafted_on,
    spa_jax.multi_targeted,
    spa_jax.until_broken,
    spa_jax.in_turn,
    perceptual_attack,
    perceptual_distance,
)
FUNCTIONS = (*spa_jax.ATTACKS.values(), *COMBINATORS)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_the_example_prints_what_it_says(function, capsys):
    (test,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__, module=False, globs={})
    assert test.examples
    results = doctest.DocTestRunner().run(test)
    assert results.failed == 0, capsys.readouterr().out
