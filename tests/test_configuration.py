"""Configs: arguments, checks against signatures and tables, building, storing, comparing."""

import functools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from spa_jax.configuration import build, check_keys, check_spec, diff, freeze, parse_arguments
from spa_jax.errors import ConfigError


def pgd(
    radius: Float[Array, ""] | float | int,
    num_steps: int = 10,
    *,
    step_size: float = 0.1,
    targeted: bool = False,
    loss: Literal["ce", "margin"] = "ce",
    decay: float | None = None,
    attributes: tuple[str, ...] = (),
    box: tuple[float, float] = (0.0, 1.0),
    hook: Callable[[int], None] | None = None,
    anything: Any = None,
):
    return dict(locals())


def open_ended(width: int, **options):
    return width, options


ATTACKS = {"pgd": pgd, "open": open_ended, "small": functools.partial(pgd, num_steps=3)}


def test_build_calls_the_named_constructor_with_the_rest():
    assert build(ATTACKS, {"name": "pgd", "radius": 0.5}, "attack") == pgd(0.5)
    assert build(ATTACKS, {"name": "small", "radius": 0.5}, "attack")["num_steps"] == 3
    assert build(ATTACKS, {"name": "open", "width": 2, "depth": 3}, "attack") == (2, {"depth": 3})


def test_build_takes_a_config_dict_and_a_config_read_back_from_json_alike():
    spec = {"name": "pgd", "radius": 1, "step_size": 1, "attributes": ("hue", "blur"), "box": (0, 1)}
    direct = build(ATTACKS, ConfigDict(spec), "attack")
    assert build(ATTACKS, json.loads(json.dumps(spec)), "attack") == direct
    assert direct["attributes"] == ("hue", "blur")
    assert isinstance(direct["step_size"], float)


def test_provided_arguments_go_where_they_are_taken_and_the_spec_overrides_them():
    assert build(ATTACKS, {"name": "pgd"}, "attack", radius=0.3, unused=1)["radius"] == 0.3
    assert build(ATTACKS, {"name": "pgd", "radius": 0.1}, "attack", radius=0.3)["radius"] == 0.1
    check_spec(ATTACKS, {"name": "pgd"}, "attack", provided=["radius"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"num_stepz": 3},
            ["config.attack.num_stepz is unknown to attack 'pgd'", "did you mean 'num_steps'", "step_size"],
        ),
        ({"num_steps": 3.0}, ["config.attack.num_steps=3.0 must be int, not float"]),
        ({"num_steps": True}, ["config.attack.num_steps=True must be int, not bool"]),
        ({"num_steps": None}, ["config.attack.num_steps=None must be int"]),
        ({"step_size": "0.1"}, ["config.attack.step_size='0.1' must be float, not str"]),
        ({"step_size": True}, ["config.attack.step_size=True must be float, not bool"]),
        ({"targeted": 1}, ["config.attack.targeted=1 must be bool, not int"]),
        ({"decay": "x"}, ["config.attack.decay='x' must be float or None, not str"]),
        ({"radius": "big"}, ["config.attack.radius='big' must be float or int, not str"]),
        ({"loss": "dlr"}, ["config.attack.loss='dlr'", "Literal['ce', 'margin']"]),
        ({"attributes": "hue"}, ["config.attack.attributes='hue' must be tuple[str, ...], not str"]),
        ({"attributes": ["hue", 1]}, ["config.attack.attributes=['hue', 1]"]),
        ({"box": (0.0, 0.5, 1.0)}, ["config.attack.box=(0.0, 0.5, 1.0) must be tuple[float, float]"]),
        (
            {"name": "pgdd"},
            ["config.attack.name='pgdd' is not a known attack", "did you mean 'pgd'", "open, pgd, small"],
        ),
        ({"name": 7}, ["config.attack.name=7 is not a known attack", "open, pgd, small"]),
    ],
)
def test_a_wrong_spec_is_named_before_anything_is_called(change, words):
    spec = {"name": "pgd", "radius": 0.5} | change
    with pytest.raises(ConfigError) as error:
        build(ATTACKS, ConfigDict(spec), "attack", "config.attack")
    for word in words:
        assert word in str(error.value)


def test_missing_parts_of_a_spec_are_named():
    with pytest.raises(ConfigError, match=r"config\.attack\.radius is missing: attack 'pgd' needs it"):
        check_spec(ATTACKS, {"name": "pgd"}, "attack", "config.attack")
    for spec in ({"radius": 0.5}, "pgd", None):
        with pytest.raises(
            ConfigError, match=r"config\.attack=.* must be a mapping with a `name`; attacks by name: open"
        ):
            check_spec(ATTACKS, spec, "attack", "config.attack")


def test_what_cannot_be_checked_is_left_to_the_constructor():
    for accepted in (
        {"anything": {"a": 1}},
        {"anything": 3},
        {"hook": print},
        {"decay": None},
        {"radius": np.float32(1)},
    ):
        check_spec(ATTACKS, {"name": "pgd", "radius": 0.5} | accepted, "attack")


def test_constructors_of_flax_and_optax_can_be_checked():
    assert build({"dense": nn.Dense}, {"name": "dense", "features": 4}, "layer").features == 4
    with pytest.raises(ConfigError, match="featurez"):
        check_spec({"dense": nn.Dense}, {"name": "dense", "featurez": 4}, "layer")
    schedules = {"cosine": optax.cosine_decay_schedule}
    assert build(schedules, {"name": "cosine", "init_value": 1, "decay_steps": 5}, "schedule")(5) == pytest.approx(0)
    with pytest.raises(ConfigError, match="decay_step is unknown"):
        check_spec(schedules, {"name": "cosine", "init_value": 1.0, "decay_step": 5}, "schedule")


ALLOWED = {
    "seed": int,
    "attack": Mapping,
    "evaluation": {"batch_size": int, "attacks": list[Mapping]},
    "ema": float | None,
    "note": Any,
}


def valid():
    return {"seed": 0, "attack": {"name": "pgd"}, "evaluation": {"batch_size": 8, "attacks": [{"name": "fgsm"}]}}


@pytest.mark.parametrize("optional", [{}, {"ema": None}, {"ema": 0.99}, {"note": {"free": "text"}}])
def test_a_complete_config_passes(optional):
    check_keys(valid() | optional, ALLOWED)
    check_keys(ConfigDict(valid() | optional), ALLOWED)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c.update(seeed=1), ["config.seeed is unknown", "did you mean 'seed'", "attack, ema, evaluation"]),
        (lambda c: c["evaluation"].update(batchsize=1), ["config.evaluation.batchsize is unknown", "'batch_size'"]),
        (lambda c: c.pop("seed"), ["config.seed is missing"]),
        (lambda c: c.pop("evaluation"), ["config.evaluation is missing"]),
        (lambda c: c["evaluation"].pop("attacks"), ["config.evaluation.attacks is missing", "attacks, batch_size"]),
        (lambda c: c.update(seed="0"), ["config.seed='0' must be int, not str"]),
        (lambda c: c.update(attack="pgd"), ["config.attack='pgd' must be Mapping, not str"]),
        (lambda c: c.update(evaluation=3), ["config.evaluation=3 must be a mapping"]),
        (lambda c: c["evaluation"].update(attacks=["pgd"]), ["config.evaluation.attacks=['pgd']"]),
    ],
)
def test_a_wrong_config_is_named_by_its_dotted_path(edit, words):
    config = valid()
    edit(config)
    with pytest.raises(ConfigError) as error:
        check_keys(ConfigDict(config), ALLOWED)
    for word in words:
        assert word in str(error.value)


def test_arguments_override_defaults_by_their_type():
    defaults = {"epochs": 30, "radius": 0.1, "model": "small", "debug": False, "sizes": (1, 2)}
    assert parse_arguments(None, **defaults) == parse_arguments("", **defaults) == defaults
    read = parse_arguments("epochs=2, radius=8/255,debug,model=a=b,sizes=4|5|6", **defaults)
    assert read == {"epochs": 2, "radius": 8 / 255, "model": "a=b", "debug": True, "sizes": (4, 5, 6)}
    assert parse_arguments("debug=false", debug=True) == {"debug": False}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epoch=2", ["'epoch=2'", "did you mean 'epochs'", "valid: debug, epochs, radius, sizes"]),
        ("epochs=2.5", ["'epochs=2.5' of the config file must be of type int", "its default is 30"]),
        ("epochs", ["'epochs'", "must be of type int"]),
        ("radius=1/0", ["'radius=1/0'", "must be of type float"]),
        ("debug=maybe", ["'debug=maybe'", "must be of type bool"]),
        ("sizes=1|x", ["must be a tuple, written sizes=a|b"]),
        ("epochs=1,epochs=2", ["'epochs'", "twice"]),
    ],
)
def test_a_wrong_argument_is_an_error_that_lists_the_valid_ones(text, words):
    with pytest.raises(ConfigError) as error:
        parse_arguments(text, epochs=30, radius=0.1, debug=False, sizes=(1,))
    for word in words:
        assert word in str(error.value)


data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(data)
def test_a_frozen_config_survives_json_and_does_not_differ_from_itself(config):
    frozen = freeze(config)
    assert json.loads(json.dumps(frozen)) == frozen == freeze(frozen)
    assert diff(config, frozen) == []


@pytest.mark.parametrize("value", [print, np.ones(2), object(), {1, 2}])
def test_freeze_refuses_what_is_not_data_by_its_path(value):
    with pytest.raises(ConfigError, match=r"config\.attacks\.1\.x=.* is not data"):
        freeze(ConfigDict({"attacks": [{"x": 1}, {"x": value}]}))


def test_freeze_refuses_keys_that_are_not_text():
    with pytest.raises(ConfigError, match=r"config\.a has the key 3"):
        freeze({"a": {3: 1}})


def test_diff_shows_every_leaf_that_differs():
    a = {"seed": 0, "attack": {"radius": 0.1, "steps": 10}, "list": (1, 2), "many": [{"r": 1}], "gone": None, "same": 1}
    b = {"seed": 1, "attack": {"radius": 0.1, "steps": 20}, "list": [1, 3], "many": [{"r": 2}], "new": {}, "same": 1.0}
    assert diff(ConfigDict(a), b) == [
        "attack.steps: 10 -> 20",
        "gone: null -> (absent)",
        "list: [1, 2] -> [1, 3]",
        "many.0.r: 1 -> 2",
        "new: (absent) -> {}",
        "seed: 0 -> 1",
    ]
    assert diff({"a": math.inf}, {"a": math.inf}) == []
