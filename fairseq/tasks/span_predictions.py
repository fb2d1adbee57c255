"""Answers on disk, in the form that SQuAD's official scripts read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq.data.span_dataset import SpanSource
from fairseq.data.span_search import Decision
from fairseq.tasks.prediction_files import write_text


def answer_text(source: SpanSource, question: int, decision: Decision) -> str:
    """The characters of the best span, or nothing when there is no answer."""
    if not decision.answered:
        return ""
    best = decision.spans[0]
    return source.texts[source.records[question].context][best.start : best.stop]


def n_best(source: SpanSource, question: int, decision: Decision) -> list[dict[str, Any]]:
    """The best spans with ``text``, ``start``, ``end`` (characters), ``score`` and ``probability`` among themselves."""
    context = source.texts[source.records[question].context]
    highest = decision.spans[0].score if decision.spans else 0.0
    weights = [math.exp(span.score - highest) for span in decision.spans]
    return [
        {
            "text": context[span.start : span.stop],
            "start": span.start,
            "end": span.stop,
            "score": span.score,
            "probability": weight / sum(weights),
        }
        for span, weight in zip(decision.spans, weights, strict=True)
    ]


def write_answers(path: str, source: SpanSource, decisions: Mapping[int, Decision]) -> None:
    """Write ``{question id: answer}`` to ``path``, and beside it the best spans, ``FILE.nbest.json``, and how much better
    no answer would be, ``FILE.null_odds.json`` (the ``--na-prob-file`` of evaluate-v2.0.py, in logits)."""
    ids = {question: source.records[question].id for question in decisions}
    files: dict[str, dict[str, Any]] = {
        path: {ids[number]: answer_text(source, number, decision) for number, decision in decisions.items()},
        _beside(path, "nbest"): {
            ids[number]: n_best(source, number, decision) for number, decision in decisions.items()
        },
        _beside(path, "null_odds"): {ids[number]: decision.margin for number, decision in decisions.items()},
    }
    for name, content in files.items():
        write_text(name, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _beside(path: str, what: str) -> str:
    place = Path(path)
    stem = place.stem if place.suffix == ".json" else place.name
    return str(place.with_name(f"{stem}.{what}.json"))
