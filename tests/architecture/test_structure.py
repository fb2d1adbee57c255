"""No import circles, and names that mean one thing."""

from __future__ import annotations

from tests.architecture.structure import circles, graph, public_definitions

# Names that are the same on purpose: what every command has, and what the original calls the same in two places.
COMMAND = {"main", "cli_main", "get_parser"}
SAME_ON_PURPOSE = {
    "SentencePredictionConfig",  # of the task and of the criterion
    "SentenceRankingConfig",
    "why_unavailable",  # of the two libraries of operators
    "reset",
    "load",
    "batch_by_size",  # the operator and the old face of it
    "dropout_add",  # the operator and the module's way to it
    "Encoder",  # of GPT-2's BPE, as the original calls it, and of the model
}


def test_modules_do_not_import_each_other_in_circles() -> None:
    assert circles(graph()) == []


PORTABLE = "fairseq.portable."  # goes to others by itself, and says everything once more


def test_a_public_name_is_defined_once() -> None:
    homes = {name: [h for h in where if not h.startswith(PORTABLE)] for name, where in public_definitions().items()}
    twice = {name: where for name, where in homes.items() if len(where) > 1}
    twice = {name: where for name, where in twice.items() if name not in COMMAND | SAME_ON_PURPOSE}
    assert not twice, "\n" + "\n".join(f"{name}: {', '.join(where)}" for name, where in sorted(twice.items()))
