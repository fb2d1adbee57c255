"""ONNX graphs with weights of 8 bits for the CPU, and what that costs and brings.

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq.errors import ConfigError

MASKED = 0.15  # of the tokens are predicted
ROUNDS = 5


class Cost(NamedTuple):
    """Mean losses in bits a predicted token, and seconds a pass (medians), with 32 and with 8 bits."""

    loss: float
    loss_int8: float
    seconds: float
    seconds_int8: float

    def sentence(self) -> str:
        change, speed = self.loss_int8 - self.loss, self.seconds / self.seconds_int8
        return f"loss {self.loss:.4f} -> {self.loss_int8:.4f} bits ({change:+.4f}), {speed:.2f} times as fast"


def write_int8(source: Path, target: Path) -> None:
    """The graph ``source`` with the matrices of its products in 8 bits, rounded per row; activations are scaled as they come."""
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        raise ConfigError("8 bits need onnxruntime: pip install fairseq[onnx]") from None
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises on the root logger
    try:
        quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
            per_channel=True,
        )
    finally:
        logging.root.setLevel(level)


def masked_batches(rows: Sequence[Tensor], mask: int, pad: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """(ids, targets) of ``size`` rows each, (B, T); targets are -100 where nothing is predicted. The same at every call."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for start in range(0, len(rows), size):
        ids = torch.nn.utils.rnn.pad_sequence(list(rows[start : start + size]), batch_first=True, padding_value=pad)
        chosen = (ids > 3) & (torch.rand(ids.shape, generator=generator) < MASKED)
        batches.append((ids.masked_fill(chosen, mask), ids.masked_fill(~chosen, -100)))
    return batches


def compare(source: Path, target: Path, batches: Sequence[tuple[Tensor, Tensor]], pad: int) -> Cost:
    """Both graphs on the same batches, in turns. Raises ConfigError when no token is predicted."""
    import onnxruntime

    sessions = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in (source, target)
    ]
    losses = [_loss(session, batches, pad) for session in sessions]
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for kept, session in zip(times, sessions, strict=True):
            start = time.perf_counter()
            session.run(None, _inputs(session, batches[0][0], pad))
            kept.append(time.perf_counter() - start)
    return Cost(*losses, *map(statistics.median, times))


def _loss(session: Any, batches: Sequence[tuple[Tensor, Tensor]], pad: int) -> float:
    total, count = 0.0, 0
    for ids, targets in batches:
        logits = torch.from_numpy(np.asarray(session.run(None, _inputs(session, ids, pad))[0]))
        chosen = targets != -100
        total += float(F.cross_entropy(logits[chosen].float(), targets[chosen], reduction="sum"))
        count += int(chosen.sum())
    if not count:
        raise ConfigError("the text has too few tokens for a loss: give a longer one")
    return total / count / float(np.log(2))


def _inputs(session: Any, ids: Tensor, pad: int) -> dict[str, Any]:
    values = {"input_ids": ids, "attention_mask": (ids != pad).long(), "token_type_ids": torch.zeros_like(ids)}
    return {given.name: values[given.name].numpy() for given in session.get_inputs()}
