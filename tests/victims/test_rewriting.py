"""Functions rewritten for a CPU: the same values and gradients, in quick forms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from spa_jax.victims.rewriting import quick

pytestmark = pytest.mark.usefixtures("quick_compilation")

NHWC = ("NHWC", "HWIO", "NHWC")
BATCH = 2
RANDOM = np.random.default_rng(0)
X = jnp.asarray(RANDOM.uniform(size=(BATCH, 6, 6, 3)), jnp.float32)
KERNEL = jnp.asarray(RANDOM.normal(size=(3, 3, 3, 3)), jnp.float32)


def convolve(x, strides=(1, 1), padding="SAME", kernel=KERNEL, **options):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC, **options)


def pool(x, window=(2, 2), strides=(2, 2), padding="VALID"):
    return nn.max_pool(x, window, strides, padding)


def layer(x):
    return jax.nn.relu(convolve(x)) * 0.3


def text(function, *args):
    return str(jax.make_jaxpr(function)(*args))


def is_rewritten(function, *args):
    return any(f"name={form}" in text(quick(function), *args) for form in ("_convolve", "_max_pool"))


FUNCTIONS = {
    "plain": lambda x: pool(layer(x)),
    "jit": lambda x: pool(jax.jit(layer)(x)),
    "checkpoint": lambda x: jax.checkpoint(lambda x: pool(jnp.sin(layer(x))))(x),
    "checkpoint_policy": lambda x: jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_saveable)(x),
    "scan": lambda x: lax.scan(lambda c, w: (layer(c) * w, c.sum()), x, jnp.arange(1.0, 4))[0],
    "fori_loop": lambda x: lax.fori_loop(0, 2, lambda i, c: layer(c) + i.astype(jnp.float32), x),
    "cond": lambda x: lax.cond(x.sum() > 0, layer, lambda x: x, x),
    "switch": lambda x: lax.switch(1, [convolve, layer], x),
    "map": lambda x: lax.map(lambda image: layer(image[None])[0], x),
    "jit_in_scan_in_jit": jax.jit(lambda x: lax.scan(lambda c, _: (jax.jit(layer)(c), None), x, None, 2)[0]),
}


def gradient(function):
    return jax.grad(lambda x: jnp.sum(function(x) ** 2))


def sharded(function):
    mesh = jax.make_mesh((BATCH,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:BATCH])
    spec = PartitionSpec("data")
    return jax.jit(jax.shard_map(gradient(function), mesh=mesh, in_specs=spec, out_specs=spec))(X)


USES = {
    "jit": lambda f: jax.jit(f)(X),
    "vmap": lambda f: jax.vmap(gradient(f))(jnp.stack([X, 2 * X])),
    "scan": lambda f: jax.jit(lambda x: lax.scan(lambda c, _: (c - 0.01 * gradient(f)(c), None), x, None, 2)[0])(X),
    "grad": lambda f: jax.jit(gradient(f))(X),
    "grad_of_grad": lambda f: jax.jit(gradient(gradient(f)))(X),
    "shard_map": sharded,
    "pmap": lambda f: jax.pmap(gradient(f))(X[:, None]),
    "checkpoint": lambda f: jax.jit(gradient(jax.checkpoint(f)))(X),
}


def assert_equal_in(use, function):
    expected = use(function)
    np.testing.assert_allclose(use(quick(function)), expected, rtol=1e-3, atol=1e-4 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_equal(name):
    assert is_rewritten(FUNCTIONS[name], X)
    assert_equal_in(lambda f: jnp.concatenate([f(X).ravel(), jax.jit(gradient(f))(X).ravel()]), FUNCTIONS[name])


@pytest.mark.parametrize("use", USES)
def test_values_and_gradients_are_equal_under_every_transformation(use):
    assert_equal_in(USES[use], lambda x: FUNCTIONS["checkpoint"](FUNCTIONS["cond"](FUNCTIONS["fori_loop"](x))))


def test_a_while_loop_is_rewritten_in_condition_and_body():
    def steps(x):
        return lax.while_loop(lambda c: jnp.abs(convolve(c)).sum() < 1e4, lambda c: 2 * convolve(c), x)

    np.testing.assert_allclose(quick(steps)(X), steps(X), rtol=1e-4, atol=1e-2)
    assert text(quick(steps), X).count("custom_vjp_call") >= 2


def test_a_function_of_trees_that_closes_over_traced_arrays():
    @jax.jit
    def outer(kernel, x):
        function = lambda tree, bias: {"sum": convolve(tree["x"], kernel=kernel) + bias, "other": tree["y"]}  # noqa: E731
        return quick(function)({"x": x, "y": None}, 2.0), function({"x": x, "y": None}, 2.0)

    ours, theirs = outer(KERNEL, X)
    assert ours["other"] is None
    np.testing.assert_allclose(ours["sum"], theirs["sum"], rtol=1e-5, atol=1e-5)


def test_keys_and_random_draws_pass_through():
    draw = lambda key, x: layer(x + jax.random.normal(key, x.shape))  # noqa: E731
    np.testing.assert_allclose(quick(draw)(jax.random.key(1), X), draw(jax.random.key(1), X), rtol=1e-5, atol=1e-5)


LEFT_ALONE = {
    "grouped": lambda x: convolve(x, kernel=KERNEL[:, :, :1], feature_group_count=3),
    "dilated_kernel": lambda x: convolve(x, rhs_dilation=(2, 2)),
    "channels_first": lambda x: lax.conv_general_dilated(x, KERNEL, (1, 1), "SAME"),
    "other_result_type": lambda x: convolve(
        x.astype(jnp.bfloat16), kernel=KERNEL.astype(jnp.bfloat16), preferred_element_type=jnp.float32
    ),
    "integer": lambda x: convolve(x.astype(jnp.int32), kernel=KERNEL.astype(jnp.int32)),
    "overlapping_pool": lambda x: pool(x, (3, 3), (2, 2)),
    "padded_pool": lambda x: pool(x, padding="SAME", window=(4, 4), strides=(4, 4)),
    "large_pool": lambda x: pool(x, (6, 6), (6, 6)),
    "sum_pool": lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "relu": jax.nn.relu,
    "maximum": lambda x: jnp.maximum(x, 0),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_has_no_quick_form_is_left_as_it_is(name):
    x = X.transpose(0, 3, 1, 2) if name == "channels_first" else X
    assert not is_rewritten(LEFT_ALONE[name], x)


def test_a_function_with_a_derivative_of_its_own_keeps_it():
    @jax.custom_jvp
    def relu(x):
        return jnp.maximum(convolve(x), 0)

    relu.defjvp(lambda primals, tangents: (relu(*primals), tangents[0]))

    @jax.custom_vjp
    def scaled(x):
        return convolve(x)

    scaled.defvjp(lambda x: (scaled(x), None), lambda _, g: (5 * g,))
    for function, slope in ((relu, 1), (scaled, 5)):
        assert not is_rewritten(function, X)
        np.testing.assert_array_equal(jax.grad(lambda x, f=function: quick(f)(x).sum())(X), np.full(X.shape, slope))


def test_gradients_inside_of_a_function_are_rewritten_too():
    score = jax.jit(jax.grad(lambda x: jnp.sum(convolve(x) ** 2)))
    assert is_rewritten(score, X)
    np.testing.assert_allclose(quick(score)(X), score(X), rtol=1e-4, atol=1e-4)


def test_elsewhere_than_on_a_cpu_it_is_the_function_itself(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not is_rewritten(FUNCTIONS["plain"], X)


def test_a_scanned_gradient_keeps_the_kernel_flip_outside_of_the_convolution():
    def program(function):
        step = jax.grad(lambda x: (function(x) ** 2).sum())
        loop = jax.jit(lambda x: lax.fori_loop(0, 3, lambda _, x: x - step(x), x))
        return loop.lower(X).compile().as_text()

    slow_form = "01oi"
    assert slow_form in program(convolve)
    assert slow_form not in program(quick(convolve))
