"""Which part may know which: every import between the package's parts points downwards."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "spa_jax"
ORDER = (
    "basis", "victims", "manipulators", "spaces", "solvers", "attacks", "perceptual", "parallel", "models", "data",
    "evaluation", "training", "runs", "benchmarks",
)  # fmt: skip
"""From the bottom up; what stands in no folder is the basis, but for three modules with a place of their own."""


def part(names):
    return names[0].removesuffix(".py") if names and names[0].removesuffix(".py") in ORDER else "basis"


def imported(tree):
    """The modules of this package that a file imports, at its top or inside of a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.split(".")[1:] for name in found if name.startswith("spa_jax."))


def upward_imports():
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).parts
        if own == ("__init__.py",):
            continue
        for names in imported(ast.parse(path.read_text())):
            if ORDER.index(part(names)) > ORDER.index(part(own)):
                yield f"{'/'.join(own)} imports {'.'.join(names)}"


def test_no_import_points_upwards():
    assert list(upward_imports()) == []


def test_the_imports_are_seen():
    source = "import spa_jax.data.types\ndef f():\n    from spa_jax.training import loop\nfrom spa_jax import spaces\n"
    assert sorted(imported(ast.parse(source))) == [["data", "types"], ["spaces"], ["training", "loop"]]
    assert [part(names) for names in (["types"], ["parallel.py"], ["spaces", "noise.py"], [])] == [
        "basis", "parallel", "spaces", "basis",
    ]  # fmt: skip
