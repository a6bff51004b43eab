import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spa_jax.data.ordering import Stream, permutation, random_bits, stratified_choice, uniform


def test_the_stream_is_the_recorded_one():
    assert random_bits(2, Stream.ORDER, 1, 2).tolist() == [14576148712973945080, 16933325257416982117]
    assert permutation(8, Stream.ORDER, 0, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


@given(size=st.integers(0, 200), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 10**6))
def test_permutation_holds_every_index_once(size, seed, epoch):
    assert np.array_equal(np.sort(permutation(size, Stream.ORDER, seed, epoch)), np.arange(size))


def test_streams_seeds_and_epochs_differ():
    draws = [(Stream.ORDER, 0, 0), (Stream.ORDER, 0, 1), (Stream.ORDER, 1, 0), (Stream.TEST, 0, 0)]
    assert len({random_bits(4, *draw).tobytes() for draw in draws}) == len(draws)


def test_uniform_is_uniform_on_the_unit_interval():
    draws = uniform(20000, Stream.ANGLE, 3)
    assert draws.min() >= 0 and draws.max() < 1
    counts = np.histogram(draws, bins=10, range=(0, 1))[0]
    assert np.sum((counts - 2000) ** 2 / 2000) < 27.9


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_out_of_range(seed):
    with pytest.raises(ValueError, match=f"seed={seed}"):
        permutation(3, Stream.ORDER, seed)


@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), data=st.data())
def test_stratified_choice_keeps_shares_to_within_one(labels, data):
    labels = np.asarray(labels, np.int32)
    size = data.draw(st.integers(0, len(labels)))
    chosen = stratified_choice(labels, size, Stream.VALIDATION, 7)
    assert len(chosen) == len(set(chosen.tolist())) == size
    assert np.array_equal(chosen, np.sort(chosen))
    counts = np.bincount(labels, minlength=5)
    exact = counts * size / len(labels)
    assert np.all(np.abs(np.bincount(labels[chosen], minlength=5) - exact) < 1)
