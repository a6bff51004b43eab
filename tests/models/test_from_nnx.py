"""A flax.nnx network as a plain function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.tree_util import Partial

from spa_jax import fgsm
from spa_jax.models import create_model, from_nnx, parameter_count
from spa_jax.victims.convolution import convolution

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Network(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.conv(images)))
        return self.dense(self.dropout(x.mean((1, 2))))


@pytest.fixture
def module():
    return Network(nnx.Rngs(0))


@pytest.fixture
def images():
    return jax.random.uniform(jax.random.key(1), (3, 8, 8, 3))


def by_hand(variables, images):
    params = jax.tree.map(np.asarray, nnx.to_pure_dict(variables["params"]))
    x = jax.lax.conv_general_dilated(
        images, params["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = (np.asarray(x) + params["conv"]["bias"]) / np.sqrt(1 + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    return np.maximum(x, 0).mean((1, 2)) @ params["dense"]["kernel"] + params["dense"]["bias"]


def test_the_function_is_the_network_in_evaluation_mode(module, images):
    apply_fn, variables = from_nnx(module)
    np.testing.assert_allclose(apply_fn(variables, images), by_hand(variables, images), rtol=1e-5, atol=1e-6)
    assert parameter_count(variables) == 3 * 9 * 4 + 4 + 8 + 20 + 5


def test_the_function_is_pure_under_jit_grad_vmap_and_scan(module, images):
    apply_fn, variables = from_nnx(module)
    gradient = jax.grad(lambda x: (apply_fn(variables, x) ** 2).sum())
    expected = gradient(images)
    np.testing.assert_allclose(jax.jit(gradient)(images), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(jax.vmap(lambda x: gradient(x[None])[0])(images), expected, rtol=1e-4, atol=1e-6)
    stepped = jax.lax.scan(lambda x, _: (x - gradient(x), None), images, None, length=2)[0]
    assert stepped.shape == images.shape


def test_new_weights_reuse_the_compiled_program(module, images):
    apply_fn, variables = from_nnx(module)
    jitted = jax.jit(apply_fn)
    first = jitted(variables, images)
    zero = {**variables, "params": jax.tree.map(jnp.zeros_like, variables["params"])}
    np.testing.assert_array_equal(jitted(zero, images), jnp.zeros((3, 5)))
    assert jitted._cache_size() == 1
    np.testing.assert_array_equal(jitted(variables, images), first)


def test_the_module_itself_stays_in_its_mode_and_later_changes_do_not_reach_the_function(module, images):
    module.train()
    apply_fn, variables = from_nnx(module)
    before = apply_fn(variables, images)
    assert not module.dropout.deterministic
    module.dense.bias[...] = module.dense.bias[...] + 1
    np.testing.assert_array_equal(apply_fn(variables, images), before)


def test_nnx_takes_the_quick_convolution():
    layer = nnx.Conv(3, 4, (3, 3), conv_general_dilated=convolution, rngs=nnx.Rngs(0))
    apply_fn, variables = from_nnx(layer)
    stock, _ = from_nnx(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)))
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
    for function in (apply_fn, stock):
        assert function(variables, images).shape == (2, 8, 8, 4)
    ours, theirs = (jax.grad(lambda x, f=f: (f(variables, x) ** 2).sum())(images) for f in (apply_fn, stock))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_wrong_use_is_refused(module, images):
    apply_fn, variables = from_nnx(module)
    with pytest.raises(ValueError, match="train=True"):
        apply_fn(variables, images, train=True)
    with pytest.raises(ValueError, match=r"SmallCNN is not a flax\.nnx module"):
        from_nnx(create_model("small_cnn", num_classes=10, input_shape=(8, 8, 1)))


def test_a_network_adapted_anew_for_every_attack_is_compiled_once_and_new_weights_are_seen(module, images):
    traces = []

    @jax.jit
    def answer(victim, images):
        traces.append(None)
        return victim(images)

    labels = jnp.zeros(3, jnp.int32)
    for _ in range(3):
        module.dense.bias[...] = module.dense.bias[...] + 1
        victim = Partial(*from_nnx(module))
        np.testing.assert_allclose(answer(victim, images), victim(images), rtol=1e-5, atol=1e-6)
        assert fgsm(0.1)(jax.random.key(0), victim, images, labels).x.shape == images.shape
    assert len(traces) == 1
    from_other = Partial(*from_nnx(nnx.Linear(3, 5, rngs=nnx.Rngs(0))))
    assert jax.tree.structure(from_other) != jax.tree.structure(victim)
