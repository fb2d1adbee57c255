"""The quickstart's data: books into documents, documents into a training and a held-out text, and a byte-level BPE."""

from __future__ import annotations

import re
from pathlib import Path

HEADING = re.compile(r"CHAPTER .*|[IVXL]+(\. .*)?|[A-Z][A-Z ,.!?\"'-]{5,}")
HELD_OUT = 10  # every tenth story or chapter is kept from training


def documents(book: Path) -> list[list[str]]:
    """The stories or chapters of a book, each a list of paragraphs without line breaks; headings start a new one."""
    found: list[list[str]] = [[]]
    for block in re.split(r"\n\s*\n", book.read_text(encoding="utf-8")):
        lines = [line.strip() for line in block.splitlines() if line.strip()]
        if not lines or lines[0].startswith("["):  # the bracketed title of the book
            continue
        if len(lines) == 1 and HEADING.fullmatch(lines[0]):
            found.append([])
        found[-1].append(" ".join(lines))
    return [document for document in found if sum(map(len, document)) > 200]


def write_split(books: list[Path], train: Path, valid: Path) -> tuple[int, int]:
    """Write both texts: a paragraph a line, an empty line after each document. Returns how many documents each has."""
    everything = [document for book in books for document in documents(book)]
    held_out = everything[HELD_OUT // 2 :: HELD_OUT]
    kept = [document for document in everything if document not in held_out]
    for path, chosen in ((train, kept), (valid, held_out)):
        path.write_text("".join("\n".join(document) + "\n\n" for document in chosen), encoding="utf-8")
    return len(kept), len(held_out)


def train_bpe(text: Path, directory: Path, vocabulary: int) -> tuple[Path, Path]:
    """Learn a byte-level BPE of ``vocabulary`` pieces; returns its ``vocab.json`` and ``merges.txt``."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train([str(text)], vocab_size=vocabulary, min_frequency=2, show_progress=False)
    bpe.save_model(str(directory))
    return directory / "vocab.json", directory / "merges.txt"
