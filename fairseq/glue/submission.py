"""Predictions for GLUE's test sets, in the files that its site takes: ``CoLA.tsv``, ``MNLI-m.tsv``, ...

Every file has the header ``index<TAB>prediction`` and a line per row, from index 0; classes by their names, STS-B as a
number from 0 to 5 with three decimals.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from fairseq.finetune.glue_files import STS_B_SCALE, TASKS, GlueTask, task_directory
from fairseq.glue.data import Preparation
from fairseq.glue.files import replace_text
from fairseq.models.inference import head_outputs, in_order
from fairseq.models.loading import load_model_ensemble_and_task

TOKENS = 4096  # of a batch, padding included


def predict(model: Path, task: GlueTask, data: Path, out: Path) -> list[Path]:
    """Write the prediction files of ``task`` from the test splits in ``data``; returns their paths."""
    models, cfg, reads = load_model_ensemble_and_task([str(model)], {"data": str(data)})
    device = "cuda" if torch.cuda.is_available() and not cfg.common.cpu else "cpu"
    net = models[0].to(device)
    written = []
    for split, name in task.submissions.items():
        if not (data / "input0" / f"{split}.idx").is_file():
            continue
        reads.load_dataset(split)
        batches = reads.get_batch_iterator(
            reads.dataset(split), max_tokens=TOKENS, max_positions=reads.max_positions(), ignore_invalid_inputs=False
        ).next_epoch_itr(shuffle=False)
        logits = in_order(head_outputs(net, batches, reads.cfg.classification_head_name)).float().cpu()
        if task.regression:
            values = (logits[:, 0] * STS_B_SCALE).clamp(0.0, STS_B_SCALE)
            answers = [f"{value:.3f}" for value in values.tolist()]
        else:
            names = reads.label_dictionary.symbols[reads.label_dictionary.nspecial :]
            answers = [names[index] for index in logits.argmax(dim=1).tolist()]
        lines = ["index\tprediction", *(f"{index}\t{answer}" for index, answer in enumerate(answers))]
        replace_text(out / name, "\n".join(lines) + "\n")
        written.append(out / name)
    return written


def diagnostic_data(preparation: Preparation, mnli: Path) -> Path | None:
    """The diagnostic set (AX), which the model of MNLI answers, in the layout of MNLI; None when it is not there."""
    task = TASKS["AX"]
    if task_directory(preparation.data_dir, task) is None:
        return None
    data = preparation.find(task) or preparation.make(task)
    shutil.copytree(mnli / "label", data.path / "label", dirs_exist_ok=True)
    return data.path
