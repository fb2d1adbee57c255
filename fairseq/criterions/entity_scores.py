"""Scores of token classification: accuracy, and precision, recall and F1 of whole entities as ``conlleval`` counts them.

The rules are those of the CoNLL-2000 evaluation script, extended by ``E`` (end) and ``S`` (single) as ``seqeval`` does
in its default mode, so that IOB1, IOB2 and IOBES labels, and sequences that break their scheme, all have a reading.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Entity = tuple[int, int, str]  # first and last word, counted through all sentences, and type


def accuracy(targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> float:
    """Fraction of the words whose label is right, x100."""
    pairs = [
        pair for target, found in zip(targets, predictions, strict=True) for pair in zip(target, found, strict=True)
    ]
    return 100.0 * sum(target == found for target, found in pairs) / max(1, len(pairs))


def entity_scores(targets: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> dict[str, float]:
    """``precision``, ``recall`` and ``f1`` (x100) of entities, micro-averaged; 0 where there is nothing to divide by.

    Arguments are one list of labels (``B-PER``, ``I-PER``, ``O``, ...) per sentence.
    """
    wanted, found = set(entities(targets)), set(entities(predictions))
    right = len(wanted & found)
    precision = right / len(found) if found else 0.0
    recall = right / len(wanted) if wanted else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": 100.0 * precision, "recall": 100.0 * recall, "f1": 100.0 * f1}


def entities(sentences: Sequence[Sequence[str]]) -> Iterator[Entity]:
    """The entities that the labels of ``sentences`` describe, in their order."""
    labels = [label for sentence in sentences for label in (*sentence, "O")]  # no entity crosses the end of a sentence
    first, previous = 0, _parse("O")
    for position, current in enumerate(map(_parse, labels)):
        if _ends(previous, current):
            yield first, position - 1, previous[1]
        if _starts(previous, current):
            first = position
        previous = current


def _parse(label: str) -> tuple[str, str]:
    """Prefix and type: ``B-PER`` is B and PER. A bare prefix has the type ``_``, as ``O`` has."""
    return label[:1], label[1:].split("-", 1)[-1] or "_"


def _ends(previous: tuple[str, str], current: tuple[str, str]) -> bool:
    """Whether an entity ends between two neighbouring words."""
    return (
        previous[0] in ("E", "S")
        or (previous[0] in ("B", "I") and current[0] in ("B", "S", "O"))
        or (previous[0] not in ("O", ".") and previous[1] != current[1])
    )


def _starts(previous: tuple[str, str], current: tuple[str, str]) -> bool:
    """Whether an entity starts between two neighbouring words."""
    return (
        current[0] in ("B", "S")
        or (previous[0] in ("E", "S", "O") and current[0] in ("E", "I"))
        or (current[0] not in ("O", ".") and previous[1] != current[1])
    )
