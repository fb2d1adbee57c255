"""The table of data formats that ``fairseq-preprocess-task`` reads.

A format is a function ``write(job: Job) -> Written`` (see `fairseq.data.downstream.layout`) that registers itself::

    @FORMATS.register("race")
    def write(job: Job) -> Written: ...

``Builtin`` may name a dataclass of options of its own (the decorator names it too); they become flags, and
``job.options`` is its instance.
"""

from __future__ import annotations

from typing import Any

from fairseq.registry import Builtin, Registry

_HERE = "fairseq.data.downstream"

FORMATS: Registry[Any] = Registry(
    "task",
    {
        "plain": Builtin(f"{_HERE}.plain", f"{_HERE}.configs:PlainConfig"),
        "sentence_prediction": Builtin(f"{_HERE}.plain", f"{_HERE}.configs:PlainConfig"),
        "glue": Builtin(f"{_HERE}.glue"),
        "race": Builtin(f"{_HERE}.race"),
        "commonsense_qa": Builtin(f"{_HERE}.commonsense"),
        "swag": Builtin(f"{_HERE}.swag"),
        "squad": Builtin(f"{_HERE}.squad"),
        "squad2": Builtin(f"{_HERE}.squad"),
        "conll": Builtin(f"{_HERE}.conll", f"{_HERE}.token_configs:ConllConfig"),
    },
    refused=dict.fromkeys(
        ("wsc", "winogrande", "WSC", "disambiguate_pronoun"), "Winograd schemas (pronoun disambiguation)"
    ),
)
