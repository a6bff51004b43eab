"""Which part may know which: every import between the package's parts points downwards."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "spa_jax"
ORDER = ("core", "models", "data", "evaluation", "training", "benchmarks")


def part(names):
    return names[0] if names and names[0] in ORDER else "core"


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
        for names in imported(ast.parse(path.read_text())):
            if ORDER.index(part(names)) > ORDER.index(part(own)):
                yield f"{'/'.join(own)} imports {'.'.join(names)}"


def test_no_import_points_upwards():
    assert list(upward_imports()) == []


def test_the_imports_are_seen():
    source = "import spa_jax.data.types\ndef f():\n    from spa_jax.training import loop\nfrom spa_jax import spaces\n"
    assert sorted(imported(ast.parse(source))) == [["data", "types"], ["spaces"], ["training", "loop"]]
