"""How much of the original's import paths and public names is here: ``python scripts/compat_report.py [--all]``.

Modules are read from ``tests/data/compat/old_modules.txt``, names of those that are kept from ``old_names.txt`` there. A
module is kept, answered with one sentence, or bare (an error that explains nothing); so is a name, where a stand-in, which
can be imported and refuses when it is used, counts as a sentence.
"""

from __future__ import annotations

import argparse
import importlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fairseq.errors import OutOfScopeError

DATA = Path(__file__).parent.parent / "tests" / "data" / "compat"
KEPT, SENTENCE, BARE = "kept", "one sentence", "bare"


def old_modules() -> list[str]:
    return (DATA / "old_modules.txt").read_text(encoding="utf-8").split()


def old_names() -> Iterator[tuple[str, str]]:
    """(Module, name)."""
    for line in (DATA / "old_names.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            module, _, names = line.partition(":")
            yield from ((module, name) for name in names.split())


def judge_module(name: str) -> str:
    try:
        importlib.import_module(name)
    except OutOfScopeError:
        return SENTENCE
    except ImportError:
        return BARE
    return KEPT


def judge_name(module: str, name: str) -> str:
    try:
        found = getattr(importlib.import_module(module), name)
    except OutOfScopeError:
        return SENTENCE
    except (ImportError, AttributeError):
        return BARE
    return SENTENCE if "refuses" in type(found).__dict__ else KEPT


def report(what: str, judged: dict[str, str], show: bool) -> None:
    count = Counter(judged.values())
    print(f"{what}: kept / one sentence / bare = {count[KEPT]} / {count[SENTENCE]} / {count[BARE]}")
    for name, verdict in judged.items():
        if show or verdict == BARE:
            print(f"  {verdict}: {name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="list every module and name with its verdict")
    show = parser.parse_args().all
    report("old modules", {name: judge_module(name) for name in old_modules()}, show)
    report("old names", {f"{module}.{name}": judge_name(module, name) for module, name in old_names()}, show)


if __name__ == "__main__":
    main()
