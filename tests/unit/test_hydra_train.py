"""fairseq-hydra-train: composing YAML and overrides on current hydra, without training."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fairseq.cli import hydra_train
from fairseq.dataclass.build import convert_namespace_to_omegaconf
from fairseq.dataclass.hydra_yaml import Primary, normalize_overrides, schema
from fairseq.dataclass.parser import get_training_parser, parse_args_and_arch
from fairseq.errors import ConfigError, FairseqError
from tests.common import ROOT

CONFIGS = ROOT / "tests" / "data" / "config"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_log: None) -> None:
    """Run in an empty directory."""
    monkeypatch.chdir(tmp_path)


def compose(text: str, name: str = "baseline", folder: Path = CONFIGS) -> Any:
    """What the job would get: the complete configurations, in the order of the jobs."""
    jobs: list[Any] = []

    def job(cfg: Any) -> float:
        from hydra.core.hydra_config import HydraConfig
        from hydra.utils import get_original_cwd

        full = hydra_train.complete(cfg, get_original_cwd(), HydraConfig.get().job_logging)
        jobs.append((full, os.getcwd()))
        return 1.0

    hydra_train.compose_and_run(["--config-dir", str(folder), "--config-name", name, *shlex.split(text)], job)
    return jobs


def test_run_directory_paths_and_values(tmp_path: Path) -> None:
    ((cfg, where),) = compose("task.data=data-bin:other checkpoint.restore_file=x.pt")
    assert Path(where).parent.parent == tmp_path / "outputs"
    assert (Path(where) / ".hydra" / "config.yaml").exists() and (Path(where) / "hydra_train.log").exists()
    assert cfg.task.data == f"{tmp_path}/data-bin:{tmp_path}/other"
    assert cfg.checkpoint.restore_file == f"{tmp_path}/x.pt" and cfg.checkpoint.save_dir == "checkpoints"
    assert cfg.optimizer.adam_eps == 1e-6 and cfg.optimizer.adam_betas == "(0.9,0.98)"
    assert cfg.lr_scheduler.total_num_update == 40.0 and cfg.criterion._name == "masked_lm"
    assert cfg.job_logging_cfg.handlers.file.filename == "hydra_train.log"
    assert set(cfg.job_logging_cfg) == {"version", "formatters", "handlers", "root", "disable_existing_loggers"}


def test_data_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORPUS", "/from/the/environment")
    ((cfg, _),) = compose("task.data='${oc.env:CORPUS}'")
    assert cfg.task.data == "/from/the/environment"


def test_overrides_of_all_kinds() -> None:
    ((cfg, _),) = compose(
        "task.data=/d 'optimizer.adam_betas=(0.9,0.95)' optimization.lr=[0.0001] +model.encoder_alibi=true "
        "model.untie_weights_roberta=true ++dataset.max_tokens=99 ~dataset.batch_size common.seed=3"
    )
    assert cfg.optimizer.adam_betas == "(0.9,0.95)" and cfg.optimizer.lr == [0.0001]
    assert cfg.model.encoder_alibi is True and cfg.model.untie_weights_roberta is True
    assert cfg.dataset.max_tokens == 99 and cfg.dataset.batch_size is None and cfg.task.seed == 3


def test_choosing_another_component_starts_from_its_defaults() -> None:
    ((cfg, _),) = compose("task.data=/d optimizer=sgd optimizer.momentum=0.5 model=roberta_large")
    assert cfg.optimizer._name == "sgd" and cfg.optimizer.momentum == 0.5 and cfg.optimizer.weight_decay == 0.0
    assert cfg.model == {"_name": "roberta_large"}


def test_multirun_gives_each_job_a_directory(tmp_path: Path) -> None:
    jobs = compose("-m task.data=/d common.seed=1,2")
    assert [cfg.common.seed for cfg, _ in jobs] == [1, 2]
    assert [Path(where).name for _, where in jobs] == ["0", "1"]
    assert Path(jobs[0][1]).parents[2] == tmp_path / "multirun"


def test_values_to_sweep_over_may_stand_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text((CONFIGS / "baseline.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(
        "defaults:\n  - base\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      optimizer: adam,adamw\n"
        "      model.encoder_alibi: true,false\ntask:\n  data: /d\n"
    )
    jobs = compose("", name="mine", folder=tmp_path)
    found = [(cfg.optimizer._name, cfg.model.encoder_alibi) for cfg, _ in jobs]
    assert found == [("adam", True), ("adam", False), ("adamw", True), ("adamw", False)]


def test_jobs_find_out_what_depends_on_their_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep is started on a machine without GPUs."""
    composed = schema()["distributed_training"]
    assert "heartbeat_timeout" in composed and not {"distributed_world_size", "device_id"} & set(composed)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    ((cfg, _),) = compose("task.data=/d")
    assert cfg.distributed_training.distributed_world_size == 3


def test_a_launcher_that_is_not_installed() -> None:
    if importlib.util.find_spec("hydra_plugins") is None:
        with pytest.raises(ConfigError, match="pip install hydra-submitit-launcher"):
            compose("-m hydra/launcher=submitit_slurm task.data=/d")


def test_settings_may_follow_options() -> None:
    jobs = compose("task.data=/d common.seed=1,2 --multirun common.log_interval=7")
    assert [(cfg.common.seed, cfg.common.log_interval) for cfg, _ in jobs] == [(1, 7), (2, 7)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"task\.data is mandatory"),
        ("task.data=/d +model.drpout=1", "unknown key 'model.drpout'; did you mean 'dropout'"),
        ("task.data=/d dataset.bach_size=1", "did you mean 'batch_size'"),
        ("task.data=/d datset.batch_size=1", "did you mean 'dataset'"),
        ("task.data=/d common.seed=abc", "common.seed must be an integer"),
        ("task.data=/d common.tpu=true", "out of scope"),
        ("task.data=/d optimization.lr=[0.1", "."),
        ("task.data", "has no value"),
        ("--nonsense", "nonsense"),
    ],
)
def test_mistakes_are_fairseq_errors(text: str, message: str) -> None:
    with pytest.raises(FairseqError, match=message):
        compose(text)


def test_missing_files_and_bad_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'baseline'"):
        compose("", name="baselin")
    with pytest.raises(ConfigError, match="does not exist"):
        compose("", folder=tmp_path / "nowhere")
    (tmp_path / "bad.yaml").write_text("common: [1\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        compose("", name="bad", folder=tmp_path)
    (tmp_path / "typo.yaml").write_text("comon:\n  seed: 1\n")
    with pytest.raises(ConfigError, match="did you mean 'common'"):
        compose("", name="typo", folder=tmp_path)


def test_yaml_with_defaults_and_package_header(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text((CONFIGS / "baseline.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(
        "# @package _group_\ndefaults:\n  - base\nhydra:\n  run:\n    dir: here\ncommon:\n  seed: 11\ntask:\n  data: /d\n"
        "optimizer:\n  adam_eps: 1e-06\n"
    )
    ((cfg, where),) = compose("", name="mine", folder=tmp_path)
    assert cfg.common.seed == 11 and cfg.optimization.max_update == 12 and Path(where) == tmp_path / "here"
    assert cfg.optimizer.adam_eps == 1e-6 and type(cfg.optimizer.adam_eps) is float


def test_bundled_configuration(tmp_path: Path) -> None:
    jobs: list[Any] = []
    hydra_train.compose_and_run(
        ["model=roberta_base", "task.data=d", "optimizer=adam", "optimization.lr=[0.1]"],
        lambda cfg: jobs.append((hydra_train.complete(cfg, str(tmp_path)), os.getcwd())),
    )
    cfg, where = jobs[0]
    assert cfg.criterion._name == "masked_lm" and cfg.lr_scheduler._name == "fixed" and Path(where) == tmp_path


def test_the_learning_rate_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: {_name: masked_lm, data: d}\noptimizer: adam\nmodel: roberta\n")
    with pytest.raises(ConfigError, match=r"optimization\.lr is missing: give the learning rate"):
        compose("", name="mine", folder=tmp_path)
    ((cfg, _),) = compose("optimization.lr=[0.1]", name="mine", folder=tmp_path)
    assert cfg.optimization.lr == cfg.optimizer.lr == [0.1]


def test_both_entrances_agree(tmp_path: Path) -> None:
    flags = (
        f"{tmp_path}/d --cpu --task masked_lm --criterion masked_lm --sample-break-mode complete --tokens-per-sample 64 "
        "--arch roberta --max-positions 64 --dropout 0.0 --attention-dropout 0.0 --activation-dropout 0.0 "
        "--encoder-layers 2 --encoder-embed-dim 32 --encoder-ffn-embed-dim 64 --encoder-attention-heads 4 "
        "--optimizer adam --adam-betas (0.9,0.98) --adam-eps 1e-6 --weight-decay 0.01 --clip-norm 1.0 --batch-size 4 "
        "--update-freq 2 --log-format json --log-interval 1 --seed 7 --num-workers 0 --save-interval-updates 6 "
        "--skip-invalid-size-inputs-valid-test --ignore-unused-valid-subsets --lr-scheduler polynomial_decay "
        "--warmup-updates 4 --total-num-update 40 --lr 0.005 --max-update 12"
    )
    args = parse_args_and_arch(get_training_parser(), flags.split())
    ((yaml, _),) = compose("task.data=d")
    del yaml.__dict__["_content"]["job_logging_cfg"]
    assert convert_namespace_to_omegaconf(args) == yaml


def test_overrides_that_belong_to_hydra_pass_through(tmp_path: Path) -> None:
    (tmp_path / "run_config").mkdir()
    primary = Primary(path=tmp_path / "x.yaml")
    words = ["hydra.run.dir=.", "hydra/launcher=basic", "+run_config=local", "~model.dropout"]
    assert normalize_overrides(words, primary) == words


def test_the_command_prints_one_line() -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fairseq.cli.hydra_train", "--config-dir", str(CONFIGS), "--config-name"]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run([*command, *words], capture_output=True, text=True, env=env)

    shown = run("zero_clap", "--cfg", "job", "task.data=d", "common.seed=5")
    assert shown.returncode == 0, shown.stderr
    assert "zero_masking: true" in shown.stdout and "seed: 5" in shown.stdout and shown.stderr == ""
    wrong = run("zero_clap", "task.data=d", "task.mask_prop=0.1")
    assert wrong.returncode == 2
    assert wrong.stderr == "fairseq-hydra-train: error: unknown key 'task.mask_prop'; did you mean 'mask_prob'?\n"


def job_config(**common: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.create(
        {
            "common": common,
            "task": {"_name": "masked_lm", "data": "/d"},
            "criterion": "masked_lm",
            "optimizer": "adam",
            "model": "roberta",
        }
    )


def test_the_job_trains_and_returns_the_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    from fairseq.cli import train

    monkeypatch.setattr(train, "main", lambda cfg: float(cfg.common.seed))
    assert hydra_train.main(job_config(seed=4)) == 4.0


def test_crashes_can_be_suppressed(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from fairseq.cli import train

    def crash(cfg: Any) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(train, "main", crash)
    with pytest.raises(RuntimeError):
        hydra_train.main(job_config())
    assert hydra_train.main(job_config(suppress_crashes=True)) is None
    assert "out of luck" in caplog.text


def test_a_failing_job_of_a_sweep_is_reported() -> None:
    with pytest.raises(FairseqError, match="must be an integer"):
        compose("-m task.data=/d common.seed=1,x")
