"""What several test files share: tolerances from a yardstick, tiny corpora, and running the commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]


def assert_as_accurate_as(
    fast: torch.Tensor, eager: torch.Tensor, truth: torch.Tensor, factor: float = 2.0, name: str = "result"
) -> None:
    """The error of ``fast`` is at most ``factor`` times that of the plain path ``eager``, both against ``truth``.

    All three are computed from the same inputs, of the same shape; ``truth`` in a wider type. A few roundings of the
    type of ``eager`` at the scale of ``truth`` are allowed on top, because ``eager`` may be right by luck.
    """
    import torch

    assert fast.shape == eager.shape == truth.shape, (fast.shape, eager.shape, truth.shape)
    wide = truth.double()
    scale = float(wide.abs().max()) if wide.numel() else 0.0
    limit = factor * float((eager.double() - wide).abs().max()) if wide.numel() else 0.0
    limit += 4 * torch.finfo(eager.dtype).eps * max(scale, torch.finfo(eager.dtype).tiny)
    error = (fast.double() - wide).abs()
    if not wide.numel() or bool((error <= limit).all()):
        return
    worst = int(torch.where(error.isnan(), torch.inf, error).argmax())
    values = [float(tensor.flatten()[worst]) for tensor in (fast, eager, truth)]
    place = tuple(int(i) for i in np.unravel_index(worst, tuple(truth.shape)))
    raise AssertionError(
        f"{name} at {place}: fast {values[0]!r}, eager {values[1]!r}, truth {values[2]!r}: off by "
        f"{abs(values[0] - values[2]):.3g}, allowed {limit:.3g}"
    )


def sentences(count: int = 60, words: int = 40, seed: int = 0, per_document: int = 7, longest: int = 12) -> list[str]:
    """Lines of the words ``w00``, ``w01``, ... with an empty line after every ``per_document`` (0: none).

    The next word depends on the last one, so that there is something to learn.
    """
    rng = np.random.default_rng(seed)
    lines: list[str] = []
    for number in range(count):
        word = int(rng.integers(words))
        line = [word]
        for _ in range(int(rng.integers(2, longest))):
            word = (2 * word + int(rng.integers(3))) % words
            line.append(word)
        lines.append(" ".join(f"w{word:02d}" for word in line))
        if per_document and number % per_document == per_document - 1:
            lines.append("")
    return lines


def write_text(path: Path, lines: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def tiny_dictionary(words: int = 40) -> Any:
    """Dictionary of ``w00`` ... with counts ``words`` ... 1, so in that order, without ``<mask>``."""
    from fairseq.data.dictionary import Dictionary

    dictionary = Dictionary()
    for word in range(words):
        dictionary.add_symbol(f"w{word:02d}", n=words - word)
    return dictionary


def tiny_data_bin(
    directory: Path,
    subsets: Mapping[str, int] | Sequence[str] = ("train", "valid"),
    words: int = 40,
    seed: int = 0,
    per_document: int = 7,
) -> Path:
    """A memory-mapped data directory of `sentences`: ``dict.txt``, ``train.bin/.idx``, ``valid.bin/.idx``.

    ``subsets`` may give the number of sentences of each; 60 and 20 otherwise.
    """
    import torch

    from fairseq.data.indexed_dataset import MMapIndexedDatasetBuilder

    directory.mkdir(parents=True, exist_ok=True)
    dictionary = tiny_dictionary(words)
    dictionary.save(str(directory / "dict.txt"))
    counts = subsets if isinstance(subsets, Mapping) else {name: 20 if "valid" in name else 60 for name in subsets}
    for number, (name, count) in enumerate(counts.items()):
        builder = MMapIndexedDatasetBuilder(str(directory / f"{name}.bin"), dtype=np.uint16)
        for line in sentences(count, words, seed + number, per_document):
            ids = [dictionary.index(word) for word in line.split()]
            builder.add_item(torch.tensor([*ids, dictionary.eos()], dtype=torch.int64))
        builder.finalize(str(directory / f"{name}.idx"))
    return directory


def run_command(
    name: str,
    *arguments: object,
    cwd: Path | None = None,
    expect: int | None = 0,
    env: Mapping[str, str] | None = None,
    text: str | None = None,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run ``fairseq-<name>`` in a process of its own, as installed users do; ``expect`` is its exit code (None: any).

    ``text`` goes to its standard input. The package under test is the one in this checkout.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "CUDA_VISIBLE_DEVICES": "",
        **(env or {}),
    }
    module = "fairseq.cli." + name.replace("-", "_")
    program = f"import sys; sys.argv[0] = 'fairseq-{name}'; from {module} import cli_main; cli_main()"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=cwd, env=environment, input=text, capture_output=True, text=True, timeout=timeout
    )
    if expect is not None and done.returncode != expect:
        raise AssertionError(
            f"fairseq-{name} {' '.join(map(str, arguments))}\nended with {done.returncode}, expected {expect}\n"
            f"--- output\n{done.stdout[-4000:]}\n--- errors\n{done.stderr[-4000:]}"
        )
    return done


def error_sentence(done: subprocess.CompletedProcess[str], name: str) -> str:
    """The one line that ``fairseq-<name>`` printed about a mistake; fails when there is a traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    start = f"fairseq-{name}: error: "
    found = [line for line in done.stderr.splitlines() if line.startswith(start)]
    assert len(found) == 1, done.stderr
    return found[0].removeprefix(start)
