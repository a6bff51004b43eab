"""A tiny network with BatchNorm, a tiny batch, and a config that trains in seconds."""

import contextlib
import os
import signal
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

from spa_jax.models.layers import batch_norm, conv
from spa_jax.parallel import data_mesh
from spa_jax.runs import loop
from spa_jax.training.placement import make_engine


class TinyNet(nn.Module):
    """One convolution, BatchNorm, one dense layer."""

    axis_name: Any = None

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(batch_norm(train, axis_name=self.axis_name)(conv(4)(images)))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


class PlainNet(nn.Module):
    """One convolution and one dense layer: images of a batch do not depend on each other."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.relu(conv(4, use_bias=True)(images))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


@pytest.fixture
def plain_net():
    return PlainNet()


@pytest.fixture
def tiny_net():
    return TinyNet()


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (16, 6, 6, 3), dtype=np.uint8),
        "label": rng.integers(0, 10, 16).astype(np.int32),
        "mask": np.arange(16) != 5,
        "index": np.arange(16, dtype=np.int32),
    }


def run_steps(learner, recipe, state, batch, engine="jit", devices=1, steps=2):
    """The state after some steps on one batch, and the metrics of each, on the host."""
    engine = make_engine(engine, data_mesh(jax.devices()[:devices]), learner, recipe)
    state, key = engine.place_state(state), engine.place_state(jax.random.key(1))
    seen = []
    for _ in range(steps):
        state, metrics = engine.step(state, engine.place_batch(batch), key)
        seen.append(jax.device_get(metrics))
    return jax.device_get(state), seen


@contextlib.contextmanager
def stop_requested_at(stop):
    """Within, a run is asked to stop while it takes this step."""
    batches = loop._batches

    def with_signal(experiment, start):
        for step, batch in enumerate(batches(experiment, start), start + 1):
            if step == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_batches", with_signal)
        yield


def assert_trees_close(left, right, rtol=1e-4, atol=1e-5):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def tiny_config(**changes):
    """Three epochs of standard training of a tiny network on digits."""
    pgd = {"name": "pgd", "radius": 0.1, "num_steps": 2}
    config = {
        "name": "tiny",
        "seed": 0,
        "data": {"name": "digits", "data_dir": None},
        "model": {"name": "small_cnn", "width": 2, "hidden": 8, "convs_per_stage": 1},
        "recipe": {"name": "standard"},
        "optimizer": {"name": "sgd"},
        "schedule": {"name": "cosine", "peak": 0.05},
        "training": {
            "batch_size": 240,
            "num_epochs": 3.0,
            "engine": "jit",
            "ema_decay": 0.5,
            "attack_warmup": 0.0,
            "evaluate_every": 1,
        },
        "evaluation": {
            "batch_size": 200,
            "attacks": {"PGD": pgd},
            "selection_attack": pgd,
            "select_by": "robust",
            "survivors_only": True,
            "num_examples": 40,
            "radii": None,
            "radius_attack": None,
            "attribute_points": 0,
        },
        "baselines": (),
    }
    return config | changes
