"""Networks by name, and the adapter for classifiers written with flax.nnx.

Every classifier is a flax.linen module called as `model.apply(variables, images, train=False) -> logits`, and every
network of a purifier as `model.apply(variables, images, masks, train=False) -> images`, see `spa_jax.victims.purifier`.
Normalisation of images belongs to the victim, not to the network.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spa_jax.errors import suggest
from spa_jax.models.inpainter import Inpainter
from spa_jax.models.layers import require_images
from spa_jax.models.lenet5 import LeNet5
from spa_jax.models.masked_autoencoder import MaskedAutoencoder
from spa_jax.models.msp import MSP
from spa_jax.models.noise_generator import NoiseGenerator
from spa_jax.models.patch_discriminator import PatchDiscriminator
from spa_jax.models.preact_resnet18 import PreActResNet18
from spa_jax.models.resnet20 import ResNet20
from spa_jax.models.small_cnn import SmallCNN
from spa_jax.models.unet import UNet
from spa_jax.models.wide_resnet28_10 import WideResNet28x10
from spa_jax.trees import kinds_of

__all__ = [
    "MODELS",
    "MSP",
    "Inpainter",
    "LeNet5",
    "MaskedAutoencoder",
    "NoiseGenerator",
    "PatchDiscriminator",
    "PreActResNet18",
    "ResNet20",
    "SmallCNN",
    "UNet",
    "WideResNet28x10",
    "abstract_variables",
    "create_model",
    "from_nnx",
    "init_variables",
    "parameter_count",
]

MODELS: dict[str, type[nn.Module]] = {
    "inpainter": Inpainter,
    "lenet5": LeNet5,
    "masked_autoencoder": MaskedAutoencoder,
    "msp": MSP,
    "noise_generator": NoiseGenerator,
    "patch_discriminator": PatchDiscriminator,
    "preact_resnet18": PreActResNet18,
    "resnet20": ResNet20,
    "small_cnn": SmallCNN,
    "unet": UNet,
    "wide_resnet28_10": WideResNet28x10,
}
"""The networks that a config may name."""

_FACTS = (
    "num_classes",
    "num_attributes",
    "attribute_names",
    "attribute_centre",
    "attribute_scale",
    "image_shape",
)


def create_model(
    name: Any,
    *,
    num_classes: Any,
    input_shape: Any,
    num_attributes: Any = 0,
    attribute_names: tuple[str, ...] = (),
    attribute_centre: tuple[float, ...] = (),
    attribute_scale: tuple[float, ...] = (),
    **options: Any,
) -> nn.Module:
    """The network of that name, checked before anything is compiled.

    Args:
        name: a key of `MODELS`.
        num_classes: number of logits, an integer of 1 or larger.
        input_shape: (h, w, c) of one image, integers of 1 or larger.
        num_attributes: number of attributes of an image, for a network that reads or sets them.
        attribute_names, attribute_centre, attribute_scale: one entry for each of them, or () where they are unknown.
        options: fields of the network's class, such as `width`; `dtype` may be a name, as "bfloat16".

    Raises:
        ValueError: name or option is unknown (the valid ones are listed), a value has the wrong type or breaks its
            rule, or the images are too small for the network.
    """
    if not isinstance(name, str) or name not in MODELS:
        raise ValueError(f"name={name!r} is not a model{suggest(name, MODELS)}")
    shape = _checked_input_shape(input_shape)
    facts = {
        "num_classes": num_classes,
        "num_attributes": num_attributes,
        "attribute_names": attribute_names,
        "attribute_centre": attribute_centre,
        "attribute_scale": attribute_scale,
        "image_shape": shape,
    }
    known = {fact: value for fact, value in facts.items() if fact in _field_types(MODELS[name])}
    model = MODELS[name](**_checked_options(name, known | options))
    require_images(name, (1, *shape), model.minimum_size)
    return model


def _checked_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    hints = _field_types(MODELS[name])
    valid = [field for field in hints if field not in _FACTS]
    for option, value in options.items():
        if option not in hints:
            raise ValueError(f"{option}={value!r} is not an option of model {name!r}{suggest(option, valid)}")
        if option != "dtype" and not _is_of_type(value, hints[option]):
            wanted = getattr(hints[option], "__name__", str(hints[option]))
            raise ValueError(f"{option}={value!r} has the type {type(value).__name__}; model {name!r} takes {wanted}")
    if options.get("dtype") is None:
        return options
    return {**options, "dtype": _checked_dtype(options["dtype"])}


def _field_types(model: type[nn.Module]) -> dict[str, Any]:
    hints = typing.get_type_hints(model)
    names = [field.name for field in dataclasses.fields(model)]
    return {name: hints[name] for name in names if name not in ("parent", "name")}


def _is_of_type(value: Any, hint: Any) -> bool:
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return type(value) in [typing.get_origin(kind) or kind for kind in allowed]


def _checked_dtype(dtype: Any) -> Any:
    try:
        known = jnp.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"dtype={dtype!r} is not a dtype; valid: float32, bfloat16, float16, float64") from error
    if not jnp.issubdtype(known, jnp.floating):
        raise ValueError(f"dtype={dtype!r} must be a floating type: float32, bfloat16, float16, float64")
    return known


def _checked_input_shape(shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if len(sizes) != 3 or not all(type(size) is int and size >= 1 for size in sizes):
        raise ValueError(f"input_shape={shape!r} must be (height, width, channels), integers of 1 or larger")
    return sizes


def init_variables(model: nn.Module, key: Any, input_shape: Any) -> dict[str, Any]:
    """Fresh variables of a network: "params", and "batch_stats" where it has BatchNorm.

    Args:
        model: of this package, or any module called as `model(images, train=False)`; one that takes more than images
            has `example_inputs(image_shape)`, a tuple of arrays of batch 1.
        key: a typed PRNG key.
        input_shape: (h, w, c) of one image.

    Raises:
        ValueError: `input_shape` is not (h, w, c) or too small for the network.
    """
    lowered = jax.jit(_initializer(model, input_shape)).lower(key)
    # Random draws compile four times as fast at this level on a CPU, and a program that runs once repays no more.
    options: dict[str, Any] = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}
    return lowered.compile(options)(key)


def abstract_variables(model: nn.Module, input_shape: Any) -> Any:
    """The shapes and types of a network's variables; arguments and errors are those of `init_variables`."""
    return jax.eval_shape(_initializer(model, input_shape), jax.random.key(0))


def _initializer(model: nn.Module, input_shape: Any) -> Callable[[Any], Any]:
    shape = _checked_input_shape(input_shape)
    inputs = model.example_inputs(shape) if hasattr(model, "example_inputs") else (jnp.zeros((1, *shape), jnp.float32),)
    return lambda key: model.init(key, *inputs, train=False)


def parameter_count(variables: Any) -> int:
    """Number of trained numbers: of `variables["params"]`, or of all leaves without such an entry."""
    params = variables["params"] if isinstance(variables, dict) and "params" in variables else variables
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))


def from_nnx(module: Any) -> tuple[Callable[[Any, Any], Float[Array, "b k"]], dict[str, Any]]:
    """A flax.nnx network as a plain function and its variables, usable where a linen network's `apply` is.

    The network runs in evaluation mode (running BatchNorm statistics, no dropout). The module itself is left as it is;
    later changes of it do not reach the function. Functions of equal networks are equal, so that
    `jax.tree_util.Partial(*from_nnx(module))`, made anew for every attack, is compiled once.

    Args:
        module: an `nnx.Module` called as `module(images)`.

    Returns:
        `apply_fn(variables, images, train=False) -> logits`, pure, and `variables`, a pytree
        `{"params": ..., "rest": ...}`. `apply_fn` refuses `train=True`, since the updated state would be lost.

    Raises:
        ValueError: `module` is not an nnx module.
    """
    from flax import nnx

    if not isinstance(module, nnx.Module):
        raise ValueError(f"module={type(module).__name__} is not a flax.nnx module; linen modules need no adapter")
    evaluating = nnx.clone(module)
    evaluating.eval()
    graph, params, rest = nnx.split(evaluating, nnx.Param, ...)  # type: ignore[misc]
    return _NnxFunction(graph, kinds_of(evaluating)), {"params": params, "rest": rest}


@dataclasses.dataclass(frozen=True)
class _NnxFunction:
    """A network in evaluation mode without its arrays, equal for equal networks; see `spa_jax.trees.kinds_of`."""

    graph: Any
    kinds: int

    def __call__(self, variables: Any, images: Any, train: bool = False) -> Any:
        from flax import nnx

        if train:
            raise ValueError("train=True: from_nnx adapts a network for evaluation; train the nnx module itself")
        return nnx.merge(self.graph, variables["params"], variables["rest"])(images)
