"""CelebA: faces with 40 binary attributes, one of which is the class."""

import os
from collections.abc import Sequence

from spa_jax.data import tfds_source
from spa_jax.data.images import ImageSize
from spa_jax.data.streaming import MEMORY_LIMIT
from spa_jax.data.types import Dataset


def load(
    *,
    data_dir: str | os.PathLike | None = None,
    validation_size: int | None = None,
    image_size: ImageSize = 64,
    label_attribute: str = "Smiling",
    attributes: str | Sequence[str] = "all",
    memory_limit: int = MEMORY_LIMIT,
) -> Dataset:
    """Load the aligned faces of Liu, Luo, Wang and Tang (2015) that tensorflow-datasets has prepared.

    Of an image of 218x178 the central square of 178x178 is scaled to `image_size`, which leaves the face. The set has
    its own train, validation and test splits: 162,770, 19,867 and 19,962 images. At the default size they take 2.5 GB
    and are read on demand, unless `memory_limit` allows more.

    Args:
        data_dir: as in `tfds_source.load`.
        validation_size: None, since the set has a validation split.
        image_size: side, 64 and 128 being usual, or (height, width), which crops to that shape instead.
        label_attribute: the attribute to classify; class 1 has it.
        attributes: which ones go into `attribute`, as -1 or +1: a name, several, or `"all"` 40 in the order of their
            names. The one to classify may be among them. `5_o_Clock_Shadow` is called `_5_o_Clock_Shadow`.
        memory_limit: in bytes.

    Raises:
        DataNotFoundError: the set is not there; the message holds the command that prepares it.
        ValueError: an attribute is unknown, or an argument breaks its rule.
    """
    return tfds_source.load(
        dataset="celeb_a",
        data_dir=data_dir,
        validation_size=validation_size,
        image_size=image_size,
        label_attribute=label_attribute,
        attributes=attributes,
        memory_limit=memory_limit,
    )
