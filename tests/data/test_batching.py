import itertools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spa_jax.data import Split, eval_batches, prefetch, steps_per_epoch, to_unit_float, train_batch, train_batches


def numbered(size, attribute=False):
    """The image of example i shows i, its label is i % 3."""
    images = np.arange(size, dtype=np.float32).reshape(-1, 1, 1, 1)
    labels = (np.arange(size) % 3).astype(np.int32)
    return Split(images, labels, -np.arange(size, dtype=np.float32)[:, None] if attribute else None)


def numbers(batch):
    return batch["image"].ravel().astype(int)


def assert_equal_batches(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key], strict=True)


def test_shapes_and_dtypes():
    batch = train_batch(numbered(10, attribute=True), 4, seed=0, step=0)
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "image": ((4, 1, 1, 1), "float32"),
        "label": ((4,), "int32"),
        "attribute": ((4, 1), "float32"),
        "mask": ((4,), "bool"),
        "index": ((4,), "int32"),
    }
    assert batch["mask"].all() and batch["index"].tolist() == [0, 1, 2, 3]
    assert np.array_equal(batch["label"], numbers(batch) % 3)
    assert np.array_equal(batch["attribute"][:, 0], -numbers(batch))


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 40), batch_size=st.integers(1, 40), seed=st.integers(0, 99), epoch=st.integers(0, 5))
def test_an_epoch_shows_each_example_at_most_once_and_drops_less_than_a_batch(size, batch_size, seed, epoch):
    if batch_size > size:
        return
    split, steps = numbered(size), steps_per_epoch(numbered(size), batch_size)
    batches = [train_batch(split, batch_size, seed=seed, step=epoch * steps + step) for step in range(steps)]
    seen = np.concatenate([numbers(batch) for batch in batches])
    assert len(set(seen.tolist())) == len(seen) > size - batch_size


def test_epochs_and_seeds_have_their_own_order():
    split = numbered(50)
    orders = [numbers(train_batch(split, 50, seed=seed, step=step)).tolist() for seed, step in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in orders}) == 3


def test_iterator_started_anywhere_yields_the_batches_of_its_steps():
    split = numbered(23, attribute=True)
    for start in (0, 1, 7, 100):
        for step, batch in enumerate(itertools.islice(train_batches(split, 5, seed=3, start_step=start), 9), start):
            assert_equal_batches(batch, train_batch(split, 5, seed=3, step=step))


@pytest.mark.parametrize("process_count", [1, 2, 3, 6])
def test_slices_of_processes_make_up_the_global_batch(process_count):
    split = numbered(40)
    slices = [
        next(train_batches(split, 6, seed=1, start_step=9, process_index=index, process_count=process_count))
        for index in range(process_count)
    ]
    joined = {key: np.concatenate([part[key] for part in slices]) for key in slices[0]}
    assert_equal_batches(joined, train_batch(split, 6, seed=1, step=9))


@settings(max_examples=30, deadline=None)
@given(size=st.integers(0, 30), local=st.integers(1, 8), process_count=st.integers(1, 3))
def test_evaluation_shows_every_example_once_in_order(size, local, process_count):
    split, batch_size = numbered(size), local * process_count
    parts = [
        list(eval_batches(split, batch_size, process_index=index, process_count=process_count))
        for index in range(process_count)
    ]
    assert {len(part) for part in parts} == {-(-size // batch_size)}
    batches = [
        {key: np.concatenate([part[key] for part in parts_of_batch]) for key in parts_of_batch[0]}
        for parts_of_batch in zip(*parts, strict=True)
    ]
    assert all(len(batch["mask"]) == batch_size for batch in batches)
    shown = [number for batch in batches for number in numbers(batch)[batch["mask"]].tolist()]
    index = [number for batch in batches for number in batch["index"][batch["mask"]].tolist()]
    assert shown == index == list(range(size))


def test_padding_repeats_the_last_example_under_a_false_mask():
    *_, last = eval_batches(numbered(5), 4)
    assert numbers(last).tolist() == [4, 4, 4, 4]
    assert last["mask"].tolist() == [True, False, False, False]
    assert last["index"].dtype == np.int32


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_batch_size_must_fit_the_training_images(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size}"):
        train_batches(numbered(10), batch_size, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"seed": 0, "start_step": -2}, "step=-2"),
        ({"seed": 0, "process_index": 2, "process_count": 2}, "process_index=2"),
        ({"seed": 0, "process_count": 0}, "process_count=0"),
        ({"seed": 0, "process_count": 3}, "batch_size=4.*process_count=3"),
    ],
)
def test_wrong_arguments_are_errors_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_batches(numbered(10), 4, **arguments)


def test_evaluation_checks_at_once():
    with pytest.raises(ValueError, match="batch_size=0"):
        eval_batches(numbered(10), 0)


def test_errors_of_the_reading_thread_reach_the_caller():
    def fetch(step):
        if step == 2:
            raise OSError("disk gone")
        return {"step": np.asarray(step)}

    batches = prefetch(fetch, range(5))
    assert [next(batches)["step"], next(batches)["step"]] == [0, 1]
    with pytest.raises(OSError, match="disk gone"):
        next(batches)


def test_prefetch_works_two_ahead_and_stops_when_closed():
    fetched, ahead = [], threading.Event()

    def fetch(step):
        fetched.append(step)
        if step == 2:
            ahead.set()
        return {"step": np.asarray(step)}

    batches = prefetch(fetch, itertools.count())
    next(batches)
    assert ahead.wait(timeout=10)
    batches.close()
    assert max(fetched) <= 2


@pytest.mark.parametrize("convert", [to_unit_float, jax.jit(to_unit_float)])
def test_to_unit_float(convert):
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_allclose(convert(levels), levels.astype(np.float64) / 255, rtol=1e-7)
    floats = jnp.linspace(0, 1, 4).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(convert(floats), floats)
    assert convert(levels).dtype == jnp.float32
    assert float(convert(levels).max()) == 1


def test_to_unit_float_refuses_other_integers():
    with pytest.raises(ValueError, match=r"images\.dtype=int32"):
        to_unit_float(jnp.zeros((1, 2, 2, 1), jnp.int32))
