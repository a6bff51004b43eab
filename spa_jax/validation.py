"""What an attack accepts: public entries check their arrays here, where they are concrete, before anything compiles."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from spa_jax.trees import is_in_shard_map
from spa_jax.types import Example, Images, Keys, Predict, Victim

_ROUNDING = 1e-6
_GAP_WITHOUT_GRADIENT = 80
_MOST_CHANNELS = 4
_LARGEST_CLASS = np.iinfo(np.int32).max
_THREEFRY = "threefry2x32"


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


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy; a bool is not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def require_count(name: str, value: Any) -> int:
    """A structural number, known before tracing, as a Python integer, after checking that it is at least 1.

    Raises:
        ValueError: naming `name=value` and the rule.
    """
    if not is_integer(value) or value < 1:
        raise ValueError(f"{name}={value!r} must be an integer of at least 1")
    return int(value)


def require_classes(name: str, classes: Sequence[int], count: int) -> None:
    """Refuse classes that are not among the `count` that there are.

    Raises:
        ValueError: naming the first one that is not.
    """
    for label in classes:
        if not is_integer(label) or not 0 <= label < count:
            raise ValueError(f"{name} holds {label!r}: classes must lie in [0, {count - 1}] for {count} classes")


def require_channels_last(name: str, shape: Sequence[int]) -> None:
    """Refuse images that are [..., channels, height, width], as their shape shows: 1 or 3 rows of many channels.

    Raises:
        ValueError: naming the shape.
    """
    height, width, channels = shape[-3:]
    if height in (1, 3) and min(width, channels) > _MOST_CHANNELS:
        raise ValueError(
            f"{name}={tuple(shape)!r} looks like [..., channels, height, width]; images must be "
            "[..., height, width, channels]: take moveaxis(images, -3, -1)"
        )


def require_unit_range(name: str, low: Any, high: Any) -> None:
    """Refuse pixels that do not lie in [0, 1], up to rounding, given the smallest and the largest.

    Raises:
        ValueError: naming them, and the range that they seem to have.
    """
    if np.isnan(low) or np.isnan(high):
        raise ValueError(f"{name} must not hold NaN")
    if low >= -_ROUNDING and high <= 1 + _ROUNDING:
        return
    seems = ""
    if low >= 0 and 1.5 < high <= 255:
        seems = "; these look like 0..255: divide by 255"
    elif low >= -1 - _ROUNDING and high <= 1 + _ROUNDING:
        seems = "; these look like -1..1: take (x + 1) / 2"
    raise ValueError(
        f"{name}.min()={low:g}, {name}.max()={high:g}: pixels must lie in [0, 1]{seems}; "
        "put a normalisation into the victim (spa_jax.normalize)"
    )


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
    require_channels_last("images.shape", x.shape)


def _checked_classes(name: str, y: Any, batch: int) -> Any:
    """Class indices as int32 [b]; larger integers stay out of range when they are cast."""
    if y is None:
        raise ValueError(f"{name}=None must be class indices, one for each image")
    y = y if isinstance(y, jax.Array) or is_traced(y) else np.asarray(y)
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(f"{name}.dtype={y.dtype} must be an integer dtype of class indices")
    if y.shape != (batch,):
        raise ValueError(f"{name}.shape={y.shape!r} must be ({batch},), one class for each image")
    if isinstance(y, np.ndarray):
        if y.min() < 0 or y.max() > _LARGEST_CLASS:
            raise ValueError(f"{name}.min()={y.min()}, {name}.max()={y.max()}: classes are numbered from 0")
    elif y.dtype.itemsize >= 4 and y.dtype != jnp.int32:
        y = jnp.clip(y, max(jnp.iinfo(y.dtype).min, -1), _LARGEST_CLASS)
    return jnp.asarray(y, jnp.int32)


def checked_keys(key: Any, batch: int, shared: bool = False) -> Keys:
    """One key for each example, [b]: the given ones, or a single key folded with each example's position.

    Shared variables keep the single key. Keys of `jax.random.key` and of `jax.random.PRNGKey` are taken. Those of
    another generator ("rbg") become threefry keys: what theirs draw would depend on the batch size.

    Raises:
        ValueError: not a key of `jax.random.key`, keys of another batch size, or several for shared variables.
    """
    key = _threefry(key)
    if shared:
        if key.ndim:
            raise ValueError(f"key.shape={key.shape!r}: variables that all images share take a single key")
        return key
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"key.shape={key.shape!r} must be () or ({batch},), one key for each image")
    return key


def _threefry(key: Any) -> Keys:
    """A key of either style and any generator as a threefry key."""
    dtype = getattr(key, "dtype", None)
    if dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        if str(jax.random.key_impl(key)) == _THREEFRY:
            return key
        words = jax.random.key_data(key)
    elif dtype == jnp.uint32 and np.shape(key)[-1:] in ((2,), (4,)):
        words = jnp.asarray(key)
    else:
        raise ValueError(f"key={key!r} must be a key: make one with jax.random.key(seed)")
    key = jax.random.wrap_key_data(words[..., :2], impl=_THREEFRY)
    fold = jax.random.fold_in if key.ndim == 0 else jax.vmap(jax.random.fold_in)
    for rest in jnp.moveaxis(words[..., 2:], -1, 0):
        key = fold(key, rest)
    return key


def check_values(predict: Predict, keys: Keys, examples: Example, size: int | None = None) -> int:
    """The victim returns logits, every class is one of its classes, and pixels lie in [0, 1] up to rounding.

    Values are read where they are known, all at once.

    Args:
        predict: the victim as the engine calls it.
        keys: [b], or a single one.
        examples: of `checked_examples`.
        size: how many images the victim sees at a time. Default: all of them.

    Returns:
        The number of classes.

    Warns:
        UserWarning: the last thing that the victim computes is a softmax or a sigmoid.

    Raises:
        ValueError: output not floating [b, k] of at least two classes; a class out of range; NaN, pixels outside of
            [0, 1]; a negative weight.
    """
    classes = _checked_logits(predict, keys, examples.image, len(examples.image) if size is None else size)
    known = {"images": examples.image, "labels": examples.label, "target": examples.target, "weight": examples.weight}
    known = {name: array for name, array in known.items() if array is not None and not is_traced(array)}
    with jax.ensure_compile_time_eval():
        extremes = {name: np.asarray(both, np.float64) for name, both in _extremes(known).items()}
    for name, (low, high) in extremes.items():
        if name == "images":
            require_unit_range(name, low, high)
        elif name == "weight":
            if not (low >= 0 and np.isfinite(high)):
                raise ValueError(f"weight.min()={low:g}, weight.max()={high:g}: weights must be 0 or larger")
        elif low < 0 or high >= classes:
            raise ValueError(
                f"{name}.min()={low:.0f}, {name}.max()={high:.0f}: classes must lie in [0, {classes - 1}] for "
                f"{classes} classes"
            )
    return classes


def _checked_logits(predict: Predict, keys: Keys, images: Images, batch: int) -> int:
    """How many classes the victim tells apart, from the form of its answer to the first `batch` images."""
    traced, logits = _traced(predict, keys, images, batch)
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != batch:
        raise ValueError(f"victim(images) has shape {shape!r}, must be logits [b, k] with b={batch}")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"victim(images) has dtype {logits.dtype}, must be floating logits")
    if shape[1] < 2:
        raise ValueError(
            f"victim(images) has shape {shape!r}, must have a logit for each class: of one logit z of two classes say "
            "jnp.concatenate([-z, z], axis=-1)"
        )
    if _ends_in_probabilities(traced):
        warnings.warn(
            "the victim ends in a softmax or sigmoid: it must return logits, from which losses take probabilities; "
            "remove it and return raw scores",
            stacklevel=5,
        )
    return shape[1]


def _traced(predict: Predict, keys: Keys, images: Images, batch: int) -> tuple[Any, Any]:
    """The jaxpr of the victim's answer to the first `batch` images, and the form of the answer."""
    if is_in_shard_map():
        own = jnp.broadcast_to(keys, batch) if keys.ndim == 0 else keys[:batch]
        closed, logits = jax.make_jaxpr(lambda *inputs: predict(*inputs), return_shape=True)(own, images[:batch])
        return closed.jaxpr, logits
    forms = jax.ShapeDtypeStruct((batch,), keys.dtype), jax.ShapeDtypeStruct((batch, *images.shape[1:]), images.dtype)
    traced = _call.trace(predict, *forms)  # unlike `eval_shape`, it remembers what it has traced
    return traced.jaxpr.jaxpr, traced.out_info


def _ends_in_probabilities(jaxpr: Any) -> bool:
    """Whether the one output of a jaxpr is that of a softmax or a sigmoid, written by hand or not."""
    makers = {variable: equation for equation in jaxpr.eqns for variable in equation.outvars}

    def maker(atom: Any) -> Any:
        equation = None if isinstance(atom, core.Literal) else makers.get(atom)
        if equation is None or equation.primitive.name not in ("convert_element_type", "stop_gradient"):
            return equation
        return maker(equation.invars[0])

    last = maker(jaxpr.outvars[0])
    if last is None:
        return False
    inner = [value for value in last.params.values() if isinstance(value, core.Jaxpr | core.ClosedJaxpr)]
    if len(inner) == 1 and len(last.outvars) == 1:
        return _ends_in_probabilities(getattr(inner[0], "jaxpr", inner[0]))
    if last.primitive.name != "div":
        return last.primitive.name == "logistic"
    above = maker(last.invars[0])
    return above is not None and above.primitive.name == "exp"


@jax.jit
def _extremes(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: jnp.stack([jnp.min(array), jnp.max(array)]) for name, array in arrays.items()}


@jax.jit
def _call(predict: Predict, keys: Keys, x: Any) -> Any:
    return predict(keys, x)


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
