"""Random corpora in the original's own format, so that every contestant reads the same files.

Speed does not depend on what the tokens say: random ids keep the benchmarks free of downloads.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

SPECIALS = 5  # <s>, <pad>, </s>, <unk> and, added by the task at the end, <mask>
LINE = 128  # tokens per line, end of sentence included


def write_split(prefix: Path, tokens: int, vocabulary: int, seed: int, line: int = LINE) -> None:
    """Write `prefix`.bin and .idx: at least `tokens` random tokens in lines of `line` (uint16; memory-mapped format)."""
    lines = -(-tokens // line)
    stream = np.random.default_rng(seed).integers(4, vocabulary - 1, size=(lines, line), dtype=np.uint16)
    stream[:, -1] = 2  # end of sentence
    stream.tofile(prefix.with_suffix(".bin"))
    with open(prefix.with_suffix(".idx"), "wb") as index:
        index.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQ", 1, 8, lines))
        index.write(np.full(lines, line, dtype=np.int32).tobytes())
        index.write((np.arange(lines, dtype=np.int64) * line * 2).tobytes())


def write_data_bin(
    directory: Path, vocabulary: int, train_tokens: int, valid_tokens: int = 4096, line: int = LINE, seed: int = 1
) -> Path:
    """Make a data directory whose dictionary, the mask symbol included, has `vocabulary` entries (once)."""
    done = directory / "complete"
    if not done.exists():
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(vocabulary - SPECIALS)))
        write_split(directory / "train", train_tokens, vocabulary, seed, line)
        write_split(directory / "valid", valid_tokens, vocabulary, seed + 1, line)
        done.touch()
    return directory
