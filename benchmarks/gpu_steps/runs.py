"""A trainer and its batches as ``fairseq-train`` makes them, on random tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_steps.setting import Setting


@dataclass(frozen=True)
class Size:
    """Of a model and an update; ``tokens`` are those of a sample."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    tokens: int
    per_update: int

    @property
    def flop_per_token(self) -> float:
        """Of the products of forward and backward: layers, attention, and the head on 15 % of the tokens."""
        layers, width = self.layers, self.width
        head = 0.9 * (width**2 + width * self.vocabulary)
        return 72 * layers * width**2 + 12 * layers * width * self.tokens + head


def base_size(setting: Setting, tokens: int, per_update: int = 16384) -> Size:
    """The base model; a tiny one in a dry run."""
    if setting.tiny:
        return Size(2, 16, 2, 101, tokens, 2 * tokens)
    return Size(12, 768, 12, 50265, tokens, per_update)


def make_trainer(setting: Setting, arch: str, size: Size, updates: int, *flags: str) -> tuple[Any, list[Any]]:
    """A trainer of ``arch`` and ``updates`` batches of full samples."""
    from synthetic import write_data_bin

    from fairseq.cli.common import set_up
    from fairseq.dataclass.parser import get_training_parser, parse_args_and_arch
    from fairseq.tasks import setup_task
    from fairseq.training.trainer import Trainer

    data = Path(setting.scratch) / f"data-{size.vocabulary}-{size.tokens}"
    write_data_bin(data, size.vocabulary, (updates + 1) * size.per_update)
    words = f"""{data} --task masked_lm --criterion masked_lm --arch {arch} --sample-break-mode none
        --tokens-per-sample {size.tokens} --max-positions {size.tokens} --mask-prob 0.15
        --batch-size {size.per_update // size.tokens} --required-batch-size-multiple 1
        --encoder-layers {size.layers} --encoder-embed-dim {size.width} --encoder-ffn-embed-dim {4 * size.width}
        --encoder-attention-heads {size.heads} --dropout 0.1 --attention-dropout 0.1
        --optimizer adam --adam-betas (0.9,0.98) --adam-eps 1e-6 --weight-decay 0.01 --clip-norm 1.0
        --lr-scheduler polynomial_decay --lr 0.0005 --warmup-updates 100 --total-num-update 1000
        --num-workers 0 --seed 1 --log-interval 1000 --disable-validation --no-save""".split()
    cfg = set_up(parse_args_and_arch(get_training_parser(), input_args=[*words, *flags]))
    task = setup_task(cfg.task, bpe=cfg.bpe)
    trainer = Trainer(cfg, task, task.build_model(cfg.model), task.build_criterion(cfg.criterion))
    iterator = trainer.get_train_iterator(epoch=1).next_epoch_itr(shuffle=False)
    return trainer, [sample for sample, _ in zip(iterator, range(updates))]  # noqa: B905
