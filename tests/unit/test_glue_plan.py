"""From a checkpoint and data to runs: options, order, limits, what is needed of the machine."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from fairseq.dataclass.build import build_config, convert_namespace_to_omegaconf
from fairseq.dataclass.parser import get_training_parser, parse_args_and_arch
from fairseq.errors import ConfigError, DataNotFoundError
from fairseq.glue import data as datasets
from fairseq.glue import plan, runs
from fairseq.glue.data import TaskData
from fairseq.glue.plan import Limits
from fairseq.glue.pretrained import PretrainedModel
from fairseq.glue.recipe import Recipe, load
from tests.tiny_glue import tiny_glue

ALL: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 8,
    "lr": "1e-3",
    "optimizer": "adam",
    "lr_scheduler": "polynomial_decay",
}


def begin(has_table: bool = True, **model: Any) -> PretrainedModel:
    stored = {"_name": "roberta", **model}
    return PretrainedModel(Path("m.pt"), "c", stored, 64, has_table, 1000, None, Path("dict.txt"), None)


def data(task: str, rows: int = 80) -> TaskData:
    valid = {"valid": 10, "valid1": 10} if task == "MNLI" else {"valid": 10}
    return TaskData(task, Path("x"), f"d-{task}", {"train": rows, **valid}, {name: {} for name in valid})


def make(
    recipe: Recipe,
    *tasks: str,
    seeds: int = 1,
    limits: Limits | None = None,
    start: PretrainedModel | None = None,
    **given: Any,
):
    return plan.make(recipe, start or begin(), [data(task) for task in tasks], seeds, given, limits or Limits())


def test_every_task_gets_a_seed_before_any_gets_another():
    runs = make(Recipe("x", all=ALL), "CoLA", "RTE", seeds=2).runs
    assert [run.name for run in runs] == ["CoLA/seed1", "RTE/seed1", "CoLA/seed2", "RTE/seed2"]


def test_options_of_a_run():
    (run,) = make(Recipe("x", all={**ALL, "warmup": 0.1}), "MNLI").runs
    cfg = build_config(run.configuration())
    scheduler = cfg.lr_scheduler
    assert (cfg.optimization.max_update, scheduler.total_num_update, scheduler.warmup_updates) == (20, 20, 2)
    assert (cfg.task.num_classes, cfg.dataset.valid_subset) == (3, "valid,valid1")
    assert cfg.checkpoint.best_checkpoint_metric == "accuracy" and cfg.common.seed == cfg.task.seed == 1
    assert (cfg.task.init_token, cfg.task.separator_token) == (0, 2)
    assert cfg.task.max_positions == cfg.model.max_positions == 64
    (run,) = make(Recipe("x", all=ALL), "STS-B").runs
    assert run.options["regression_target"] is True and run.options["num_classes"] == 1
    assert run.metric == "pearson_and_spearman"


def test_options_of_the_variants_of_the_checkpoint():
    start = begin(token_mixer="bigs", channel_mixer="none", bigs_padding="leak", bigs_num_ssm=8)
    (run,) = make(Recipe("x", all=ALL), "CoLA", start=start, bigs_padding="full").runs
    model = build_config(run.configuration()).model
    assert (model.token_mixer, model.bigs_padding, model.bigs_num_ssm) == ("bigs", "full", 8)
    with pytest.raises(ConfigError, match="unknown option --bigs-padding"):
        make(Recipe("x", all=ALL), "CoLA", bigs_padding="full")


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


STORED = {"encoder_layers": 3, "encoder_alibi": True, "no_token_positional_embeddings": True, "dropout": 0.2}
MODEL = "--arch roberta --encoder-layers 3 --encoder-alibi --no-token-positional-embeddings --max-positions {length}"
COMMON = (
    "--init-token 0 --separator-token 2 --shorten-method truncate --group-by-length --required-batch-size-multiple 1 "
    "--num-workers 0 --log-format json --log-interval 100 --optimizer {optimizer} --adam-betas '(0.9, {beta})' "
    "--weight-decay {decay} --lr {lr} --dropout 0.1 --attention-dropout 0.1 --batch-size {batch} --task "
    "sentence_prediction --criterion sentence_prediction --num-classes {classes} --seed {seed} --max-update {updates} "
    "--best-checkpoint-metric {metric} --maximize-best-checkpoint-metric --valid-subset {subset} --finetune-from-model m.pt "
    "--lr-scheduler polynomial_decay --warmup-updates {warmup} --total-num-update {updates}"
)
ROBERTA = {"optimizer": "adam", "beta": 0.98, "decay": 0.1, "seed": 1, "length": 64}
ELECTRA = {"optimizer": "adam", "beta": 0.999, "decay": 0.0, "seed": 42, "length": 64}
STS = {"classes": 1, "metric": "pearson_and_spearman", "subset": "valid"}
MNLI = {"classes": 3, "metric": "accuracy", "subset": "valid,valid1"}


@pytest.mark.parametrize(
    ("recipe", "task", "values", "more"),
    [
        (
            "roberta",
            "STS-B",
            {**ROBERTA, **STS, "lr": 2e-5, "batch": 16, "updates": 3598, "warmup": 214},
            "--regression-target --adam-eps 1e-6 --clip-norm 0.0 --max-tokens 4400 --max-epoch 10",
        ),
        (
            "roberta",
            "MNLI",
            {**ROBERTA, **MNLI, "lr": 1e-5, "batch": 32, "updates": 123873, "warmup": 7432},
            "--adam-eps 1e-6 --clip-norm 0.0 --max-tokens 4400 --max-epoch 10",
        ),
        (
            "electra",
            "STS-B",
            {**ELECTRA, **STS, "lr": 3e-4, "batch": 32, "updates": 1836, "warmup": 183},
            "--regression-target --adam-eps 1e-8 --clip-norm 1.0 --pooler-dropout 0.1",
        ),
        (
            "electra",
            "MNLI",
            {**ELECTRA, **MNLI, "lr": 3e-4, "batch": 128, "updates": 12121, "warmup": 1212},
            "--adam-eps 1e-8 --clip-norm 1.0 --pooler-dropout 0.1",
        ),
    ],
)
def test_the_configuration_is_that_of_the_command_line(recipe: str, task: str, values: dict[str, Any], more: str):
    """What a run is given, completed, is what fairseq-train makes of the same settings as flags."""
    (run,) = make(load(recipe), task, start=begin(has_table=False, **STORED)).runs
    words = f"DATA {MODEL} {COMMON} {more}".format(**values)
    expected = convert_namespace_to_omegaconf(parse_args_and_arch(get_training_parser(), shlex.split(words)))
    assert build_config(run.configuration({"data": "DATA", "finetune_from_model": "m.pt"})) == expected


def test_options_that_are_left_out_and_given_by_another_name():
    (run,) = make(Recipe("x", all={**ALL, "fp16": False, "max_tokens": None, "nval": 3}), "RTE").runs
    config = run.configuration({"update_freq": [1, 2], "bpe": "gpt2", "gpt2_encoder_json": "e.json"})
    assert "common" not in config or "fp16" not in config["common"]
    assert config["dataset"]["max_valid_steps"] == 3 and "max_tokens" not in config["dataset"]
    assert config["optimization"]["update_freq"] == [1, 2]
    assert config["bpe"] == {"_name": "gpt2", "gpt2_encoder_json": "e.json"}


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


def test_slots(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert runs.find_slots(2, 8, 1000, cpu=True) == runs.Slots(2, 4)
    assert runs.find_slots(None, 1, 1000, cpu=True).count == 1
    assert runs.find_slots(None, 64, 10**13, cpu=True).count == 1  # no memory for two
    assert runs.Slots(4, 2, ("0", "3")).environment(1)["CUDA_VISIBLE_DEVICES"] == "3"
    assert runs.Slots(1, 2).environment(0)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert runs.find_slots(1, 8, 1000, cpu=True).threads == 1
    assert runs.Slots(1, 2).environment(0) == {}
