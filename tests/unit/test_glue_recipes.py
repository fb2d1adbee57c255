"""Recipes: files, merging, lengths, mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairseq.errors import ConfigError, DataNotFoundError
from fairseq.finetune.glue_files import TASKS
from fairseq.glue import recipe

EVERY = [name for name, task in TASKS.items() if task.trains]


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_covers_every_task(name: str):
    loaded = recipe.load(name, EVERY)
    assert loaded.about and len(loaded.first_seeds(12)) == 12
    for task in EVERY:
        merged = loaded.for_task(task)
        for point in merged.points():
            updates, warmup = merged.length(3668, point)
            assert 0 <= warmup < updates
        assert merged.score is None or merged.score in TASKS[task].metrics
        assert merged.start_from is None or merged.start_from in EVERY


def test_the_numbers_of_the_sources():
    roberta = recipe.load("roberta").for_task("RTE")
    assert (roberta.options["lr"], roberta.updates, roberta.warmup) == ("2e-5", 2036, 122)
    electra = recipe.load("electra")
    assert electra.first_seeds(3) == [42, 97, 834] and electra.select == "last"
    assert electra.for_task("MRPC").start_from == "MNLI" and electra.for_task("QNLI").options["lr"] == "1e-4"
    assert recipe.load("electra-base").for_task("CoLA").options["lr"] == "1e-4"
    sane = recipe.load("glue-sane")
    assert sane.for_task("CoLA").epochs == 15 and sane.for_task("MRPC").score == "f1" and sane.average == "columns"
    assert recipe.load("bigs").for_task("CoLA").options["pooling"] == "masked_mean"
    assert len(recipe.load("roberta-grid").for_task("CoLA").points()) == 6


def test_extending_and_overriding(tmp_path: Path):
    own = write(
        tmp_path / "own.yaml",
        "extends: roberta\nselect: last\nall: {weight-decay: 0.01, max_tokens: null}\n"
        "tasks:\n  CoLA: {lr: 3e-5, epochs: 4}\n",
    )
    loaded = recipe.load(own, EVERY)
    cola, rte = loaded.for_task("CoLA"), loaded.for_task("RTE", {"lr": "5e-5", "fp16": True})
    assert loaded.select == "last" and loaded.about.startswith("RoBERTa")
    assert cola.options["weight_decay"] == 0.01 and "max_tokens" not in cola.options
    # epochs replace the inherited updates, and the warm-up keeps its fraction of them
    assert (cola.updates, cola.epochs) == (None, 4) and cola.warmup == pytest.approx(320 / 5336)
    assert rte.options["lr"] == "5e-5" and rte.options["fp16"] is True and rte.updates == 2036


def test_a_value_replaces_a_grid(tmp_path: Path):
    own = write(
        tmp_path / "own.yaml",
        "all: {epochs: 1, batch_size: 8, grid: {lr: [1e-5, 2e-5], dropout: [0, 0.1]}}\ntasks: {RTE: {lr: 1e-4}}\n",
    )
    loaded = recipe.load(own, EVERY)
    assert len(loaded.for_task("CoLA").points()) == 4
    assert loaded.for_task("RTE").points() == [(("dropout", "0"),), (("dropout", "0.1"),)]
    assert loaded.for_task("CoLA", {"dropout": 0.2}).points() == [(("lr", "1e-5"),), (("lr", "2e-5"),)]


def test_length():
    merged = recipe.TaskRecipe("RTE", {"batch_size": 16}, epochs=3, warmup=0.1)
    assert merged.length(100) == (21, 2)
    assert merged.length(100, max_epoch=1) == (7, 1)
    assert merged.length(100, max_updates=10) == (10, 1)
    assert merged.length(100, (("batch_size", "32"),)) == (12, 1)
    counted = recipe.TaskRecipe("RTE", {"batch_size": 16, "update_freq": 2}, updates=200, warmup=20)
    assert counted.length(100) == (200, 20)
    assert counted.length(100, max_updates=50) == (50, 5)
    assert counted.length(100, max_epoch=2) == (8, 1)
    with pytest.raises(ConfigError, match="batch_size"):
        recipe.TaskRecipe("RTE", {}, epochs=3).length(100)


def test_seeds_of_a_recipe_come_first():
    assert recipe.Recipe("x", seeds=(7, 2)).first_seeds(5) == [7, 2, 1, 3, 4]


def test_settings_of_the_command_line():
    found = recipe.parse_settings(["lr=1e-4", "--batch-size=32", "fp16=true", "max_tokens="])
    assert found == {"lr": "1e-4", "batch_size": 32, "fp16": True, "max_tokens": None}
    with pytest.raises(ConfigError, match="KEY=VALUE"):
        recipe.parse_settings(["lr"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("al: {lr: 1}", "unknown key 'al'; did you mean 'all'"),
        ("select: first", "best or last"),
        ("tasks: {COLA: {}}", "unknown task 'COLA'"),
        ("seeds: [1, 1]", "different integers"),
        ("all: [1]", "must be a mapping"),
        ("- 1", "must be a mapping"),
        ("all: {lr: [", "not valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("extends: nobody", "no recipe 'nobody'"),
        ("extends: ./own.yaml", "extends itself"),
    ],
)
def test_malformed_files(tmp_path: Path, text: str, message: str):
    with pytest.raises((ConfigError, DataNotFoundError), match=message):
        recipe.load(write(tmp_path / "own.yaml", text), EVERY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("all: {lr: 1e-5}", "neither epochs nor updates"),
        ("all: {epochs: many}", "epochs must be a positive number, but is 'many'"),
        ("all: {epochs: 1e400}", "epochs must be a positive number, but is '1e400'"),
        ("all: {epochs: .inf}", "epochs must be a positive number, but is inf"),
        ("all: {epochs: .nan}", "epochs must be a positive number, but is nan"),
        ("all: {epochs: 1.0e+308}", "epochs must be a positive number"),
        ("all: {updates: .inf}", "updates must be a positive number"),
        ("all: {updates: .nan}", "updates must be a positive number"),
        ("all: {epochs: 1, warmup: .nan}", "warmup must be a positive number"),
        ("all: {updates: 0}", "updates must be a positive number"),
        ("all: {epochs: 1, warmup: -1}", "warmup must be a positive number"),
        ("all: {epochs: 1, grid: {lr: 1e-5}}", "list of values"),
    ],
)
def test_malformed_settings(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        recipe.load(write(tmp_path / "own.yaml", text), EVERY).for_task("CoLA")


def test_unknown_recipes():
    with pytest.raises(DataNotFoundError, match="did you mean 'roberta'"):
        recipe.load("robreta")
    with pytest.raises(DataNotFoundError, match="no recipe file"):
        recipe.load("nowhere/my.yaml")


def test_what_a_file_says_of_all_tasks_wins_over_what_it_extends(tmp_path: Path):
    own = write(
        tmp_path / "own.yaml",
        "extends: roberta\nall: {epochs: 3, max_epoch: , grid: {lr: [1e-5, 3e-5]}}\ntasks: {CoLA: {epochs: 10}}\n",
    )
    loaded = recipe.load(own, EVERY)
    rte, cola = loaded.for_task("RTE"), loaded.for_task("CoLA")
    assert (rte.updates, rte.epochs, cola.epochs) == (None, 3, 10) and "max_epoch" not in rte.options
    assert [float(dict(point)["lr"]) for point in rte.points()] == [1e-5, 3e-5]


@pytest.mark.parametrize("text", ["[" * 5000, "{a: " * 5000, "all: 2001-99-99", "- [}"])
def test_what_yaml_cannot_be(tmp_path: Path, text: str):
    with pytest.raises(
        ConfigError, match=r"own\.yaml (is not valid YAML|cannot be read as YAML|holds values that are nested too deep)"
    ):
        recipe.load(write(tmp_path / "own.yaml", text), EVERY)
    assert recipe.parse_settings([f"x={text}"]) == {"x": text}


def test_a_warm_up_of_another_recipe_must_be_a_number(tmp_path: Path):
    write(tmp_path / "base.yaml", "all: {updates: 100, warmup: many}")
    own = write(tmp_path / "own.yaml", "extends: base.yaml\nall: {epochs: 3}")
    with pytest.raises(ConfigError, match="warmup must be a positive number, but is 'many'"):
        recipe.load(own, EVERY)
