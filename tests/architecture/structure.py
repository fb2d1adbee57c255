"""The shape of the package: who imports whom, how long things are, which names exist twice.

``python -m tests.architecture.structure`` prints it.
"""

from __future__ import annotations

import ast
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.architecture import source
from tests.architecture.test_import_floors import ALL

SMALL = 40  # lines


def graph() -> dict[str, set[str]]:
    """Module -> modules of the package that it imports, for types and inside functions too."""
    found: dict[str, set[str]] = {name: set() for name in source.module_names()}
    for edge in ALL:
        importer = source.module_name(edge.path)
        if edge.target in found and edge.target != importer:
            found[importer].add(edge.target)
    return found


def circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other."""
    reached = {start: _reachable(imports, start) for start in imports}
    groups = {frozenset({start, *(other for other in reached[start] if start in reached[other])}) for start in imports}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _reachable(imports: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(imports[start])
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += imports[module]
    return found


def code_lines(path: Path) -> int:
    """Lines that are neither empty, nor a comment, nor part of a docstring."""
    documented = set()
    for node in ast.walk(source.parse(path)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            documented |= set(range(first.lineno, (first.end_lineno or 0) + 1))
    lines = path.read_text(encoding="utf-8").splitlines()
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in documented
        for number, line in enumerate(lines, start=1)
    )


def functions(paths: Iterable[Path]) -> list[int]:
    """Lengths of all functions, in lines."""
    return [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for path in paths
        for node in ast.walk(source.parse(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def public_definitions() -> dict[str, list[str]]:
    """Name -> modules that define a public class or function of that name."""
    found = defaultdict(list)
    for path in source.package_files():
        for node in source.parse(path).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                found[node.name].append(source.module_name(path))
    return dict(found)


def percentile(values: list[int], fraction: float) -> int:
    return sorted(values)[min(len(values) - 1, int(fraction * len(values)))]


def main() -> None:
    paths = source.package_files()
    lines = [len(path.read_text(encoding="utf-8").splitlines()) for path in paths]
    importers: dict[str, set[str]] = defaultdict(set)
    for module, targets in graph().items():
        for target in targets:
            importers[target].add(module)
    once = [m for m in source.module_names() if len(importers[m]) == 1]
    small = sorted(str(p.relative_to(source.ROOT)) for p, n in zip(paths, lines, strict=True) if n < SMALL)
    lengths = functions(paths)
    print(f"files                 {len(paths)}")
    print(f"lines                 {sum(lines)}")
    print(f"code lines            {sum(map(code_lines, paths))}")
    print(
        f"lines of a file       median {statistics.median(lines):.0f}, 90 % {percentile(lines, 0.9)}, longest {max(lines)}"
    )
    print(
        f"lines of a function   median {statistics.median(lengths):.0f}, 90 % {percentile(lengths, 0.9)}, longest {max(lengths)}"
    )
    print(f"import circles        {len(circles(graph()))}")
    print(f"files imported once   {len(once)}")
    print(f"files under {SMALL} lines  {len(small)}:")
    for name in small:
        print(f"  {name}")


if __name__ == "__main__":
    main()
