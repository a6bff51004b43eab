"""The check that fails the documentation's build: every public name has a docstring and a place on an API page."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def hooks():
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path):
    import griffe

    (tmp_path / "house").mkdir()
    (tmp_path / "house" / "__init__.py").write_text(
        '"""A package."""\nfrom house.attic import box\nfrom house.lamp import lamp\n'
        '__all__ = ["box", "lamp", "BARE"]\nBARE = 1\n'
    )
    (tmp_path / "house" / "attic.py").write_text(
        '"""A module."""\nSIZE = 1\n"""Documented."""\n\ndef box():\n    """Documented."""\n\ndef bare():\n    pass\n'
        "\ndef _hidden():\n    pass\n"
    )
    (tmp_path / "house" / "lamp.py").write_text('"""A module."""\n\ndef lamp():\n    pass\n')
    (tmp_path / "house" / "cellar.py").write_text('"""A module."""\n')
    return griffe.load("house", search_paths=[tmp_path], resolve_aliases=True)


def test_undocumented_names_and_names_without_a_page_are_named(hooks, package):
    shown = {"house.attic.box", "house.attic.bare", "house.lamp.lamp"}
    assert hooks.problems(package, ["house.attic", "house.lamp.lamp"], shown) == [
        "house.cellar has no API page",
        "house.lamp.lamp has no docstring",
        "house.BARE has no docstring",
        "house.attic.bare has no docstring",
        "house.attic.SIZE is on no API page",
    ]


def test_every_page_of_the_navigation_exists():
    import yaml

    config = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text())
    *pages, api = config["nav"]
    named = {*pages, *api["API"]}
    assert named == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
