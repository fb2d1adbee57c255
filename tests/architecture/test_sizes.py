"""A file has one job and at most 500 lines; a function has at most 80."""

from __future__ import annotations

import ast

from tests.architecture import source

FILE_LINES = 500
FUNCTION_LINES = 80


def test_files_are_short():
    wrong = []
    for path in source.tracked_files():
        if path.suffix in (".py", ".cpp", ".cu", ".h"):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > FILE_LINES:
                wrong.append(f"{path.relative_to(source.ROOT)}: {lines} lines")
    assert not wrong, f"more than {FILE_LINES} lines:\n" + "\n".join(wrong)


def test_functions_are_short():
    wrong = []
    for path in source.tracked_files():
        if path.suffix == ".py":
            for node in ast.walk(source.parse(path)):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno:
                    lines = node.end_lineno - node.lineno + 1
                    if lines > FUNCTION_LINES:
                        wrong.append(f"{path.relative_to(source.ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert not wrong, f"more than {FUNCTION_LINES} lines:\n" + "\n".join(wrong)


def test_modules_say_what_they_are_for():
    wrong = [
        str(path.relative_to(source.ROOT))
        for path in source.package_files()
        if not ast.get_docstring(source.parse(path))
    ]
    assert not wrong, "no module docstring:\n" + "\n".join(wrong)
