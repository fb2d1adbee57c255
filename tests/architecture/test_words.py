"""Nothing in the repository depends on where it was written: no paths of one machine, no package index, no keys.

And no merge left its marks.
"""

from __future__ import annotations

import re

from tests.architecture import source

# Spelt in pieces, so that this file passes its own test.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.])/(?:" + "|".join(("work", "home/[a-z]+", "root", "Users/[a-z]+")) + r")/",
    "a path outside the repository": r"\.\./" + "shared" + r"\b",
    "a package index": "|".join(
        (
            "pypi" + r"\.org",
            "pytorch" + r"\.org/whl",
            "files\\.python" + "hosted",
            "--extra-" + "index-url",
            "/opt/" + r"(?:pypi|fs|wheels)",
        )
    ),
    "a credential": "|".join(
        ("BEGIN [A-Z ]*PRIVATE " + "KEY", "gh[pousr]_" + r"[A-Za-z0-9]{30}", "AKIA" + "[0-9A-Z]{16}")
    ),
}
FORBIDDEN["a mark of a merge"] = r"(?m)^(?:" + "<" * 7 + "|" + ">" * 7 + ") "
BINARY = {".png", ".pt", ".bin", ".idx", ".npz", ".npy", ".model", ".gz", ".safetensors"}


def test_no_forbidden_words():
    wrong = []
    for path in source.tracked_files():
        if path.suffix in BINARY or path == source.ROOT / "tests/architecture/test_words.py":
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        for what, pattern in FORBIDDEN.items():
            for found in re.finditer(pattern, text):
                line = text.count("\n", 0, found.start()) + 1
                wrong.append(f"{path.relative_to(source.ROOT)}:{line}: {what}: {found.group()!r}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_large_files():
    wrong = [
        f"{path.relative_to(source.ROOT)}: {path.stat().st_size} bytes"
        for path in source.tracked_files()
        if path.stat().st_size > 1_500_000
    ]
    assert not wrong, "\n" + "\n".join(wrong)
