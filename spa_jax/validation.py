"""What an attack accepts: public entries check their arrays here, where they are concrete, before anything compiles."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spa_jax.trees import is_in_shard_map
from spa_jax.types import Example, Images, Keys, Predict, Victim

_ROUNDING = 1e-6
_GAP_WITHOUT_GRADIENT = 80


def is_traced(*trees: Any) -> bool:
    """Whether any of their leaves has no value yet, inside `jit`, `vmap` or `grad`."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def require_number(name: str, value: Any, rule: str, holds: Callable[[Any], bool]) -> Any:
    """`value` itself, after checking the rule where the value is known (a tracer is let through).

    Raises:
        ValueError: naming `name=value` and the rule.
    """
    if is_traced(value):
        return value
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except TypeError as error:
        raise ValueError(f"{name}={value!r} must be a number, {rule}") from error
    if math.isnan(number) or not holds(number):
        raise ValueError(f"{name}={value!r} must be {rule}")
    return number if isinstance(value, int | float) else value


def require_array(name: str, value: Any, rule: str, holds: Callable[[Any], Any]) -> Any:
    """`value` itself, after checking the rule for each of its entries where they are known.

    Raises:
        ValueError: naming `name=value` and the rule.
    """
    if not is_traced(value) and not np.all(holds(np.asarray(value))):
        raise ValueError(f"{name}={value!r} must hold {rule}")
    return value


def require_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse a value that is not one of the choices.

    Raises:
        ValueError: naming `name=value` and the choices.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(choices)}")


def require_count(name: str, value: Any) -> None:
    """Check that a structural number, known before tracing, is an integer of at least 1.

    Raises:
        ValueError: naming `name=value` and the rule.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be an integer of at least 1")


def checked_examples(
    images: Any, labels: Any, target: Any = None, weight: Any = None, reference: Any = None
) -> Example:
    """Images, labels and what else is known of them as a batch of examples; forms are checked, values are not read.

    Raises:
        ValueError: images are not floating [b, h, w, c], or another array does not have one entry for each image.
    """
    _check_images(images)
    batch = images.shape[0]
    labels = _checked_classes("labels", labels, batch)
    target = None if target is None else _checked_classes("target", target, batch)
    weight = None if weight is None else jnp.asarray(weight, images.dtype)
    reference = None if reference is None else jnp.asarray(reference)
    if weight is not None and weight.shape != (batch,):
        raise ValueError(f"weight.shape={weight.shape!r} must be ({batch},), one number for each image")
    if reference is not None and (reference.ndim != 2 or reference.shape[0] != batch):
        raise ValueError(f"reference.shape={reference.shape!r} must be ({batch}, k), logits for each image")
    return Example(jnp.asarray(images), labels, target, weight, reference)


def _check_images(x: Any) -> None:
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        raise ValueError(f"images={type(x).__name__} must be an array of images [b, h, w, c]")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"images.dtype={x.dtype} must be floating with pixels in [0, 1]; for uint8 take images / 255.0"
        )
    if x.ndim != 4:
        raise ValueError(f"images.shape={x.shape!r} must have rank 4, [batch, height, width, channels]")
    if 0 in x.shape:
        raise ValueError(f"images.shape={x.shape!r} must not be empty")


def _checked_classes(name: str, y: Any, batch: int) -> Any:
    """Class indices as int32 [b]; 64-bit integers of NumPy are checked before they are cast."""
    if y is None:
        raise ValueError(f"{name}=None must be class indices, one for each image")
    y = y if isinstance(y, jax.Array) or is_traced(y) else np.asarray(y)
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"{name}.dtype={y.dtype} must be an integer dtype of class indices")
    if y.shape != (batch,):
        raise ValueError(f"{name}.shape={y.shape!r} must be ({batch},), one class for each image")
    if isinstance(y, np.ndarray) and (y.min() < 0 or y.max() > np.iinfo(np.int32).max):
        raise ValueError(f"{name}.min()={y.min()}, {name}.max()={y.max()}: classes are numbered from 0")
    return jnp.asarray(y, jnp.int32)


def checked_keys(key: Any, batch: int, shared: bool = False) -> Keys:
    """One key for each example, [b]: the given ones, or a single key folded with each example's position.

    Shared variables keep the single key.

    Raises:
        ValueError: not a key of `jax.random.key`, keys of another batch size, or several for shared variables.
    """
    if not (hasattr(key, "dtype") and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)):
        if getattr(key, "dtype", None) == jnp.uint32 and getattr(key, "shape", None) == (2,):
            key = jax.random.wrap_key_data(key)
        else:
            raise ValueError(f"key={key!r} must be a key: make one with jax.random.key(seed)")
    if shared:
        if key.ndim:
            raise ValueError(f"key.shape={key.shape!r}: variables that all images share take a single key")
        return key
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"key.shape={key.shape!r} must be () or ({batch},), one key for each image")
    return key


def check_values(predict: Predict, keys: Keys, examples: Example, size: int | None = None) -> None:
    """The victim returns logits, every class is one of its classes, and pixels lie in [0, 1] up to rounding.

    Values are read where they are known, all at once.

    Args:
        predict: the victim as the engine calls it.
        keys: [b], or a single one.
        examples: of `checked_examples`.
        size: how many images the victim sees at a time. Default: all of them.

    Raises:
        ValueError: output not floating [b, k]; a class out of range; NaN, pixels outside of [0, 1]; a negative weight.
    """
    batch = len(examples.image) if size is None else size
    own = jnp.broadcast_to(keys, batch) if keys.ndim == 0 else keys[:batch]
    call = _call.__wrapped__ if is_in_shard_map() else _call  # type: ignore[attr-defined]
    logits = jax.eval_shape(lambda *inputs: call(predict, *inputs), own, examples.image[:batch])
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != batch:
        raise ValueError(f"victim(images) has shape {shape!r}, must be logits [b, k] with b={batch}")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"victim(images) has dtype {logits.dtype}, must be floating logits")
    known = {"images": examples.image, "labels": examples.label, "target": examples.target, "weight": examples.weight}
    known = {name: array for name, array in known.items() if array is not None and not is_traced(array)}
    with jax.ensure_compile_time_eval():
        extremes = {name: np.asarray(both, np.float64) for name, both in _extremes(known).items()}
    for name, (low, high) in extremes.items():
        if name == "images":
            _check_pixels(low, high)
        elif name == "weight":
            if not (low >= 0 and np.isfinite(high)):
                raise ValueError(f"weight.min()={low:g}, weight.max()={high:g}: weights must be 0 or larger")
        elif low < 0 or high >= shape[1]:
            raise ValueError(
                f"{name}.min()={low:.0f}, {name}.max()={high:.0f}: classes must lie in [0, {shape[1] - 1}] for "
                f"{shape[1]} classes"
            )


@jax.jit
def _extremes(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: jnp.stack([jnp.min(array), jnp.max(array)]) for name, array in arrays.items()}


@jax.jit
def _call(predict: Predict, keys: Keys, x: Any) -> Any:
    return predict(keys, x)


def _check_pixels(low: float, high: float) -> None:
    if np.isnan(low) or np.isnan(high):
        raise ValueError("images must not hold NaN")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(
            f"images.min()={low:g}, images.max()={high:g}: pixels must lie in [0, 1]; put the normalisation into the "
            "victim (spa_jax.normalize)"
        )


def check_logits(victim: Victim, images: Images, keys: Keys | None = None) -> None:
    """Check on a few images that a victim returns usable logits: temperature and softmax are not part of it.

    Args:
        victim: a function of images, or with `keys` of keys and images.
        images: [b, h, w, c] in [0, 1].
        keys: [b], for a randomised victim.

    Warns:
        UserWarning: most predictions are saturated (the two largest logits lie more than 80 apart: all other classes
            have probability 0 in float32), so cross entropy has no gradient; use the scale-invariant `dlr` or `margin`.

    Raises:
        ValueError: the output is not [b, k] of finite floats, or its rows are probabilities.
    """
    logits = np.asarray(victim(images) if keys is None else victim(keys, images), np.float32)
    if logits.ndim != 2 or logits.shape[0] != images.shape[0]:
        raise ValueError(f"logits.shape={logits.shape!r} must be (b, k) with b={images.shape[0]}")
    if not np.all(np.isfinite(logits)):
        raise ValueError("logits must be finite: the victim returned NaN or infinity")
    if np.all(logits >= 0) and np.allclose(logits.sum(-1), 1, atol=1e-3):
        raise ValueError("logits sum to 1: the victim returns probabilities; remove its softmax and return raw scores")
    top = np.sort(logits, axis=-1)
    if logits.shape[1] > 1 and np.mean(top[:, -1] - top[:, -2] > _GAP_WITHOUT_GRADIENT) > 0.5:
        warnings.warn(
            "the victim's logits are saturated: cross entropy has no gradient; use dlr or margin", stacklevel=2
        )
