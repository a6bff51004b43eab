"""Functions as victims of compiled programs: new weights are seen, equal structure is one program."""

import functools
import gc
import sys
import types

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.tree_util import Partial

from spa_jax.victims import as_victim, classifier, normalize, purify, randomized, rewriting
from spa_jax.victims.tracing import Kept, Traced

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCH = 3
KEYS = jax.random.split(jax.random.key(0), BATCH)
X = jnp.asarray(np.random.default_rng(0).uniform(size=(BATCH, 4, 4, 3)), jnp.float32)


class Network(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(images)), (2, 2), (2, 2))
        return nn.Dense(5)(x.reshape(x.shape[0], -1))


class NnxNetwork(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, images):
        return self.dense(nnx.relu(self.conv(images)).mean((1, 2)))


class Matrix:
    def __init__(self, weights):
        self.weights = weights

    def __call__(self, images):
        return images.reshape(len(images), -1) @ self.weights

    def answer(self, images):
        return self(images)


MODEL = Network()
VARIABLES = jax.jit(MODEL.init)(jax.random.key(0), X)


def new_weights(i):
    return jax.tree.map(lambda leaf: leaf + i, VARIABLES)


def matrix(i):
    return np.random.default_rng(i).normal(size=(48, 5)).astype(np.float32)


def nnx_network(i):
    network = NnxNetwork(nnx.Rngs(0))
    network.dense.bias[...] = network.dense.bias[...] + i
    return network


@pytest.fixture
def attack():
    """Logits and image gradient of a victim from one compiled function; how often it was traced: `attack.count()`."""
    chex.clear_trace_counter()
    traces = []

    @jax.jit
    def run(victim, keys, images):
        traces.append(None)
        return victim(keys, images), jax.grad(lambda x: jnp.sum(jnp.tanh(victim(keys, x))))(images)

    def attack(model, images=X, **options):
        return run(as_victim(model, images, inline=False, **options), KEYS, images)

    attack.count = lambda: len(traces)
    return attack


def scanned(network, images):
    answer = jax.jit(lambda x: network(x))
    return lax.scan(lambda carry, _: (carry, answer(carry)), images, None, length=1)[1][0]


def _calling(network):
    return lambda x: network(x)


def _draws(keys):
    return jax.vmap(jax.random.normal)(keys)[:, None]


MODELS = {
    # name: (a new victim for every i, what it computes)
    "lambda": lambda i, v: lambda x: MODEL.apply(v, x),
    "jitted_lambda": lambda i, v: jax.jit(lambda x: MODEL.apply(v, x)),
    "jit_in_jit": lambda i, v: jax.jit(lambda x: jax.jit(lambda x: MODEL.apply(v, x))(x) * 2),
    "checkpointed": lambda i, v: jax.checkpoint(jax.jit(lambda x: MODEL.apply(v, x))),
    "partial": lambda i, v: functools.partial(MODEL.apply, v),
    "bound_module": lambda i, v: MODEL.bind(v),
    "pytree_partial": lambda i, v: Partial(MODEL.apply, v),
    "classifier": lambda i, v: classifier(MODEL, v),
    "wrapped_lambda": lambda i, v: normalize(purify(lambda x: MODEL.apply(v, x), lambda x: x / 2), 0.1, 2.0),
    "wrapped_classifier": lambda i, v: normalize(classifier(MODEL, v), 0.1, 2.0),
    "object": lambda i, v: Matrix(matrix(i)),
    "method": lambda i, v: Matrix(matrix(i)).answer,
    "nnx_module": lambda i, v: nnx_network(i),
    "nnx_lambda": lambda i, v: _calling(nnx_network(i)),
    "randomized": lambda i, v: randomized(lambda keys, x: MODEL.apply(v, x) + _draws(keys)),
}


@pytest.mark.parametrize("name", MODELS)
def test_new_weights_are_seen_by_the_same_program(name, attack):
    for i in (0, 1, 0, 2):
        model = MODELS[name](i, new_weights(i))
        logits, gradient = attack(model)
        answer = (lambda x, model=model: model(KEYS, x)) if name == "randomized" else model
        np.testing.assert_allclose(logits, answer(X), rtol=1e-4, atol=1e-4)
        slope = jax.grad(lambda x, answer=answer: jnp.sum(jnp.tanh(answer(x))))(X)
        np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-5)
    assert attack.count() == 1


def test_weights_trained_in_place_are_seen(attack):
    network = nnx_network(0)
    for _ in range(3):
        network.dense.bias[...] = network.dense.bias[...] + 1
        for victim in (network, lambda x: network(x)):
            np.testing.assert_allclose(attack(victim)[0], network(X), rtol=1e-5, atol=1e-5)
    assert attack.count() == 2


def test_arrays_that_cannot_become_arguments_are_seen_too(attack):
    """An inner jit of a scan keeps its arrays to itself: right, at the price of a program for each."""
    for i in (1, 2):
        network = Matrix(matrix(i))
        np.testing.assert_allclose(attack(lambda x, n=network: scanned(n, x))[0], network(X), rtol=1e-5)


def test_two_hundred_fresh_functions_are_one_program_and_leave_nothing_behind():
    @chex.assert_max_traces(n=1)
    def logits(victim, keys, images):
        return victim(keys, images)

    def answer(network):
        return run(as_victim(lambda x: jax.nn.relu(network(x)), X, inline=False), KEYS, X)

    def count_objects():
        gc.collect()
        return len(gc.get_objects())

    chex.clear_trace_counter()
    run = jax.jit(logits)
    networks = [Matrix(jnp.asarray(matrix(i))) for i in range(3)]
    expected = [np.maximum(network(X), 0) for network in networks]
    answer(networks[0])
    before = count_objects()
    for i in range(200):
        np.testing.assert_allclose(answer(networks[i % 3]), expected[i % 3], rtol=1e-4, atol=1e-4)
    assert count_objects() - before < 100


# --- what makes programs different ----------------------------------------------------------------------------------


def by_jvp(slope):
    """Two functions of equal value and name whose rules differ."""

    @jax.custom_jvp
    def function(x):
        return jnp.sin(x)

    function.defjvp(lambda primals, tangents: (function(*primals), slope * tangents[0]))
    return function


def by_jvps(slope):
    @jax.custom_jvp
    def function(x):
        return jnp.sin(x)

    function.defjvps(lambda tangent, value, x: slope * tangent)
    return function


def by_array(slope):
    """The rule closes over an array."""
    return by_jvp(jnp.asarray(slope))


def by_vjp(slope):
    @jax.custom_vjp
    def function(x):
        return jnp.sin(x)

    function.defvjp(lambda x: (function(x), None), lambda _, g: (slope * g,))
    return function


def in_scan(slope):
    function = by_vjp(slope)
    return lambda x: lax.scan(lambda carry, _: (function(carry), None), x, None, length=1)[0]


@pytest.mark.parametrize("make", [by_jvp, by_jvps, by_array, by_vjp, in_scan])
def test_equal_functions_with_other_derivatives_are_other_programs(make, attack):
    for slope in (1.0, -2.0, 1.0):
        function = make(slope)
        _, gradient = attack(lambda x, function=function: jnp.mean(function(x), (1, 2)) * 1e-3)
        np.testing.assert_allclose(gradient, np.full(X.shape, slope * 1e-3 / 16), rtol=1e-4)
    if make is not by_array:
        assert attack.count() == 2


def test_equal_functions_of_other_images_and_other_constants_are_other_programs():
    def program(function, images=X):
        return as_victim(function, images, inline=False).program

    def plain(x):
        return 2.0 * x.mean((1, 2))

    assert program(plain) == program(lambda x: 2.0 * x.mean((1, 2)))
    assert program(plain) != program(lambda x: 2.0000002 * x.mean((1, 2)))
    assert program(plain) != program(plain, X[:2])
    assert program(plain) != program(plain, X.astype(jnp.bfloat16))
    assert program(plain) != "program"


def test_callbacks_that_print_alike_are_told_apart(attack):
    def through_python(weights):
        out = jax.ShapeDtypeStruct((BATCH, 5), jnp.float32)

        @jax.custom_vjp
        def answer(x):
            return jax.pure_callback(lambda x: np.asarray(x).reshape(BATCH, -1) @ weights, out, x)

        answer.defvjp(lambda x: (answer(x), None), lambda _, g: (jnp.zeros(X.shape),))
        return answer

    for i in (1, 2):
        function = through_python(matrix(i))
        np.testing.assert_allclose(attack(lambda x, function=function: function(x))[0], function(X), rtol=1e-5)


def test_large_arrays_that_print_alike_are_told_apart(attack):
    for value in (0.0, 1.0):
        array = np.zeros(2000, np.float32)
        array[1000] = value
        logits, _ = attack(jax.jit(lambda x, array=array: x.mean((1, 2)) + jnp.sum(array)))
        np.testing.assert_allclose(logits, np.mean(X, (1, 2)) + value, rtol=1e-5)
    assert attack.count() == 1


def test_rewriting_is_switched_off_and_on(attack):
    def forms(**options):
        models = (lambda x: MODEL.apply(VARIABLES, x)), classifier(MODEL, VARIABLES)
        victims = [as_victim(model, X, inline=inline, **options) for model in models for inline in (False, True)]
        return ["name=_convolve" in str(jax.make_jaxpr(victim)(KEYS, X)) for victim in victims]

    assert forms() == [True] * 4
    with rewriting(False):
        assert forms() == [False] * 4
        assert forms(rewrite=True) == [True] * 4
        attack(classifier(MODEL, VARIABLES))
    assert forms(rewrite=False) == [False] * 4
    attack(classifier(MODEL, VARIABLES))
    assert attack.count() == 2


def test_what_is_kept_and_what_is_traced():
    assert isinstance(as_victim(classifier(MODEL, VARIABLES), X, inline=False), Kept)
    assert isinstance(as_victim(lambda x: x.mean((1, 2)), X, inline=False), Traced)
    assert isinstance(as_victim(lambda x: x.mean((1, 2)), X, inline=True), Kept)
    form = jax.ShapeDtypeStruct(X.shape, X.dtype)
    assert len(jax.tree.leaves(as_victim(Matrix(matrix(0)), form, inline=False))) == 1


def test_a_victim_inside_of_a_trace_sees_traced_weights():
    @jax.jit
    def gradient(variables):
        def loss(variables):
            victim = as_victim(lambda x: MODEL.apply(variables, x), X, inline=True)
            return jnp.sum(victim(None, X) ** 2)

        return jax.grad(loss)(variables)

    expected = jax.jit(jax.grad(lambda variables: jnp.sum(MODEL.apply(variables, X) ** 2)))(VARIABLES)
    chex.assert_trees_all_close(gradient(VARIABLES), expected, rtol=1e-4, atol=1e-4)


# --- natural mistakes -----------------------------------------------------------------------------------------------


class Output:
    def __init__(self, logits):
        self.logits = logits


MISTAKES = [
    (MODEL, r"victim=Network\(...\) is a flax.linen module without weights: say classifier\(model, variables\)"),
    ("resnet", "victim='resnet' must be a function from images to logits"),
    (lambda keys, x: x.mean((1, 2)), r"missing a required argument: 'x'; if it takes \(keys, images\), say randomized"),
    (lambda: X, "too many positional arguments"),
    (lambda x: (x, x), r"returns tuple, must be logits \[b, k\]: say lambda x: victim\(x\)\[0\]"),
    (lambda x: {"logits": x}, r'returns dict, must be logits \[b, k\]: say lambda x: victim\(x\)\["logits"\]'),
    (lambda x: Output(x), r"returns Output, must be logits \[b, k\]: say lambda x: victim\(x\).logits"),
    (lambda x: None, r"returns NoneType, must be logits \[b, k\]"),
]


@pytest.mark.parametrize(("model", "message"), MISTAKES)
@pytest.mark.parametrize("inline", [False, True])
def test_natural_mistakes_are_named(model, message, inline):
    with pytest.raises(ValueError, match=message):
        as_victim(model, X, inline=inline)(KEYS, X)


@pytest.mark.parametrize(
    "victim",
    [
        lambda x: MODEL.apply(VARIABLES["params"], x),
        Partial(MODEL.apply, VARIABLES["params"]),
        Partial(MODEL.apply, {}),
    ],
)
def test_parameters_without_their_collection_are_named(victim):
    message = r'lack a collection: pass all that model.init returns, or {"params": params}'
    with pytest.raises(ValueError, match=message):
        as_victim(victim, X, inline=False)(KEYS, X)


def test_a_module_without_a_training_mode_is_no_classifier():
    dense = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(5)])
    variables = dense.init(jax.random.key(0), X)
    with pytest.raises(
        ValueError, match=r"takes no `train`: instead of classifier.* say .*Partial\(model.apply, variables"
    ):
        as_victim(classifier(dense, variables), X, inline=False)(KEYS, X)


def test_an_nnx_module_in_training_mode_is_named():
    network = nnx.Sequential(nnx.BatchNorm(3, rngs=nnx.Rngs(0)), lambda x: x.mean((1, 2)))
    for victim in (network, lambda x: network(x)):
        with pytest.raises(ValueError, match=r"nnx module in training mode does: call model.eval\(\), or .*from_nnx"):
            jax.jit(lambda v, x: v(KEYS, x))(as_victim(victim, X, inline=False), X)
    network.eval()
    assert as_victim(network, X, inline=False)(KEYS, X).shape == (BATCH, 3)


def test_a_module_that_sees_one_image_says_how_it_is_called(monkeypatch):
    class Module:
        def __call__(self, image):
            return image.reshape(3, 16).sum(-1)

    monkeypatch.setitem(sys.modules, "equinox", types.SimpleNamespace(Module=Module))
    model = Module()
    with pytest.raises(
        ValueError, match=r"victim=Module\(...\) must take a batch .*equinox.*lambda x: jax.vmap\(model\)"
    ):
        as_victim(model, X, inline=False)
    form = as_victim(lambda x: jax.vmap(model)(jnp.moveaxis(x, -1, 1)), X, inline=False)(KEYS, X)
    assert form.shape == (BATCH, 3)


def test_errors_of_the_function_come_through():
    def wrong(x):
        return x + "a"

    with pytest.raises(TypeError, match="str"):
        as_victim(wrong, X, inline=False)


def test_a_traced_victim_refuses_images_of_another_shape():
    victim = as_victim(lambda x: x.mean((1, 2)), X, inline=False)
    with pytest.raises(ValueError, match=r"images of shape and type \(\(2, 4, 4, 3\).*traced for \(\(3, 4, 4, 3\)"):
        victim(KEYS[:2], X[:2])
