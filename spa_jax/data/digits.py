"""The handwritten digits that come with scikit-learn: 1797 images of 8x8x1, at hand on every machine."""

import numpy as np

from spa_jax.data.splitting import complete_splits
from spa_jax.data.types import Dataset, Split

TEST_SIZE = 397


def load(*, validation_size: int = 200, seed: int = 0) -> Dataset:
    """Load the digits, split into 1400 - `validation_size` train, `validation_size` validation and 397 test images.

    The levels 0..16 of the source become `round(level * 255 / 16)` in uint8: 0 stays 0, 16 becomes 255, all 17 levels
    stay distinct, and an image in [0, 1] is off `level / 16` by at most 0.5 / 255. Both splits are stratified. The
    test images are always the same; which images validate depends on `seed`. Sizes and levels are our choice.

    Args:
        validation_size: number of images held out of the 1400 that do not test, 0..1399.
        seed: in 0..2**32 - 1, decides which.

    Raises:
        ValueError: an argument is out of range.
    """
    splits = complete_splits({"train": _read()}, validation_size=validation_size, seed=seed, test_size=TEST_SIZE)
    return Dataset(name="digits", image_shape=(8, 8, 1), num_classes=10, class_names=tuple("0123456789"), **splits)


def _read() -> Split:
    from sklearn.datasets import load_digits

    levels, labels = load_digits(return_X_y=True)
    images = np.rint(levels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return Split(images, labels.astype(np.int32))
