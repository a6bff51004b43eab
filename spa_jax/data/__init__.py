"""Data sets by name, batches whose order is a pure function of (seed, step), and augmentation on the device."""

from spa_jax.data.augmentation import Augmentation, augment
from spa_jax.data.batching import (
    arrays_of,
    eval_batches,
    prefetch,
    steps_per_epoch,
    to_unit_float,
    train_batch,
    train_batches,
)
from spa_jax.data.registry import SOURCES, load_dataset
from spa_jax.data.rotated_mnist import rotate_dataset
from spa_jax.data.types import AttributeInfo, Batch, Dataset, Examples, Split

__all__ = [
    "SOURCES",
    "AttributeInfo",
    "Augmentation",
    "Batch",
    "Dataset",
    "Examples",
    "Split",
    "arrays_of",
    "augment",
    "eval_batches",
    "load_dataset",
    "prefetch",
    "rotate_dataset",
    "steps_per_epoch",
    "to_unit_float",
    "train_batch",
    "train_batches",
]
