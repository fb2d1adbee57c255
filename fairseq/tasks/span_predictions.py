"""Answers on disk, in the form that SQuAD's official scripts read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq.data.span_answers import answer_text, best_answers
from fairseq.data.span_dataset import SpanSource
from fairseq.data.span_search import Decision
from fairseq.tasks.prediction_files import write_text


def write_answers(path: str, source: SpanSource, decisions: Mapping[int, Decision], allow_no_answer: bool) -> None:
    """Write ``{question id: answer}`` to ``path``, and beside it ``FILE.nbest.json`` with the best spans.

    With ``allow_no_answer`` also ``FILE.null_odds.json``: by how much (in logits) no answer leads, for the
    ``--na-prob-file`` of evaluate-v2.0.py.
    """
    ids = {number: source.records[number].id for number in decisions}
    contents: dict[str, dict[str, Any]] = {
        path: {ids[number]: answer_text(source, number, decision) for number, decision in decisions.items()},
        _beside(path, "nbest"): {
            ids[number]: [answer._asdict() for answer in best_answers(source, number, decision, allow_no_answer)]
            for number, decision in decisions.items()
        },
    }
    if allow_no_answer:
        contents[_beside(path, "null_odds")] = {ids[number]: found.margin for number, found in decisions.items()}
    for name, content in contents.items():
        write_text(name, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def _beside(path: str, what: str) -> str:
    place = Path(path)
    return str(place.with_name(f"{place.stem if place.suffix == '.json' else place.name}.{what}.json"))
