"""Every command and YAML block of the documentation, of ``--help`` and of printed advice is accepted, and most are run.

`tests.documents` finds them. All go through the parsers that the programs have (YAML is composed by hydra); then the
pages are run from top to bottom in a directory of tiny files, with models of one tiny layer and an update or two.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairseq.cli import (
    convert,
    export,
    fill_mask,
    glue,
    hydra_train,
    info,
    predict,
    preprocess,
    preprocess_task,
    train,
    validate,
    validate_data,
)
from fairseq.dataclass import parser as parsers
from fairseq.dataclass.flags import FairseqParser
from fairseq.glue import recipe
from tests.common import run_command
from tests.documented_files import write_inputs
from tests.documents import PAGES, ROOT, Command, examples_of_help, fenced, run_by_shell, scripts

COMMANDS: dict[str, Any] = {
    "fairseq-train": train,
    "fairseq-hydra-train": hydra_train,
    "fairseq-validate": validate,
    "fairseq-validate-data": validate_data,
    "fairseq-preprocess": preprocess,
    "fairseq-preprocess-task": preprocess_task,
    "fairseq-glue": glue,
    "fairseq-fill-mask": fill_mask,
    "fairseq-predict": predict,
    "fairseq-convert": convert,
    "fairseq-export": export,
    "fairseq-info": info,
}
# Not run here, only parsed, and why.
NOT_RUN = {
    "make ": "sets up an environment",
    "pip ": "installs",
    "python benchmarks": "takes minutes, and wants other programs",
    "python examples/alibi_clap": "a study trains for hours; tests/integration/test_alibi_clap_study.py runs one",
    "convert": "wants published files; tests/unit/test_bigs_files.py and its like convert small ones",
    "train_sentencepiece": "learns 30,000 pieces, which tiny text does not have",
    "--bpe sentencepiece": "needs what that learns",
    "roberta.base": "a published model",
}
SIZES = (
    "--cpu --encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 32 --encoder-attention-heads 2 --max-update 2 "
    "--num-workers 0 --update-freq 1 --no-epoch-checkpoints --lr 1e-3 --optimizer adam --batch-size 4"
).split()
SETTINGS = (
    "++common.cpu=true ++optimization.max_update=1 ++model.encoder_layers=1 ++model.encoder_embed_dim=16 "
    "++model.encoder_ffn_embed_dim=32 ++model.encoder_attention_heads=2 ++dataset.num_workers=0 ++optimization.update_freq=[1] "
    "++common.fp16=false ++checkpoint.no_epoch_checkpoints=true ++dataset.batch_size=4"
).split()
GPT2_FILES = ["--gpt2-encoder-json", "encoder.json", "--gpt2-vocab-bpe", "vocab.bpe"]


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


BY_NAME = {page_id(page): page for page in PAGES}


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Put back the handlers that hydra replaces."""
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory in which the examples, benchmarks and scripts are found as in a checkout."""
    for name in ("examples", "benchmarks", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_named_yaml(page: Path, folder: Path) -> None:
    """The YAML blocks of ``page`` whose first line is a comment with their path, there."""
    for text in fenced(page, "yaml"):
        name = re.match(r"# (\S+\.yaml)\n", text)
        if name:
            (folder / name[1]).parent.mkdir(parents=True, exist_ok=True)
            (folder / name[1]).write_text(text)


# ---- parsing ------------------------------------------------------------------------------------------------------


def parse(command: Command) -> None:
    """Let the program's own parser read ``command``; ``...`` stands for further flags."""
    words = [word for word in command.words if word != "..."]
    if command.program == "fairseq-hydra-train":
        hydra_train.compose_and_run(words, lambda cfg: hydra_train.complete(cfg, str(Path.cwd())))
    elif command.program in ("fairseq-train", "fairseq-validate", "fairseq-preprocess"):
        made = {"train": "training", "validate": "validation", "preprocess": "preprocessing"}
        parser = getattr(parsers, f"get_{made[command.program.removeprefix('fairseq-')]}_parser")()
        further = ["--lr", "1e-3"] if "..." in command.words else []
        parsers.parse_args_and_arch(parser, input_args=words + further)
    elif command.program in COMMANDS:
        COMMANDS[command.program].get_parser().parse_args(words)
    elif command.program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif command.program == "python" and words[0] == "-c":
        compile(words[1], "<documentation>", "exec")
    elif command.program == "python":
        parse_script(words)
    else:
        assert command.program in ("pip", "mkdir", "huggingface-cli")


class Parsed(BaseException):
    """A script has read its arguments."""


def parse_script(words: list[str]) -> None:
    """Run a script up to where it has read its arguments."""

    def stop_after(real: Any) -> Any:
        def parse_args(self: Any, args: Any = None, namespace: Any = None) -> None:
            real(self, args, namespace)
            raise Parsed

        return parse_args

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed):
        for kind in (argparse.ArgumentParser, FairseqParser):
            patch.setattr(kind, "parse_args", stop_after(kind.parse_args))
        patch.setattr(sys, "argv", words)
        patch.syspath_prepend(str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


PARSED_ONLY = {
    "benchmarks/README.md": "minutes each, and other programs beside",
    "docs/distributed.md": "wants many processes or machines; test_distributed.py, test_preemption.py, test_elastic.py and test_submitit.py have them",
    "docs/interop.md": "wants published models; test_transformers.py and test_export.py convert small ones",
    "docs/old_checkpoints.md": "downloads; test_published_checkpoint.py runs it",
    "docs/recipes.md": "wants data of several languages; test_multilingual.py and test_token_tasks.py have it",
}


@pytest.mark.parametrize("page", PARSED_ONLY)
def test_commands_of_pages_parse(page: str, folder: Path) -> None:
    write_inputs(folder)
    (folder / "data-bin").mkdir()
    if page == "docs/old_checkpoints.md":
        (folder / "small").mkdir()
        (plugin,) = [text for text in fenced(BY_NAME[page], "python") if "register_model_architecture" in text]
        (folder / "small/__init__.py").write_text(plugin)
    for block in scripts(BY_NAME[page]):
        for command in run_by_shell(block, folder):
            parse(command)


@pytest.mark.parametrize("program", COMMANDS)
def test_examples_of_help_parse(program: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        COMMANDS[program].cli_main(argv=["--help"])
    examples = examples_of_help(capsys.readouterr().out)
    assert examples or program == "fairseq-info"
    for block in examples:
        for command in run_by_shell(block, folder):
            if command.program != "fairseq-hydra-train":  # tests/integration/test_help.py has the YAML that it needs
                parse(command)


def test_yaml_blocks_compose(folder: Path) -> None:
    """Those with a path in their first line where they are used (above); parts of a configuration with README's as the rest."""
    base = yaml.safe_load(fenced(BY_NAME["README.md"], "yaml")[0])
    seen = 0
    for page in PAGES:
        for text in fenced(page, "yaml"):
            seen += 1
            tree = yaml.safe_load(text)
            if "extends" in tree or "all" in tree:
                (folder / "recipe.yaml").write_text(text)
                recipe.load(str(folder / "recipe.yaml"))
                continue
            settings = {
                key: value for key, value in tree.items() if key not in ("defaults", "hydra")
            }  # a sweep has these
            (folder / "part.yaml").write_text(yaml.safe_dump({**base, **settings}))
            parse(
                Command(
                    "fairseq-hydra-train", ["--config-dir", ".", "--config-name", "part", "task.data=data-bin"], text
                )
            )
    assert seen >= 3


# ---- running ------------------------------------------------------------------------------------------------------


def run(command: Command, *more: str) -> None:
    """Run ``command`` in this process, with sizes and lengths of a test."""
    if any(part in str(command) for part in NOT_RUN):
        parse(command)
        return
    if command.program == "fairseq-glue" and "..." in command.words:  # a part of a command
        parse(command)
        return
    words = [word for word in command.words if word != "..."] + list(more)
    if "--bpe gpt2" in str(command) and "--gpt2-encoder-json" not in words:
        words += GPT2_FILES  # instead of a download
    if command.program == "fairseq-train":
        words += SIZES
    elif command.program == "fairseq-hydra-train":
        number = len(list(Path.cwd().glob("outputs/*")))  # runs of one second would share a directory
        words += [*SETTINGS, f"hydra.run.dir=outputs/{number}", f"hydra.sweep.dir=outputs/{number}"]
    elif command.program == "fairseq-glue":
        tasks = words.index("--tasks")
        stop = next(at for at in range(tasks + 1, len(words)) if words[at].startswith("--"))
        words[tasks:stop] = ["--tasks", "RTE"]
        words += ["--seeds", "1", "--jobs", "1", "--max-updates", "1", "--cpu"]
    elif command.program in ("fairseq-fill-mask", "fairseq-validate", "fairseq-predict"):
        words += ["--cpu"]
    elif command.program == "mkdir":
        Path(words[0]).mkdir(exist_ok=True)
        return
    elif command.program == "python":
        exec(compile(words[1].replace("8000", "300"), "<documentation>", "exec"), {})
        return
    if "--user-dir" in words:
        run_command(command.program.removeprefix("fairseq-"), *words, timeout=300)
        return
    main = COMMANDS[command.program].cli_main
    main(argv=words)


def commands(page: str, folder: Path) -> list[Command]:
    return [command for block in scripts(BY_NAME[page]) for command in run_by_shell(block, folder)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``data-bin`` and ``checkpoints``, as README's first commands make them."""
    place = tmp_path_factory.mktemp("trained")
    write_inputs(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for command in commands("README.md", place):
            if command.program in ("fairseq-preprocess", "fairseq-train"):
                run(command)
    return place


@pytest.fixture
def work(folder: Path, trained: Path) -> Path:
    """A directory with all inputs and the trained model under the names that it has in the pages."""
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    for name in ("model.pt", "model/model.pt"):
        shutil.copy(trained / "checkpoints/checkpoint_best.pt", folder / name)
    return folder


def test_readme_runs(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_named_yaml(BY_NAME["README.md"], work)
    for command in commands("README.md", work):
        if command.program == "fairseq-fill-mask":
            (block,) = [text for text in fenced(BY_NAME["README.md"], "python") if "from_pretrained" in text]
            exec(compile(block.replace("/path/to/data-bin", str(work / "data-bin")), "README.md", "exec"), {})
        if command.program == "fairseq-predict" and (work / "tuned").exists():
            shutil.rmtree("checkpoints")
            shutil.move("tuned", "checkpoints")
        capsys.readouterr()
        run(command)
        if command.program == "fairseq-preprocess-task":
            advice = re.search(r"^train with: (fairseq-train .*)$", capsys.readouterr().out, re.MULTILINE)
            assert advice and "--init-token 0 --separator-token 2" in advice[1]
            (advised,) = run_by_shell(advice[1], work)
            model = ["--arch", "roberta_base", "--finetune-from-model", "model.pt", "--max-positions", "512"]
            run(advised, *model, "--save-dir", "tuned")
    assert len((work / "labels.tsv").read_text().splitlines()) == 25


# Where a page has the data of README's first commands.
DATA_BIN = {
    "docs/adding_a_variant.md": "data-bin",
    "docs/bigs.md": "data-bin/text",
    "docs/convolutions.md": "data-bin/sentences",
    "docs/fff.md": "data-bin/text",
    "docs/glue.md": "data-bin",
    "docs/sentence_tasks.md": "data-bin",
    "docs/tasks.md": "data-bin",
    "examples/alibi_clap/README.md": "data-bin/wikitext-103",
}


@pytest.mark.parametrize("page", DATA_BIN)
def test_pages_run(page: str, work: Path, trained: Path) -> None:
    shutil.copytree(trained / "data-bin", work / DATA_BIN[page], dirs_exist_ok=True)
    python = fenced(BY_NAME[page], "python")
    if page == "docs/adding_a_variant.md":
        (work / "my_mixers").mkdir()
        (work / "my_mixers/__init__.py").write_text(python[0])
    if page == "examples/alibi_clap/README.md":  # the models of its commands
        made = ["data-bin", "--arch", "roberta_alibi", "--save-dir", "alibi", "--bpe", "gpt2"]
        run(Command("fairseq-train", made, ""))
        for name in ("checkpoint_best.pt", "learned-clap-large.pt"):
            shutil.copy("alibi/checkpoint_best.pt", name)
    for command in commands(page, work):
        more = []
        if command.program == "fairseq-train" and "--save-dir" not in command.words:
            shutil.rmtree("checkpoints", ignore_errors=True)
        if command.program == "fairseq-glue":
            more = ["--dry-run"]
        if (
            command.program == "fairseq-hydra-train" and page == "docs/bigs.md"
        ):  # a cosine must be longer than its warm-up
            more = ["lr_scheduler.warmup_updates=0", f"checkpoint.save_dir={work / command.words[3]}"]
        run(command, *more)
        if command.program == "fairseq-predict":
            run_python(python, str(command))
    if page == "docs/sentence_tasks.md":
        exec(compile(python[0], page, "exec"), {})


def run_python(blocks: list[str], command: str) -> None:
    """The blocks of docs/tasks.md that ask the model which ``command`` has just used."""
    names: dict[str, Any] = {}
    for block in blocks:
        if ("answer(" in block) == ("answers.json" in command):
            exec(compile(f"from fairseq.models.roberta import RobertaModel\n{block}", "docs/tasks.md", "exec"), names)


def test_every_page_with_commands_is_run_or_says_why_not() -> None:
    assert {name for name, page in BY_NAME.items() if scripts(page)} == {*DATA_BIN, "README.md", *PARSED_ONLY}
