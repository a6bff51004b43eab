"""What an attack accepts: public entries check their arrays here, where they are concrete, before anything compiles."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spa_jax.types import Images, Keys, Predict

_ROUNDING = 1e-6
_GAP_WITHOUT_GRADIENT = 80


def is_traced(*arrays: Any) -> bool:
    """Whether any of them has no value yet, inside `jit`, `vmap` or `grad`."""
    return any(isinstance(array, jax.core.Tracer) for array in arrays)


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
    """Refuse a value that is none of the choices.

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


def checked_images(x: Any) -> Any:
    """Images as float [b, h, w, c] in [0, 1]; rounding errors up to 1e-6 outside are cut off.

    Raises:
        ValueError: not a floating dtype, wrong rank, empty batch, NaN, or values outside of [0, 1].
    """
    if not hasattr(x, "dtype") or not hasattr(x, "shape"):
        raise ValueError(f"x={type(x).__name__} must be an array of images [b, h, w, c]")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x.dtype={x.dtype} must be floating with pixels in [0, 1]; for uint8 pixels pass x / 255.0")
    if x.ndim != 4:
        raise ValueError(f"x.shape={x.shape!r} must have rank 4, [batch, height, width, channels]")
    if 0 in x.shape:
        raise ValueError(f"x.shape={x.shape!r} must not be empty")
    if is_traced(x):
        return x
    return _in_unit_range(x)


def _in_unit_range(x: Any) -> Any:
    low, high = _extremes(x)
    if np.isnan(low) or np.isnan(high):
        raise ValueError("x must not hold NaN")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(
            f"x.min()={low:g}, x.max()={high:g}: pixels must lie in [0, 1]; put the normalisation into the victim "
            "(spa_jax.normalize)"
        )
    return jnp.clip(x, 0, 1) if low < 0 or high > 1 else x


def _extremes(array: Any) -> tuple[float, float]:
    """Smallest and largest value of an array that is known, also where an enclosing program is being traced."""
    with jax.ensure_compile_time_eval():
        return float(jnp.min(array)), float(jnp.max(array))


def checked_labels(y: Any, batch: int) -> Any:
    """Labels as int32 [b].

    Raises:
        ValueError: not integers, or not one per image.
    """
    y = jnp.asarray(y)
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"y.dtype={y.dtype} must be an integer dtype of class indices")
    if y.shape != (batch,):
        raise ValueError(f"y.shape={y.shape!r} must be ({batch},), one label per image")
    return y.astype(jnp.int32)


def checked_keys(key: Any, batch: int) -> Keys:
    """One key per example, [b]: the given ones, or a single key folded with each example's position.

    Raises:
        ValueError: not a key of `jax.random.key`, or keys of another batch size.
    """
    if not (hasattr(key, "dtype") and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)):
        if getattr(key, "dtype", None) == jnp.uint32 and getattr(key, "shape", None) == (2,):
            key = jax.random.wrap_key_data(key)
        else:
            raise ValueError(f"key={key!r} must be a key: make one with jax.random.key(seed)")
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"key.shape={key.shape!r} must be () or ({batch},), one key per image")
    return key


def check_victim(predict: Predict, keys: Keys, x: Any, y: Any) -> None:
    """The victim's output has the form of logits, and every label is one of its classes.

    Raises:
        ValueError: output not floating [b, k]; a label out of range.
    """
    logits = jax.eval_shape(_call, predict, keys, x)
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != x.shape[0]:
        raise ValueError(f"predict(keys, x) has shape {shape!r}, must be logits [b, k] with b={x.shape[0]}")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"predict(keys, x) has dtype {logits.dtype}, must be floating logits")
    if is_traced(y):
        return
    low, high = map(int, _extremes(y))
    if low < 0 or high >= shape[1]:
        raise ValueError(
            f"y.min()={low}, y.max()={high}: labels must lie in [0, {shape[1] - 1}] for {shape[1]} classes"
        )


@jax.jit
def _call(predict: Predict, keys: Keys, x: Any) -> Any:
    return predict(keys, x)


def check_logits(predict: Predict, keys: Keys | None, images: Images) -> None:
    """Check on a few images that a victim returns usable logits: temperature and softmax are not part of it.

    Warns:
        UserWarning: most predictions are saturated (the two largest logits lie more than 80 apart: all other classes
            have probability 0 in float32), so cross entropy has no gradient; use the scale-invariant `dlr` or `margin`.

    Raises:
        ValueError: the output is not [b, k] of finite floats, or its rows are probabilities.
    """
    logits = np.asarray(predict(keys, images), np.float32)
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
