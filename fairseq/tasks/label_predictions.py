"""Labels of words on disk: columns, as ``conlleval`` reads them."""

from __future__ import annotations

from collections.abc import Sequence

from fairseq.tasks.prediction_files import write_text


def write_labels(
    path: str,
    words: Sequence[Sequence[str]],
    targets: Sequence[Sequence[str]] | None,
    predictions: Sequence[Sequence[str]],
) -> None:
    """Write ``word target prediction`` a line (without ``targets``: ``word prediction``), an empty line after a sentence."""
    columns = [words, predictions] if targets is None else [words, targets, predictions]
    blocks = (
        "".join(" ".join(row) + "\n" for row in zip(*sentence, strict=True)) for sentence in zip(*columns, strict=True)
    )
    write_text(path, "".join(block + "\n" for block in blocks))
