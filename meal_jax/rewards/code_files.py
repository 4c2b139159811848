"""The files of a reward that a user wrote: its own, and those of the user's modules that it imports."""

from __future__ import annotations

import ast
import importlib.util
import sysconfig
from collections.abc import Iterator
from pathlib import Path

STDLIB = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
INSTALLED = {"site-packages", "dist-packages"}


def code_files(name: str) -> dict[str, Path]:
    """Files of Python code by their name, or that of their module: of a function, and of what it imports, also indirectly.

    The standard library, installed packages and meal_jax are left out, and so are files that are not imported by an `import`
    statement, or that the code reads as data.

    Args:
      name: `path/to/file.py:function` or `package.module:function`, which `python.load` can load.
    """
    place = name.rpartition(":")[0]
    if place.endswith(".py"):
        first = Path(place).expanduser()
        label, package = first.name, ""
    else:
        spec = importlib.util.find_spec(place)
        first, label, package = Path(spec.origin), place, spec.parent
    found, left = {label: first}, [(first, package)]
    while left:
        for module in _imported(*left.pop()):
            spec = None if module in found else _spec(module)
            if spec is not None:
                found[module] = Path(spec.origin)
                left.append((found[module], spec.parent))
    return {name: path for name, path in found.items() if path.is_file()}  # one that is built in has none


def _imported(path: Path, package: str) -> Iterator[str]:
    """Names that a file's import statements may mean as modules; `package` is what relative ones start from."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):  # compiled, or built in
        return
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package or None)
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _spec(module: str):
    """Where a user's module is; None of others, and of what is no module. Nothing that is installed is imported for it."""
    try:
        top = importlib.util.find_spec(module.partition(".")[0])
        spec = importlib.util.find_spec(module) if _is_users(top) else None
    except (ImportError, ValueError, AttributeError):  # the name of a function, or a module that is not there
        return None
    return spec if _is_users(spec) and spec.origin else None  # a folder without __init__.py has no code of its own


def _is_users(spec) -> bool:
    if spec is None or spec.name.partition(".")[0] == "meal_jax":
        return False
    if spec.origin is None:
        return spec.submodule_search_locations is not None
    path = Path(spec.origin).resolve()
    inside = INSTALLED & set(path.parts) or any(path.is_relative_to(folder) for folder in STDLIB)
    return path.suffix == ".py" and not inside
