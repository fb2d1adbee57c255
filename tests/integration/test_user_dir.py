"""Plugins in the style of the original are found, configured by their flags, trained and loaded again."""

from __future__ import annotations

from pathlib import Path

from tests.runs import DATA, ROOT, run, train, train_inner

PLUGIN = ROOT / "tests" / "data" / "plugin" / "old_style"
FLAGS = (
    f"--cpu --user-dir {PLUGIN} --task counting_masked_lm --criterion summed_masked_lm --tokens-per-sample 64 "
    "--sample-break-mode complete --optimizer adam --lr 0.001 --batch-size 8 --max-update 3 --log-format json "
    "--log-interval 1 --num-workers 0 --skip-invalid-size-inputs-valid-test"
).split()


def test_plugin_trains_by_flags(tmp_path: Path) -> None:
    arch = ["--arch", "scaled_roberta_tiny", "--feature-scale", "0.25", "--max-positions", "64"]
    rows = train_inner(train(DATA, *FLAGS, *arch, cwd=tmp_path).stdout)
    assert list(rows) == ["1", "2", "3"]
    assert rows["3"]["plugin_scale"] == "2"
    evaluated = run(
        "fairseq.cli.validate", DATA, "--cpu", "--user-dir", PLUGIN, "--path", "checkpoints/checkpoint_last.pt", "--task", "counting_masked_lm",
        "--batch-size", 8, "--log-format", "json", "--skip-invalid-size-inputs-valid-test", cwd=tmp_path,
    )  # fmt: skip
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    assert '"valid_plugin_scale": "2"' in evaluated.stdout


def test_plugin_trains_by_yaml(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        f"""# @package _group_
common: {{cpu: true, log_format: json, log_interval: 1, user_dir: {PLUGIN}}}
task: {{_name: counting_masked_lm, data: {DATA}, sample_break_mode: complete, tokens_per_sample: 64}}
criterion: summed_masked_lm
dataset: {{batch_size: 8, num_workers: 0, skip_invalid_size_inputs_valid_test: true}}
optimizer: {{_name: adam}}
lr_scheduler: fixed
optimization: {{lr: [0.001], max_update: 2}}
model: {{_name: scaled_roberta_tiny, feature_scale: 0.25, max_positions: 64}}
"""
    )
    done = run("fairseq.cli.hydra_train", "--config-dir", tmp_path, "--config-name", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(train_inner(done.stdout)) == ["1", "2"]


def test_missing_plugin_is_one_sentence(tmp_path: Path) -> None:
    done = run("fairseq.cli.train", DATA, *FLAGS, "--user-dir", tmp_path / "nothing", "--arch", "roberta", cwd=tmp_path)
    assert done.returncode == 2
    assert "nothing" in done.stderr and "Traceback" not in done.stderr
