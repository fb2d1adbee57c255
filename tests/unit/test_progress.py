"""Progress lines and loggers: the exact shape that scripts parse."""

from __future__ import annotations

import json
import logging
import os
import re
import struct
import subprocess
import sys

import pytest
import torch

from fairseq.errors import ConfigError
from fairseq.logging import progress
from fairseq.logging.meters import AverageMeter, StopwatchMeter, TimeMeter
from fairseq.logging.progress import format_stat, progress_bar
from fairseq.logging.setup import STATS_LOGGER, TRAIN_LOGGER, add_log_file, configure_logging, log_level, log_to_files
from tests.common import ROOT


@pytest.fixture
def records():
    """Records that reach the statistics logger."""
    seen: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record):
            seen.append(record)

    handler = Keep()
    level = progress.logger.level
    progress.logger.addHandler(handler)
    progress.logger.setLevel(logging.INFO)
    yield seen
    progress.logger.removeHandler(handler)
    progress.logger.setLevel(level)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (10.543612, "10.5436"),
        (9.61212, "9.61212"),
        (1e-05, "1e-05"),
        (0.005, "0.005"),
        (999999, "999999"),
        (1234567, "1234567"),
        (1234567.0, "1.23457e+06"),
        (1234567.8, "1.23457e+06"),
        (1e20, "1e+20"),
        (-2000001, "-2000001"),
        (float("inf"), "inf"),
        (True, "1"),
        (torch.tensor(2.5), 2.5),
        (torch.tensor([1, 2]), [1, 2]),
        ("text", "text"),
    ],
)
def test_format(value, text):
    assert format_stat(value) == text


def test_format_of_meters():
    average, rate, watch = AverageMeter(), TimeMeter(init=2.0, n=8), StopwatchMeter()
    average.update(1.23456)
    watch.sum = 3.4
    assert format_stat(average) == "1.235"
    assert format_stat(rate) == "4"
    assert format_stat(watch) == 3


def test_json_lines(records):
    bar = progress_bar(list(range(51)), log_format="json", log_interval=2, epoch=1, prefix="x")
    for i in bar:
        bar.log({"loss": 10.99071, "num_updates": i + 1}, tag="train_inner", step=i + 1)
        if i == 3:
            break
    bar.print({"loss": 10.5, "wps": 0.0}, tag="valid", step=4)
    assert [r.name for r in records] == ["train_inner", "train_inner", "valid"]
    assert records[0].getMessage() == '{"epoch": 1, "update": 0.039, "loss": "10.9907", "num_updates": "2"}'
    assert records[2].getMessage() == '{"epoch": 1, "valid_loss": "10.5", "valid_wps": "0"}'
    assert progress.logger.name == STATS_LOGGER


def test_json_update_counts_from_the_position_of_a_resumed_iterator(records):
    class Resumed(list):
        n = 24

        def __len__(self):
            return 100

    bar = progress_bar(Resumed([0, 1]), log_format="json", log_interval=1, epoch=3)
    for _ in bar:
        bar.log({}, step=None)
    assert [json.loads(r.getMessage())["update"] for r in records] == [2.25, 2.26]
    assert records[0].name == STATS_LOGGER


def test_json_without_epoch(records):
    bar = progress_bar([1], log_format="json", log_interval=1)
    for _ in bar:
        bar.log({"a": 1}, step=5)
    bar.print({"a": 1})
    assert [r.getMessage() for r in records] == ['{"a": "1"}', '{"a": "1"}']


def test_simple_lines(records):
    bar = progress_bar(
        list(range(1000)), log_format="simple", log_interval=200, epoch=1, prefix="valid on 'valid' subset"
    )
    assert len(bar) == 1000
    for i in bar:
        bar.log({"loss": 3.0, "ppl": 8}, step=i + 1)
        if i == 199:
            break
    bar.print({"loss": 3.0, "ppl": 8})
    assert [r.getMessage() for r in records] == [
        "epoch 001 | valid on 'valid' subset:    200 / 1000 loss=3, ppl=8",
        "epoch 001 | valid on 'valid' subset | loss 3 | ppl 8",
    ]


def test_none_prints_nothing(records):
    with progress_bar([1, 2], log_format="none", log_interval=1) as bar:
        for _ in bar:
            bar.log({"a": 1}, step=1)
        bar.print({"a": 1})
    assert not records


def test_tqdm_needs_a_terminal(monkeypatch, records):
    assert type(progress_bar([1], log_format="tqdm")) is progress.SimpleProgressBar
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    bar = progress_bar([1, 2], default_log_format="tqdm", epoch=2)
    assert type(bar) is progress.TqdmProgressBar
    for _ in bar:
        bar.log({"a": 1234567}, tag="train_inner", step=1)
    bar.print({"a": 1}, tag="train")
    assert [(r.name, r.getMessage()) for r in records] == [("train", "epoch 002 | a 1")]


def test_unknown_format():
    with pytest.raises(ConfigError, match="'jsn'.*json"):
        progress_bar([1], log_format="jsn")


def test_log_file_is_added_once(tmp_path, records):
    path = tmp_path / "log.txt"
    try:
        for epoch in (1, 2):
            progress_bar([1], log_format="json", log_file=str(path), epoch=epoch).print({"a": 1}, tag="train")
        logging.getLogger(TRAIN_LOGGER).warning("hello")
        assert path.read_text().splitlines() == [
            '{"epoch": 1, "train_a": "1"}',
            '{"epoch": 2, "train_a": "1"}',
            "hello",
        ]
    finally:
        for name in (STATS_LOGGER, TRAIN_LOGGER):
            for handler in logging.getLogger(name).handlers[:]:
                if isinstance(handler, logging.FileHandler):
                    logging.getLogger(name).removeHandler(handler)
                    handler.close()
    with pytest.raises(ConfigError, match="log file"):
        add_log_file(str(tmp_path / "missing" / "log.txt"))


def test_log_level(monkeypatch):
    monkeypatch.setenv("LOGLEVEL", "debug")
    assert log_level() == logging.DEBUG
    monkeypatch.setenv("LOGLEVEL", "nonsense")
    with pytest.raises(ConfigError, match="LOGLEVEL=NONSENSE"):
        configure_logging()


def test_tensorboard(tmp_path, records):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    average = AverageMeter()
    average.update(2.0)
    for _ in range(2):  # a bar an epoch: the writer of a tag is shared
        bar = progress_bar([1], log_format="json", log_interval=1, tensorboard_logdir=str(tmp_path))
        bar.update_config({"a": 1})
        for _ in bar:
            bar.log({"loss": 1.5, "avg": average, "t": torch.tensor(3.0), "s": "x"}, tag="train_inner", step=7)
        bar.print({"loss": 2.5, "num_updates": 9}, tag="valid")
    progress.close_writers()
    assert len(list((tmp_path / "train_inner").iterdir())) == 1
    inner = EventAccumulator(str(tmp_path / "train_inner")).Reload()
    assert sorted(inner.Tags()["scalars"]) == ["avg", "loss", "t"]
    assert inner.Scalars("loss")[0].step == 7
    valid = EventAccumulator(str(tmp_path / "valid")).Reload()
    assert valid.Tags()["scalars"] == ["loss"] and valid.Scalars("loss")[0].step == 9
    assert len(records) == 4


def test_tensorboard_of_jobs_in_directories_of_their_own(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    for job in ("0", "1"):  # as hydra --multirun does in one process
        (tmp_path / job).mkdir()
        monkeypatch.chdir(tmp_path / job)
        bar = progress_bar([1], log_format="json", tensorboard_logdir="logs")
        bar.print({"loss": 2.5, "num_updates": 9}, tag="valid")
    progress.close_writers()
    assert all(len(list((tmp_path / job / "logs" / "valid").iterdir())) == 1 for job in ("0", "1"))


def test_missing_or_unsupported_loggers_warn_once(monkeypatch, caplog):
    progress.warn_once.cache_clear()
    monkeypatch.setitem(sys.modules, "wandb", None)  # import fails
    for _ in range(2):
        bar = progress_bar([1], log_format="none", wandb_project="p", azureml_logging=True, aim_repo="r")
        bar.update_config({})
        for _ in bar:
            bar.log({"loss": 1.0}, tag="train", step=1)
    text = caplog.text
    assert text.count("pip install wandb") == 1
    assert text.count("azureml_logging is ignored") == 1 and text.count("aim_repo is ignored") == 1


def test_wandb(monkeypatch):
    calls = []

    class Config:
        def update(self, config, allow_val_change):
            calls.append(("config", config))

    class Wandb:
        run = None
        config = Config()

        @classmethod
        def init(cls, **kwargs):
            cls.run = kwargs

        @staticmethod
        def log(values, step):
            calls.append((values, step))

    monkeypatch.setitem(sys.modules, "wandb", Wandb)
    bar = progress_bar([1], log_format="none", wandb_project="p", wandb_run_name="r")
    bar.update_config({"seed": 1})
    bar.print({"loss": 1.0, "num_updates": 3}, tag="valid")
    assert Wandb.run == {"project": "p", "name": "r"}
    assert calls == [("config", {"seed": 1}), ({"valid/loss": 1.0}, 3)]


WITH_A_BAR = """
import logging, tqdm
from fairseq.logging.setup import configure_logging
configure_logging()
bar = tqdm.tqdm(total=3, desc="epoch", ncols=60)
bar.update(1)
bar.refresh()
logging.info("a line")
bar.refresh()
bar.close()
"""


def test_lines_stand_above_the_bar():
    pty, termios, fcntl = map(pytest.importorskip, ("pty", "termios", "fcntl"))
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run([sys.executable, "-c", WITH_A_BAR], stdout=terminal, stderr=terminal, check=True, cwd=ROOT)
    os.close(terminal)
    text = os.read(master, 1 << 16).decode()
    os.close(master)
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    assert any(re.fullmatch(r"\d{4}-\d\d-\d\d .* \| a line", line) for line in shown), shown
    assert any(line.startswith("epoch:") for line in shown), shown


def test_log_files_alone(tmp_path, records, capsys):
    handler = logging.FileHandler(tmp_path / "log")
    logger = logging.getLogger("test_log_files_alone")
    logger.addHandler(handler)
    log_to_files(logger, "long")
    handler.close()
    assert (tmp_path / "log").read_text() == "long\n" and records == [] and capsys.readouterr().out == ""


def test_a_logger_that_fails_is_named_once_and_left_out(monkeypatch, caplog):
    class Full:
        def __init__(self, *where):
            self.calls = 0

        def write(self, *arguments):
            self.calls += 1
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(progress, "_failed", set())
    bar = progress.NoopProgressBar([1])
    bar.loggers = [Full()]
    for _ in range(3):
        bar.print({"loss": 1.0}, "train", 1)
    assert bar.loggers[0].calls == 1 and caplog.text.count("No space left") == 1


OF_ANOTHER_PROCESS = """
import logging
from fairseq.logging.setup import log_warnings_only
log_warnings_only(3)
logging.info("for the first process to say")
logging.warning("something is odd")
"""


def test_warnings_of_other_processes_name_them():
    done = subprocess.run(
        [sys.executable, "-c", OF_ANOTHER_PROCESS], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.count("\n") == 1 and done.stdout.endswith("| process 3: something is odd\n")
