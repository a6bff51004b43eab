"""Models by name: each wrong value gives one error that names it and the rule."""

import jax
import jax.numpy as jnp
import pytest

from spa_jax.models import create_model, init_variables, parameter_count


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("resnet2O", {}, r"name='resnet2O' is not a model; did you mean 'resnet20'\? valid: inpainter, .*wide_res"),
        (None, {}, "name=None is not a model"),
        (
            "resnet20",
            {"widht": 8},
            r"widht=8 is not an option of .*resnet20'; did you mean 'width'\? valid: .*dtype, width",
        ),
        ("lenet5", {"axis_name": "data"}, "axis_name='data' is not an option of model 'lenet5'; valid: dtype, width"),
        ("resnet20", {"width": 8.0}, "width=8.0 has the type float; model 'resnet20' takes int"),
        ("resnet20", {"width": True}, "width=True has the type bool"),
        ("resnet20", {"axis_name": 3}, r"axis_name=3 has the type int; model 'resnet20' takes str \| None"),
        ("resnet20", {"width": 0}, "width=0 must be an integer, 1 or larger"),
        ("resnet20", {"num_classes": 0}, "num_classes=0 must be"),
        ("resnet20", {"num_classes": "ten"}, "num_classes='ten' has the type str"),
        ("resnet20", {"dtype": "float31"}, "dtype='float31' is not a dtype; valid: float32, bfloat16"),
        ("resnet20", {"dtype": "int32"}, "dtype='int32' must be a floating type"),
        ("resnet20", {"input_shape": (32, 32)}, r"input_shape=\(32, 32\) must be \(height, width, channels\)"),
        ("resnet20", {"input_shape": (32, 32, 3.0)}, "input_shape="),
        ("resnet20", {"input_shape": 32}, "input_shape=32 must be"),
        ("lenet5", {"input_shape": (8, 8, 1)}, "lenet5 takes images of at least 12x12"),
    ],
)
def test_each_wrong_value_is_named(name, changes, message):
    arguments = {"num_classes": 10, "input_shape": (32, 32, 3), **changes}
    with pytest.raises(ValueError, match=message):
        create_model(name, **arguments)


def test_options_reach_the_network():
    model = create_model("resnet20", num_classes=5, input_shape=[8, 8, 3], width=4, dtype="bfloat16", axis_name="data")
    assert (model.num_classes, model.width, model.dtype, model.axis_name) == (5, 4, jnp.dtype("bfloat16"), "data")


def test_equal_options_give_equal_networks_so_that_compiled_programs_are_reused():
    first, second = (create_model("resnet20", num_classes=5, input_shape=(8, 8, 3), dtype="float32") for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)


def test_init_variables_depends_on_the_key_alone_and_counts_parameters():
    model = create_model("small_cnn", num_classes=10, input_shape=(8, 8, 1), width=1, hidden=2)
    first, again, other = (init_variables(model, jax.random.key(seed), (4, 4, 1)) for seed in (0, 0, 1))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), first, again)
    assert all(jax.tree.leaves(same))
    assert not bool((first["params"]["Conv_0"]["kernel"] == other["params"]["Conv_0"]["kernel"]).all())
    assert parameter_count(first) == parameter_count(first["params"])
    with pytest.raises(ValueError, match="input_shape="):
        init_variables(model, jax.random.key(0), (8, 8))
