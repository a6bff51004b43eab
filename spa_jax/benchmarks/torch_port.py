"""Networks of the zoo in PyTorch with the weights of their Flax form, for comparisons with libraries that need it.

They take channels-first images and never ask for weight gradients. PyTorch comes with the `bench` extra.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import flax.linen as nn
import numpy as np

from spa_jax.models import ResNet20, SmallCNN

Module: TypeAlias = Any
"""A `torch.nn.Module`; PyTorch is imported where it is used."""

_EPSILON = 1e-5


def to_torch(model: nn.Module, variables: Mapping[str, Any], input_shape: Sequence[int]) -> Module:
    """The same network in PyTorch, in evaluation mode; logits agree within float32 rounding, about 1e-5.

    Args:
        model: a `SmallCNN` or `ResNet20` that computes in float32.
        variables: its Flax variables.
        input_shape: (h, w, c) of one image.

    Returns:
        A module `(images [b, c, h, w]) -> logits [b, k]`.

    Raises:
        ValueError: another network, or another type of computation.
        ImportError: PyTorch is not installed.
    """
    ports: Mapping[Any, Callable[..., Module]] = {SmallCNN: _small_cnn, ResNet20: _resnet20}
    if type(model) not in ports:
        raise ValueError(f"model={type(model).__name__} has no PyTorch form; those with one: SmallCNN, ResNet20")
    if np.dtype(model.dtype or np.float32) != np.float32:
        raise ValueError(f"model.dtype={model.dtype!r} must be float32, the type of the PyTorch form")
    port = ports[type(model)](model, variables, input_shape)
    return port.eval().requires_grad_(False)


def _small_cnn(model: SmallCNN, variables: Mapping[str, Any], input_shape: Sequence[int]) -> Module:
    import torch

    params = variables["params"]
    layers: list[torch.nn.Module] = []
    for stage in range(2):
        for index in range(model.convs_per_stage):
            layers += [_conv(params[f"Conv_{stage * model.convs_per_stage + index}"]), torch.nn.ReLU()]
        layers.append(torch.nn.MaxPool2d(2))
    pooled = (input_shape[0] // 4, input_shape[1] // 4, 2 * model.width)
    hidden = _dense(params["Dense_0"], reads=pooled)
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), hidden, torch.nn.ReLU(), _dense(params["logits"]))


def _resnet20(model: ResNet20, variables: Mapping[str, Any], input_shape: Sequence[int]) -> Module:
    import torch

    def normalised(index: int, stride: int = 1) -> torch.nn.Sequential:
        convolution = _conv(variables["params"][f"Conv_{index}"], stride)
        name = f"BatchNorm_{index}"
        return torch.nn.Sequential(convolution, _batch_norm(variables["params"][name], variables["batch_stats"][name]))

    layers: list[torch.nn.Module] = [normalised(0), torch.nn.ReLU()]
    for block in range(9):
        stride = 2 if block in (3, 6) else 1
        layers.append(_residual(normalised(2 * block + 1, stride), normalised(2 * block + 2), stride))
    return torch.nn.Sequential(
        *layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), _dense(variables["params"]["logits"])
    )


def _residual(first: Module, second: Module, stride: int) -> Module:
    import torch
    from torch.nn.functional import pad, relu

    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: Any) -> Any:
            y = self.second(relu(self.first(x)))
            return relu(y + self.shortcut(x, y.shape[1] - x.shape[1]))

        def shortcut(self, x: Any, new: int) -> Any:
            if stride == 1:
                return x
            return pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, new // 2, new - new // 2))

    return Residual()


# --- layers ---------------------------------------------------------------------------------------------------------


def _conv(params: Mapping[str, Any], stride: int = 1) -> Module:
    import torch

    kernel = np.asarray(params["kernel"]).transpose(3, 2, 0, 1)
    features, channels, side, _ = kernel.shape
    layer = torch.nn.Conv2d(channels, features, side, stride, padding=(side - 1) // 2, bias="bias" in params)
    return _filled(layer, weight=kernel, **({"bias": params["bias"]} if "bias" in params else {}))


def _dense(params: Mapping[str, Any], reads: tuple[int, int, int] | None = None) -> Module:
    """`reads` is the shape (h, w, c) of the pixels that the layer sees flattened; PyTorch flattens channels first."""
    import torch

    kernel = np.asarray(params["kernel"])
    if reads is not None:
        kernel = kernel.reshape(*reads, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
    return _filled(torch.nn.Linear(*kernel.shape), weight=kernel.T, bias=params["bias"])


def _batch_norm(params: Mapping[str, Any], statistics: Mapping[str, Any]) -> Module:
    import torch

    layer = torch.nn.BatchNorm2d(len(params["scale"]), eps=_EPSILON)
    running = {"running_mean": statistics["mean"], "running_var": statistics["var"]}
    return _filled(layer, weight=params["scale"], bias=params["bias"], **running)


def _filled(layer: Module, **values: Any) -> Module:
    import torch

    with torch.no_grad():
        for name, value in values.items():
            getattr(layer, name).copy_(torch.from_numpy(np.array(value)))
    return layer
