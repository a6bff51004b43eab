"""The cache of compiled programs: where it is, who may move it, and a folder that cannot be written."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from spa_jax.runs import compiled

ROOT = Path(__file__).parents[2]


@pytest.fixture
def directory_of(monkeypatch, tmp_path):
    """What `use_compilation_cache` sets `jax_compilation_cache_dir` to."""
    settings = {"jax_compilation_cache_dir": None, "jax_enable_compilation_cache": True}
    monkeypatch.setattr(compiled.jax, "config", _Config(settings))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def use(directory=None, **given):
        settings.update(given)
        compiled.use_compilation_cache(directory)
        return settings["jax_compilation_cache_dir"] if settings["jax_enable_compilation_cache"] else "off"

    return use


class _Config:
    def __init__(self, values):
        self.values = values

    def update(self, name, value):
        self.values[name] = value


def test_it_is_in_the_users_cache_folder_one_folder_a_kind_of_machine(directory_of, tmp_path):
    assert directory_of() == str(tmp_path / "cache" / "spa_jax" / "compiled" / compiled.machine())
    assert re.fullmatch(r"\w+-[0-9a-f]{12}", compiled.machine())


def test_without_xdg_it_is_in_the_home(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compiled.default_directory() == tmp_path / ".cache" / "spa_jax" / "compiled"


def test_a_flag_moves_it_and_switches_it_off(directory_of, tmp_path):
    assert directory_of(str(tmp_path / "mine")) == str(tmp_path / "mine" / compiled.machine())
    assert directory_of("gs://bucket/compiled") == f"gs://bucket/compiled/{compiled.machine()}"
    assert directory_of("none") == "off"


def test_what_jax_was_told_stays(directory_of):
    assert directory_of(jax_compilation_cache_dir="/elsewhere") == "/elsewhere"
    assert directory_of(jax_enable_compilation_cache=False) == "off"


def test_a_folder_that_cannot_be_written_is_one_warning(directory_of, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert directory_of(str(tmp_path / "file")) is None
    (record,) = caplog.records
    assert "compiled programs are not kept" in record.getMessage() and str(tmp_path / "file") in record.getMessage()


PROGRAM = """
import jax
from spa_jax.runs.compiled import use_compilation_cache
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
use_compilation_cache()
print(jax.jit(lambda x: x * 3 + 1)(2.0))
"""


def test_two_processes_at_once_and_a_third_share_it(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    for name in ("JAX_ENABLE_COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR"):
        environment.pop(name, None)

    def start():
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, text=True
        )

    for processes in ([start(), start()], [start()]):
        assert [process.communicate(timeout=200)[0] for process in processes] == ["7.0\n"] * len(processes)
        assert list((tmp_path / "spa_jax" / "compiled" / compiled.machine()).glob("*-cache"))
