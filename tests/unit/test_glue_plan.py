"""From a checkpoint and data to runs: options, order, limits, what is needed of the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairseq.dataclass.parser import get_training_parser, parse_args_and_arch
from fairseq.errors import ConfigError, DataNotFoundError
from fairseq.glue import data as datasets
from fairseq.glue import files, plan
from fairseq.glue.data import Start, TaskData, _model_options
from fairseq.glue.plan import Limits
from fairseq.glue.recipe import Recipe
from tests.tiny_glue import tiny_glue

ALL: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 8,
    "lr": "1e-3",
    "optimizer": "adam",
    "lr_scheduler": "polynomial_decay",
}


def begin(has_table: bool = True, **model: Any) -> Start:
    return Start(Path("m.pt"), "c", {"arch": "roberta", **model}, 64, has_table, 1000, None, Path("dict.txt"), None)


def data(task: str, rows: int = 80) -> TaskData:
    valid = {"valid": 10, "valid1": 10} if task == "MNLI" else {"valid": 10}
    return TaskData(task, Path("x"), f"d-{task}", {"train": rows, **valid}, {name: {} for name in valid})


def make(
    recipe: Recipe, *tasks: str, seeds: int = 1, limits: Limits | None = None, start: Start | None = None, **given: Any
):
    return plan.make(recipe, start or begin(), [data(task) for task in tasks], seeds, given, limits)


def test_every_task_gets_a_seed_before_any_gets_another():
    runs = make(Recipe("x", all=ALL), "CoLA", "RTE", seeds=2).runs
    assert [run.name for run in runs] == ["CoLA/seed1", "RTE/seed1", "CoLA/seed2", "RTE/seed2"]


def test_options_of_a_run():
    (run,) = make(Recipe("x", all={**ALL, "warmup": 0.1}), "MNLI").runs
    parsed = parse_args_and_arch(get_training_parser(), ["DATA", *plan.words(run.options)])
    assert (parsed.max_update, parsed.total_num_update, parsed.warmup_updates) == (20, 20, 2)
    assert (parsed.num_classes, parsed.valid_subset, parsed.best_checkpoint_metric) == (3, "valid,valid1", "accuracy")
    assert (parsed.max_positions, parsed.init_token, parsed.separator_token, parsed.seed) == (64, 0, 2, 1)
    (run,) = make(Recipe("x", all=ALL), "STS-B").runs
    assert run.options["regression_target"] is True and run.options["num_classes"] == 1
    assert run.metric == "pearson_and_spearman" and run.examples == 160


def test_schedules():
    (run,) = make(Recipe("x", all={**ALL, "lr_scheduler": "cosine", "warmup": 0.25}), "RTE").runs
    assert run.options["lr_period_updates"] == 15 and run.options["warmup_updates"] == 5
    (run,) = make(Recipe("x", all={**ALL, "warmup": 4, "max_epoch": 9}), "RTE", limits=Limits(1, None)).runs
    assert (run.updates, run.options["warmup_updates"], run.options["max_epoch"]) == (10, 2, 1)


def test_grid_and_names():
    runs = make(Recipe("x", all={**ALL, "grid": {"lr": ["1e-3", "1e-4"]}}), "RTE").runs
    assert [run.name for run in runs] == ["RTE/lr=1e-3/seed1", "RTE/lr=1e-4/seed1"]
    assert [run.options["lr"] for run in runs] == ["1e-3", "1e-4"]


def test_runs_that_start_from_others_come_after_them():
    recipe = Recipe("x", all=ALL, tasks={"RTE": {"start_from": "MNLI"}})
    made = make(recipe, "RTE", "MNLI", seeds=2)
    assert [run.task for run in made.runs] == ["MNLI", "RTE"] * 2
    assert [run.after and run.after.name for run in made.runs] == [None, "MNLI/seed1", None, "MNLI/seed2"]
    assert not made.notes
    alone = make(recipe, "RTE")
    assert alone.runs[0].after is None and "RTE would start from the model of MNLI" in alone.notes[0]
    assert alone.runs[0].settings() != made.runs[1].settings()
    with pytest.raises(ConfigError, match="one step only"):
        make(
            Recipe("x", all=ALL, tasks={"RTE": {"start_from": "MNLI"}, "MNLI": {"start_from": "CoLA"}}),
            "RTE",
            "MNLI",
            "CoLA",
        )


def test_learned_positions_keep_the_size_of_their_table():
    recipe = Recipe("x", all={**ALL, "max_positions": 16})
    made = make(recipe, "RTE")
    assert made.runs[0].options["max_positions"] == 64 and "cuts inputs at 16 tokens" in made.notes[0]
    made = make(recipe, "RTE", start=begin(has_table=False))
    assert made.runs[0].options["max_positions"] == 16 and not made.notes


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": 1}, "the options of RTE: unknown option --learning-rate"),
        ({"lr_scheduler": "cosin"}, "cosin"),
        ({"batch_size": "many"}, "batch"),
        ({"score": "f1"}, "RTE has no score 'f1'. Its scores: accuracy"),
    ],
)
def test_mistakes_in_options(given: dict[str, Any], message: str):
    with pytest.raises((ConfigError, ValueError), match=message):
        make(Recipe("x", all=ALL), "RTE", **given)


def test_words():
    assert plan.words({"lr": "1e-5", "fp16": True, "bf16": False, "x": None, "adam_betas": "(0.9, 0.98)"}) == [
        *("--lr", "1e-5", "--fp16", "--adam-betas", "(0.9, 0.98)")
    ]
    assert plan.words({"update_freq": [1, 2], "min_lr": -1}) == ["--update-freq", "1,2", "--min-lr=-1"]


@pytest.mark.parametrize("arch", ["roberta", "roberta_alibi_clap", "roberta_zero_clap"])
def test_the_architecture_of_a_checkpoint_as_options(arch: str):
    """Every stored setting comes back from the command line that is made of it."""
    stored = {
        **{"_name": arch, "encoder_layers": 3, "encoder_alibi": True, "layernorm_embedding": False, "dropout": 0.0},
        **{"l2norm_embedding": False, "encoder_learned_pos": True, "mask_prob": 0.15, "max_positions": 64},
        **{"no_token_positional_embeddings": True, "no_scale_embedding": False, "untie_weights_roberta": False},
    }
    options = {"task": "sentence_prediction", "criterion": "sentence_prediction", "arch": arch, "num_classes": 2}
    parsed = parse_args_and_arch(
        get_training_parser(), ["DATA", *plan.words({**options, **_model_options(arch, stored)})]
    )
    for key, value in stored.items():
        if key not in ("_name", "max_positions"):
            name = "model_mask_prob" if key == "mask_prob" else key
            assert getattr(parsed, name, False) == value, key


def test_which_tasks_run(tmp_path: Path):
    glue = tiny_glue(tmp_path / "glue", rows=4)
    tasks, missing = datasets.choose(["all"], glue)
    assert [task.name for task in tasks] == ["CoLA", "STS-B", "RTE"]
    assert "MNLI (no folder MNLI)" in missing and not any("WNLI" in reason for reason in missing)
    assert [task.name for task in datasets.choose(["rte", "CoLA", "RTE"], glue)[0]] == ["RTE", "CoLA"]
    (glue / "RTE" / "train.tsv").unlink()
    assert "RTE (no train.tsv)" in datasets.choose(["all"], glue)[1]
    with pytest.raises(DataNotFoundError, match="RTE is not in .*: no train.tsv"):
        datasets.choose(["RTE"], glue)
    with pytest.raises(DataNotFoundError, match="holds none"):
        datasets.choose(["all"], tmp_path)


def test_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert files.plan_machine(2, 8, 1000, cpu=True) == files.Machine(2, 4)
    assert files.plan_machine(None, 1, 1000, cpu=True).jobs == 1
    assert files.plan_machine(None, 64, 10**13, cpu=True).jobs == 1  # no memory for two
    assert files.Machine(4, 2, ("0", "3")).environment(1)["CUDA_VISIBLE_DEVICES"] == "3"
    assert files.Machine(1, 2).environment(0)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert files.plan_machine(1, 8, 1000, cpu=True).threads == 1
    assert files.Machine(1, 2).environment(0) == {}
