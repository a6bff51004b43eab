"""Flax's BatchNorm mixes types inside, which strict promotion refuses for networks that compute in bfloat16."""

import jax
import pytest


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield
