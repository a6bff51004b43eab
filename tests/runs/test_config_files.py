"""Config files and the command line: loading, errors with file and line, and settings of every key."""

import math

import pytest

from spa_jax.errors import ConfigError
from spa_jax.runs.config_files import load_config, parse_value, split_settings, with_setting
from spa_jax.runs.experiment import check_config

WRITTEN = """
from ml_collections import ConfigDict

def get_config(arg=None):
    config = {"name": "a", "attacks": {"z": {"name": "pgd"}, "a": {"name": "fgsm"}}, "arg": arg, "radii": (0.1, 0.2)}
    return ConfigDict(config) if arg == "ConfigDict" else config
"""


@pytest.fixture
def written(tmp_path):
    def write(text, name="config.py"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("arg", ["ConfigDict", "dict"])
def test_a_file_returns_a_config_dict_or_a_mapping_in_the_order_written(arg, written):
    config = load_config(f"{written(WRITTEN)}:{arg}")
    assert list(config["attacks"]) == ["z", "a"]
    assert config["arg"] == arg and config["radii"] == [0.1, 0.2]
    assert load_config(written(WRITTEN))["arg"] is None


def test_entries_set_one_by_one_keep_their_order_too(written):
    text = "from ml_collections import ConfigDict\ndef get_config():\n    c = ConfigDict()\n    c.z = {'q': 1}\n"
    text += "    c.a = 2\n    c.z.b = 3\n    return c\n"
    config = load_config(written(text))
    assert list(config) == ["z", "a"] and list(config["z"]) == ["q", "b"]


def test_modules_beside_the_file_are_found_and_not_taken_for_others(written, tmp_path):
    importing = "import common_settings\ndef get_config():\n    return {'seed': common_settings.SEED}\n"
    (tmp_path / "other").mkdir()
    for directory, seed in ((tmp_path, 1), (tmp_path / "other", 2)):
        (directory / "common_settings.py").write_text(f"SEED = {seed}\n")
        (directory / "config.py").write_text(importing)
    assert load_config(str(tmp_path / "config.py")) == {"seed": 1}
    assert load_config(str(tmp_path / "other" / "config.py")) == {"seed": 2}


BROKEN = {
    "syntax": ("x = 1\ndef get_config(:\n", r"config.py:2: SyntaxError: "),
    "missing import": ("\nimport not_a_module\n", r"config.py:2: ModuleNotFoundError: No module named 'not_a_module'"),
    "exception": ("def get_config():\n    x = {}\n    return x['radius']\n", r"config.py:3: KeyError: 'radius'"),
    "many lines": ("raise ValueError('a\\nb')\n", r"config.py:1: ValueError: a b$"),
    "no function": ("x = 1\n", r"config.py: the file has no function get_config"),
    "nothing returned": ("def get_config():\n    pass\n", r"config.py: get_config\(\) returned None"),
    "a number": ("def get_config():\n    return 3\n", r"get_config\(\) returned 3; it must return a mapping"),
    "an argument needed": ("def get_config(arg):\n    return {}\n", r"config.py: TypeError: .*missing 1 required"),
    "an array": ("def get_config():\n    return {'a': {'b': object()}}\n", r"config.a.b=.* is not data"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_line_with_file_line_and_cause(case, written):
    text, message = BROKEN[case]
    with pytest.raises(ConfigError, match=message) as error:
        load_config(written(text))
    assert "\n" not in str(error.value)


def test_an_error_in_a_module_beside_the_file_is_located_there(written):
    written("VALUE = 1 / 0\n", "helper_of_config.py")
    with pytest.raises(ConfigError, match=r"helper_of_config.py:1: ZeroDivisionError: division by zero"):
        load_config(written("import helper_of_config\ndef get_config():\n    return {}\n"))


def test_a_file_that_is_not_there_and_arguments_that_nobody_takes(written, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no file '.*missing.py'"):
        load_config(f"{tmp_path}/missing.py:epochs=2")
    with pytest.raises(ConfigError, match=r"get_config\(\) takes no arguments, so :epochs=2"):
        load_config(f"{written('def get_config():' + chr(10) + '    return dict()')}:epochs=2")
    text = "from spa_jax.configuration import parse_arguments\ndef get_config(arg=None):\n"
    text += "    return parse_arguments(arg, epochs=1)\n"
    with pytest.raises(ConfigError, match=r"'epoch=2' of the config file is unknown; did you mean 'epochs'"):
        load_config(f"{written(text)}:epoch=2")


def test_settings_are_taken_out_of_a_command_line():
    line = ["train.py", "--config=a.py:epochs=2", "--config.a.b=1=2", "--workdir", "w", "--config.c", "-3", "-config.d"]
    line += ["--noconfig.e", "--config.f", "--data_dir=x", "--", "--config.g=1"]
    others, settings = split_settings(line)
    assert others == ["train.py", "--config=a.py:epochs=2", "--workdir", "w", "--data_dir=x", "--", "--config.g=1"]
    assert settings == [("a.b", "1=2"), ("c", "-3"), ("d", "true"), ("e", "false"), ("f", "true")]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        ("-1/4", -0.25),
        ("(0, 8/255)", (0, 8 / 255)),
        ("[1/2]", [0.5]),
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ("False", False),
        ("none", None),
        ("inf", math.inf),
        ("bfloat16", "bfloat16"),
        ("a/b", "a/b"),
        ("1/0", "1/0"),
        ("~/data/x.npz", "~/data/x.npz"),
        ("{'name': 'pgd', 'radius': 1/2}", {"name": "pgd", "radius": 0.5}),
        ("'8'", "8"),
        ("__import__('os')", "__import__('os')"),
    ],
)
def test_values_are_read_as_people_write_them(text, value):
    assert parse_value(text) == value and type(parse_value(text)) is type(value)


CONFIG = {
    "name": "x",
    "data": {"name": "digits"},
    "model": "small_cnn",
    "recipe": "standard",
    "evaluation": {"attacks": {"PGD-20": {"name": "pgd", "radius": 0.1}, "a.b": {"name": "fgsm", "radius": 0.1}}},
    "baselines": [{"name": "first"}, {"name": "second", "training": {"num_epochs": 3}}],
}
SETTINGS = [
    ("data.image_size", "24", lambda c: c["data"] == {"name": "digits", "image_size": 24}),
    ("data", "cifar10", lambda c: c["data"] == "cifar10"),
    ("model.dtype", "bfloat16", lambda c: c["model"] == {"name": "small_cnn", "dtype": "bfloat16"}),
    ("training.num_epochs", "2", lambda c: c["training"] == {"num_epochs": 2}),
    ("evaluation.attacks.PGD-20.radius", "8/255", lambda c: _attacks(c)["PGD-20"]["radius"] == 8 / 255),
    ('evaluation.attacks["a.b"].radius', "1/2", lambda c: _attacks(c)["a.b"]["radius"] == 0.5),
    ("evaluation.attacks.mine.name", "pgd", lambda c: list(_attacks(c)) == ["PGD-20", "a.b", "mine"]),
    ("baselines[1].training.num_epochs", "1/2", lambda c: c["baselines"][1]["training"]["num_epochs"] == 0.5),
    ("baselines.first.recipe", "standard", lambda c: c["baselines"][0] == {"name": "first", "recipe": "standard"}),
    ("name", "7", lambda c: c["name"] == "7"),
    ("name", "none", lambda c: c["name"] is None),
]


def _attacks(config):
    return config["evaluation"]["attacks"]


@pytest.mark.parametrize(("key", "text", "holds"), SETTINGS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_key_can_be_set_and_the_config_stays_as_it_was(key, text, holds):
    before = repr(CONFIG)
    assert holds(with_setting(CONFIG, key, text))
    assert repr(CONFIG) == before


def test_settings_build_on_each_other():
    config = CONFIG
    for key, text in (("data", "digits"), ("data.validation_size", "100"), ("evaluation.attacks.mine.name", "pgd")):
        config = with_setting(config, key, text)
    config = check_config(with_setting(config, "evaluation.attacks.mine.radius", "8/255"))
    assert config["data"] == {"name": "digits", "validation_size": 100}
    assert _attacks(config)["mine"] == {"name": "pgd", "radius": 8 / 255}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("training.num_epoch", "config.training.num_epoch is unknown; did you mean 'num_epochs'"),
        ("trainin.num_epochs", "config.trainin is unknown; did you mean 'training'"),
        ("evaluation.attacks.PGD-20.num_stepz", "attacks.PGD-20.num_stepz is unknown to attack 'pgd'; did you mean"),
        ("evaluation.attacks.PGD-2.radius", "without a `name`; did you mean 'PGD-20'"),
        ("seed.x", "0 has no entry 'x'"),
        ("baselines.third.seed", "there is no entry 'third'; valid: first, second"),
        ("baselines[7].seed", "there is no entry '7'"),
        ("a[", "this is not a key"),
    ],
)
def test_a_misspelt_setting_is_an_error_that_names_the_nearest_key(key, message):
    with pytest.raises(ConfigError) as error:
        check_config(with_setting(CONFIG | {"seed": 0}, key, "3"))
    assert message in str(error.value)
