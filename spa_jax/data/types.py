"""What a data set is: three splits of labelled images that can be fetched by index, and the facts a model needs."""

import keyword
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from jaxtyping import Int, Shaped

from spa_jax.validation import require_channels_last, require_unit_range

ImageArray: TypeAlias = Shaped[np.ndarray, "n h w c"]
LabelArray: TypeAlias = Int[np.ndarray, " n"]
IndexArray: TypeAlias = Int[np.ndarray, " b"]
ImageShape: TypeAlias = tuple[int, int, int]
Batch: TypeAlias = dict[str, np.ndarray]
"""One array for each field, with the examples along the first axis."""


@runtime_checkable
class Examples(Protocol):
    """Labelled images in a fixed order, fetched by index: `Split` holds them in memory, `StreamedSplit` reads them."""

    @property
    def labels(self) -> LabelArray | None:
        """int32 `[n]`, or None where it is known only from the images."""
        ...

    def __len__(self) -> int:
        """Number of examples."""
        ...

    def take(self, indices: IndexArray) -> Batch:
        """Fetch `image`, `label` and, where there is one, `attribute` of the examples at `indices`, in that order."""
        ...

    def subset(self, indices: IndexArray) -> "Examples":
        """The examples at `indices`, in that order, as a split of their own."""
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """Examples held in memory.

    Attributes:
        images: uint8 in 0..255 or float32 in [0, 1], `[n, h, w, c]`.
        labels: int32 `[n]`.
        attribute: None or float32 `[n, m]`: column i is attribute i of the data set's `attributes`, in its unit.

    Raises:
        ValueError: a dtype is another one, an array's rank is wrong or the lengths differ.
    """

    images: np.ndarray
    labels: np.ndarray
    attribute: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Check dtypes, ranks and lengths."""
        _check_array("images", self.images, (np.uint8, np.float32), ranks=(4,), length=len(self.labels))
        _check_array("labels", self.labels, (np.int32,), ranks=(1,), length=len(self.labels))
        if self.attribute is not None:
            _check_array("attribute", self.attribute, (np.float32,), ranks=(2,), length=len(self.labels))

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.labels)

    def take(self, indices: IndexArray) -> Batch:
        """Fetch `image`, `label` and, where there is one, `attribute` of the examples at `indices`, in that order."""
        batch = {"image": self.images[indices], "label": self.labels[indices]}
        if self.attribute is not None:
            batch["attribute"] = self.attribute[indices]
        return batch

    def subset(self, indices: IndexArray) -> "Split":
        """The examples at `indices`, in that order, as a split of their own (a copy)."""
        attribute = None if self.attribute is None else self.attribute[indices]
        return Split(self.images[indices], self.labels[indices], attribute)


@dataclass(frozen=True)
class AttributeInfo:
    """What one column of `attribute` holds.

    Attributes:
        name: an identifier, so that it can name an edit, a variable or an argument: `"rotation"`.
        unit: of its values: `"degrees"`, `"pixels"`, `"-1 or +1"`.

    Raises:
        ValueError: `name` is not a Python identifier.
    """

    name: str
    unit: str

    def __post_init__(self) -> None:
        """Check the name."""
        if not self.name.isidentifier() or keyword.iskeyword(self.name):
            raise ValueError(f"name={self.name!r}; an attribute's name must be an identifier, such as 'stroke_width'")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set for classification.

    Attributes:
        name: what was loaded.
        image_shape: height, width and channels of every image.
        num_classes: labels are 0..num_classes - 1.
        class_names: one name a class, in the order of the labels.
        train: examples to learn from.
        validation: examples held out of the training data, to choose and to stop by.
        test: examples for the final report only.
        attributes: what the columns of `attribute` hold; empty without attributes.

    Raises:
        ValueError: `class_names` does not name `num_classes` classes, or two attributes have one name; there are no
            examples to learn from or to test with; labels are out of range; or a split in memory has another number of
            attributes, images of another shape, or pixels that are NaN or outside of [0, 1].
    """

    name: str
    image_shape: ImageShape
    num_classes: int
    class_names: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    attributes: tuple[AttributeInfo, ...] = ()

    def __post_init__(self) -> None:
        """Check the names, and the examples as far as they are at hand."""
        if len(self.class_names) != self.num_classes:
            raise ValueError(f"class_names names {len(self.class_names)} classes, num_classes={self.num_classes}")
        names = self.attribute_names
        if len(set(names)) != len(names):
            raise ValueError(f"attributes={names}; their names must differ")
        require_channels_last("image_shape", self.image_shape)
        for name in self.split_sizes:
            examples = getattr(self, name)
            if not len(examples) and name != "validation":
                raise ValueError(f"the {name} split holds no examples")
            _check_labels(name, examples, self.num_classes)
            if isinstance(examples, Split):
                _check_attributes(name, examples, names)
                _check_images(name, examples, self.image_shape)

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """The names of the attributes, in their order."""
        return tuple(attribute.name for attribute in self.attributes)

    @property
    def split_sizes(self) -> dict[str, int]:
        """Number of examples of each split, by its name."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}


def _check_labels(name: str, examples: Examples, num_classes: int) -> None:
    labels = examples.labels
    if labels is not None and len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"{name}.labels.min()={labels.min()}, {name}.labels.max()={labels.max()}; labels must be in "
            f"0..{num_classes - 1}, for num_classes={num_classes}"
        )


def _check_images(name: str, examples: Split, image_shape: ImageShape) -> None:
    images = examples.images
    if images.shape[1:] != tuple(image_shape):
        raise ValueError(f"{name}.images.shape={images.shape}; every split must have image_shape={image_shape}")
    if len(images) and images.dtype != np.uint8:
        require_unit_range(f"{name}.images", images.min(), images.max())


def _check_attributes(name: str, examples: Split, names: tuple[str, ...]) -> None:
    found = 0 if examples.attribute is None else examples.attribute.shape[1]
    if found != len(names):
        raise ValueError(f"attributes names {names}, but the {name} split holds {found} attributes")


def _check_array(name: str, array: np.ndarray, dtypes: Sequence[type], ranks: Sequence[int], length: int) -> None:
    if array.dtype not in dtypes:
        raise ValueError(f"{name}.dtype={array.dtype}; it must be {' or '.join(d.__name__ for d in dtypes)}")
    if array.ndim not in ranks:
        raise ValueError(f"{name}.shape={array.shape}; its rank must be {' or '.join(map(str, ranks))}")
    if len(array) != length:
        raise ValueError(f"{name} holds {len(array)} examples, labels {length}")
