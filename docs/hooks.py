"""MkDocs hooks: the README as the first page, and an error where a public name has no docstring or no API page."""

import re
import zlib
from pathlib import Path

import griffe
from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]
INTERNAL = ("configuration", "numerics", "trees", "validation")
"""Modules whose names are not public, but for those that an API page lists."""


def on_page_markdown(markdown, page, **_):
    """The README in the place of the first page, and the table of names on the first page of the API."""
    if page.file.src_uri == "index.md":
        return (ROOT / "README.md").read_text().replace("](docs/", "](")
    if page.file.src_uri == "api/index.md":
        return markdown + _table_of_names()
    return markdown


def on_post_build(config, **_):
    """Fail at public names that lack a docstring or that no API page shows."""
    pages = "\n".join(path.read_text() for path in sorted((ROOT / "docs/api").glob("*.md")))
    namespaces = re.findall(r"^::: (\S+)$", pages, flags=re.MULTILINE)
    inventory = (Path(config["site_dir"]) / "objects.inv").read_bytes()
    shown = {line.split()[0] for line in zlib.decompress(inventory.split(b"\n", 4)[4]).decode().splitlines()}
    if wrong := problems(_package(), namespaces, shown):
        raise PluginError("\n".join(wrong))


def problems(package, namespaces, shown):
    """One line for each public name without a docstring or a page, and for each module that no page covers.

    Args:
        package: of griffe.
        namespaces: dotted names of the modules that the API pages show.
        shown: dotted names of all objects on the pages.
    """
    covered = {name.removeprefix(f"{package.path}.").split(".")[0] for name in namespaces}
    modules = [name for name, member in package.members.items() if not member.is_alias and member.is_module]
    wrong = [f"{package.path}.{name} has no API page" for name in modules if name not in covered.union(INTERNAL)]
    shown_modules = [package[namespace.partition(".")[2]] for namespace in namespaces]
    shown_modules = [module for module in shown_modules if module.is_module and module.name not in INTERNAL]
    names = [member for module in shown_modules for member in _public(module)]
    wrong += [
        f"{member.path} has no docstring" for member in (*_public(package), *names) if not _target(member).has_docstring
    ]
    return wrong + [f"{member.path} is on no API page" for member in names if member.path not in shown]


def _package():
    return griffe.load("spa_jax", search_paths=[ROOT], resolve_aliases=True)


def _public(module):
    """The public objects of a module; modules themselves are left out."""
    members = [_imported(module, member) for member in module.members.values() if member.is_public]
    return [member for member in members if not member.is_module]


def _imported(module, member):
    """What a package imports by a name that one of its modules has too, such as the function `spa` of `spa.py`."""
    while member.is_module and member.name in module.imports:
        parent, _, name = module.imports[member.name].rpartition(".")
        if parent == module.path:
            break
        module = module.package[parent.partition(".")[2]] if "." in parent else module.package
        member = module.members[name]
    return member


def _target(member):
    return member.final_target if member.is_alias else member


def _table_of_names():
    rows = []
    for member in sorted(_public(_package()), key=lambda member: member.name):
        target = _target(member)
        summary = target.docstring.value.split("\n")[0]
        rows.append(f"| [`{member.name}`][{target.path}] | {summary.replace('|', chr(92) + '|')} |")
    return "\n".join(["", "| name | |", "| --- | --- |", *rows, ""])
