"""What the launch scripts take for an error of the user, and paths with the user's home."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

from spa_jax.errors import CheckpointError
from spa_jax.runs import launching
from spa_jax.validation import require_count


def _raised(function):
    with pytest.raises(Exception) as error:
        function()
    return error.value


def _refused():
    raise CheckpointError("damaged")


def _fails(code):
    raise jax.errors.JaxRuntimeError(f"{code}: Out of memory allocating 17179869184 bytes.")


USERS = {
    "a named error": _refused,
    "a check of the library": lambda: require_count("num_steps", 0),
    "a file": lambda: Path("/nowhere/at/all").read_text(),
    "a batch that needs too much memory": lambda: _fails("RESOURCE_EXHAUSTED"),
}
BUGS = {
    "a key": lambda: {}["radius"],
    "a value refused elsewhere": lambda: np.zeros(2).reshape(3),
    "a type": lambda: require_count(),
    "another error of the device": lambda: _fails("INTERNAL"),
}


@pytest.mark.parametrize("case", USERS)
def test_an_error_of_the_user_is_told_apart(case):
    assert launching._is_the_users(_raised(USERS[case]))


@pytest.mark.parametrize("case", BUGS)
def test_an_error_of_the_program_keeps_its_traceback(case):
    assert not launching._is_the_users(_raised(BUGS[case]))


def test_the_home_directory_is_expanded_in_paths():
    holder = launching.define_path("path_of_a_test", "~/default", "A path.")
    try:
        flags.FLAGS(["program"])
        assert holder.value == os.path.expanduser("~/default")
        flags.FLAGS(["program", "--path_of_a_test=~/runs/a b"])
        assert holder.value == os.path.expanduser("~/runs/a b")
    finally:
        delattr(flags.FLAGS, "path_of_a_test")


def test_a_warning_is_one_line_however_often_it_comes(monkeypatch, capsys):
    monkeypatch.setattr(launching, "_shown", set())
    for place in (1, 2):
        launching._show_once(UserWarning("damaged"), UserWarning, "checkpoints.py", place)
    assert capsys.readouterr().err == "UserWarning: damaged\n"
