"""Imports inside the package go down only. Parses every import, those in functions and in strings too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fairseq.compat.aliases import ALIASES
from tests.architecture import source

FLOORS = {
    **dict.fromkeys("ending errors file_io layout lazy limits locks overrides refusals registry rng tree".split(), 0),
    **dict.fromkeys(("dataclass", "config", "logging", "ops", "portable"), 1),
    **dict.fromkeys(("data", "modules", "optim", "checkpoint", "distributed"), 2),
    "finetune": 3,
    **dict.fromkeys(("models", "criterions"), 4),
    **dict.fromkeys(("tasks", "interop"), 5),
    **dict.fromkeys(("training", "glue", "hf"), 6),
    "cli": 7,
    "compat": 8,
}
ROOF = FLOORS["compat"]  # old import paths, which nothing inside imports; what is on no floor counts as roof too
EXEMPT = {"registry.py"}  # the one way up: components by name
NAMING = {*EXEMPT, "aliases.py", "__init__.py"}  # and the tables of old paths and of what packages export lazily
LAZY_IMPORTERS = {"lazy.py", "registry.py", "aliases.py"}


@dataclass(frozen=True)
class Edge:
    path: Path
    line: int
    target: str  # the most precise module or package that is imported
    function: str | None  # the function the import stands in
    named: str | None = None  # what `from target import named` takes, when that is not a module

    def __str__(self) -> str:
        return f"{self.path.relative_to(source.ROOT)}:{self.line} imports {self.target}"


def part(module: str) -> str:
    """The second component of a dotted name: which package or top-level module of fairseq it belongs to."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


def floor(module: str) -> int:
    name = part(module)
    return 0 if name == "__init__" else FLOORS.get(name, ROOF)


def edges(path: Path) -> Iterator[Edge]:
    for node, function in walk(source.parse(path), None):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "fairseq":
                    yield Edge(path, node.lineno, alias.name, function)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(path, node)
            if base.split(".")[0] == "fairseq":
                for alias in node.names:
                    full = f"{base}.{alias.name}"
                    if full in source.module_names():
                        yield Edge(path, node.lineno, full, function)
                    else:
                        yield Edge(path, node.lineno, base, function, named=alias.name)
        elif isinstance(node, ast.Call) and path.name not in NAMING:
            for text in [*node.args, *(word.value for word in node.keywords)]:
                for part in ast.walk(text):  # imported or run by name: import_module, runpy, python -m
                    if named_module(part) and getattr(node.func, "attr", "") != "getLogger":
                        yield Edge(path, node.lineno, part.value, function, named="by name")  # type: ignore[attr-defined]


def named_module(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value in source.module_names() - {"fairseq"}


def walk(node: ast.AST, function: str | None) -> Iterator[tuple[ast.AST, str | None]]:
    for child in ast.iter_child_nodes(node):
        yield child, function
        inside = child.name if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
        yield from walk(child, inside)


def absolute(path: Path, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = source.module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, node.module] if node.module else package)


# ``import fairseq`` installs what answers the old paths: the one import of the roof from below.
ALL = [edge for path in source.package_files() if path != source.PACKAGE / "__init__.py" for edge in edges(path)]


def report(wrong: list[str]) -> None:
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_package_has_a_floor():
    packages = {path.parent.name for path in source.PACKAGE.glob("*/__init__.py")}
    report([f"fairseq/{name} is on no floor" for name in sorted(packages - set(FLOORS))])


def test_imports_go_down():
    wrong = []
    for edge in ALL:
        importer = source.module_name(edge.path)
        if edge.path.name in EXEMPT or floor(importer) == ROOF or part(importer) == part(edge.target):
            continue
        ground = floor(importer) == floor(edge.target) == 0
        if floor(edge.target) >= floor(importer) and not ground:
            wrong.append(f"{edge} (floor {floor(importer)} imports floor {floor(edge.target)})")
    report(wrong)


def test_nothing_imports_the_roof():
    report(
        [
            f"{edge} (an old import path)"
            for edge in ALL
            if floor(edge.target) == ROOF > floor(source.module_name(edge.path))
            or {edge.target, f"{edge.target}.{edge.named}"} & ALIASES.keys()
        ]
    )


def test_no_module_imports_its_own_package():
    wrong = []
    for edge in ALL:
        importer = source.module_name(edge.path)
        inside = importer.startswith(f"{edge.target}.") and edge.target != "fairseq"
        if inside and (edge.named or edge.target in source.module_names()):
            home = source.ROOT / Path(*edge.target.split(".")) / "__init__.py"
            if home.exists():
                wrong.append(f"{edge}: name the module, not the package it is in")
    report(wrong)


def test_no_import_of_the_package_inside_functions():
    wrong = []
    for edge in ALL:
        lazy_export = edge.function == "__getattr__" and edge.path.name == "__init__.py"
        if (
            edge.function
            and not lazy_export
            and edge.named != "by name"
            and floor(source.module_name(edge.path)) not in (FLOORS["cli"], ROOF)
        ):
            wrong.append(f"{edge} inside {edge.function}()")
    report(wrong)


def test_registries_are_the_only_import_by_name():
    """``import_module`` with a computed name is kept to the registries, the lazy exports and ``--user-dir``."""
    allowed = LAZY_IMPORTERS | {"user_module.py"}
    wrong = []
    for path in source.package_files():
        for node in ast.walk(source.parse(path)):
            called = getattr(node.func, "attr", "") if isinstance(node, ast.Call) else ""
            if called == "import_module" and path.name not in allowed and not isinstance(node.args[0], ast.Constant):
                wrong.append(f"{path.relative_to(source.ROOT)}:{node.lineno} imports a module by a computed name")
    report(wrong)
