"""Optimisers and learning-rate schedules by name, for configs; all of them are optax's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax


def _check(rule: bool, message: str) -> None:
    if not rule:
        raise ValueError(message)


def constant(total_steps: int, peak: float, warmup: float = 0.0) -> optax.Schedule:
    """`peak` throughout, after a linear warm-up over the share `warmup` of all steps.

    No schedule but `one_cycle` warms up by default, which is our choice.
    """
    return _warmed(optax.constant_schedule(peak), total_steps, peak, warmup)


def cosine(total_steps: int, peak: float, warmup: float = 0.0, end: float = 0.0) -> optax.Schedule:
    """Half a cosine from `peak` down to `end * peak` (Loshchilov & Hutter 2017), after a linear warm-up.

    `end` is 0 as in the paper's experiments.
    """
    decay = optax.cosine_decay_schedule(peak, max(1, total_steps - _steps(warmup, total_steps)), alpha=end)
    return _warmed(decay, total_steps, peak, warmup)


def piecewise(
    total_steps: int, peak: float, drops: Sequence[float] = (0.75, 0.9), factor: float = 0.1, warmup: float = 0.0
) -> optax.Schedule:
    """`peak`, times `factor` at each share of all steps in `drops` (0.75 and 0.9, and 0.1, as in TRADES' code)."""
    _check(all(0 < drop < 1 for drop in drops), f"drops={drops!r} must be shares of the steps in (0, 1)")
    begin = _steps(warmup, total_steps)
    schedule = optax.piecewise_constant_schedule(peak, {_steps(drop, total_steps) - begin: factor for drop in drops})
    return _warmed(schedule, total_steps, peak, warmup)


def one_cycle(total_steps: int, peak: float, warmup: float = 0.3) -> optax.Schedule:
    """Linear up to `peak` during the share `warmup`, then linear down to 0, as Wong et al. (2020) train.

    `warmup=0.3` is our choice, the share that PyTorch's `OneCycleLR` has; the code of Wong et al. for CIFAR-10 rises
    over one half of the steps.
    """
    decay = optax.linear_schedule(peak, 0.0, max(1, total_steps - _steps(warmup, total_steps)))
    return _warmed(decay, total_steps, peak, warmup)


def _warmed(schedule: optax.Schedule, total_steps: int, peak: float, warmup: float) -> optax.Schedule:
    _check(peak > 0, f"peak={peak!r} must be larger than 0")
    _check(0 <= warmup < 1, f"warmup={warmup!r} must be a share of the steps in [0, 1)")
    steps = _steps(warmup, total_steps)
    if steps == 0:
        return schedule
    return optax.join_schedules([optax.linear_schedule(0.0, peak, steps), schedule], [steps])


def _steps(share: float, total_steps: int) -> int:
    return round(share * total_steps)


SCHEDULES: Mapping[str, Callable[..., optax.Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "piecewise": piecewise,
}
"""The learning rate schedules that a config may name."""


def sgd(
    learning_rate: Any,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 5e-4,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """SGD with momentum; weight decay is added to the gradient.

    `momentum=0.9` and `weight_decay=5e-4` are those of wide residual networks (Zagoruyko & Komodakis 2016) and of fast
    adversarial training (Wong et al. 2020); the code of TRADES decays by 2e-4. It is our choice that only weights of
    rank 2 and more decay, no biases and no scales of BatchNorm, and that the momentum is not Nesterov's.
    """
    rule = optax.sgd(learning_rate, momentum=momentum or None, nesterov=nesterov)
    return optax.chain(*_clip(clip_norm), optax.add_decayed_weights(weight_decay, mask=_is_kernel), rule)


def adam(learning_rate: Any, b1: float = 0.9, b2: float = 0.999, clip_norm: float | None = None) -> Any:
    """Adam without weight decay; `b1` and `b2` are those of Kingma & Ba (2015)."""
    return optax.chain(*_clip(clip_norm), optax.adam(learning_rate, b1, b2))


def adamw(
    learning_rate: Any, b1: float = 0.9, b2: float = 0.999, weight_decay: float = 1e-2, clip_norm: float | None = None
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019) on weights of rank 2 and more.

    `weight_decay=1e-2` is our choice, PyTorch's default for AdamW (optax's is 1e-4); the update is the learning rate
    times it times the weight. `b1` and `b2` are those of Kingma & Ba (2015).
    """
    rule = optax.adamw(learning_rate, b1, b2, weight_decay=weight_decay, mask=_is_kernel)
    return optax.chain(*_clip(clip_norm), rule)


def _clip(norm: float | None) -> list[optax.GradientTransformation]:
    if norm is None:
        return []
    _check(norm > 0, f"clip_norm={norm!r} must be larger than 0")
    return [optax.clip_by_global_norm(norm)]


def _is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


OPTIMIZERS: Mapping[str, Callable[..., optax.GradientTransformation]] = {"adam": adam, "adamw": adamw, "sgd": sgd}
"""The optimisers that a config may name."""
