"""Old names of the model side: the base class `FairseqModel`, torch-hub modules, `LayerNorm`."""

from __future__ import annotations

import argparse
from typing import Any

from torch import nn

from fairseq.data import encoders
from fairseq.errors import OutOfScopeError
from fairseq.models.fairseq_model import FairseqEncoderModel
from fairseq.models.hub import load_pretrained
from fairseq.optim.ema import EMA
from fairseq.refusals import HERE


class FairseqModel(FairseqEncoderModel):
    """Base of models before `FairseqEncoderModel`; those with a decoder are out of scope."""

    def __init__(self, encoder: Any, decoder: Any = None) -> None:
        if decoder is not None:
            raise OutOfScopeError(
                f"{type(self).__name__} has a decoder, and sequence-to-sequence modelling and generation is out of scope: "
                f"{HERE}; encoders derive from FairseqEncoderModel"
            )
        super().__init__(encoder)


def check_type(module: Any, expected_type: type) -> None:
    if not isinstance(module, expected_type):
        raise TypeError(f"{type(module)} != {expected_type}")


def build_ema(model: nn.Module, cfg: Any, device: Any) -> EMA:
    return EMA(model, cfg, device)


def from_pretrained(
    model_name_or_path: str,
    checkpoint_file: str = "model.pt",
    data_name_or_path: str | None = ".",
    archive_map: dict[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """``{"args": configuration, "task": task, "models": models}`` of a checkpoint."""
    loaded = load_pretrained(model_name_or_path, checkpoint_file, data_name_or_path, archive_map, **kwargs)
    return {"args": loaded.cfg, "task": loaded.task, "models": loaded.models}


class BPEHubInterface(nn.Module):
    """A BPE by name with its options: ``encode(text)``, ``decode(pieces)``."""

    def __init__(self, bpe: str, **kwargs: Any) -> None:
        super().__init__()
        self.bpe = encoders.build_bpe(argparse.Namespace(bpe=bpe, **kwargs))

    def encode(self, sentence: str) -> str:
        return self.bpe.encode(sentence)

    def decode(self, sentence: str) -> str:
        return self.bpe.decode(sentence)


class TokenizerHubInterface(nn.Module):
    """A tokenizer by name with its options: ``encode(text)``, ``decode(tokens)``."""

    def __init__(self, tokenizer: str, **kwargs: Any) -> None:
        super().__init__()
        self.tokenizer = encoders.build_tokenizer(argparse.Namespace(tokenizer=tokenizer, **kwargs))

    def encode(self, sentence: str) -> str:
        return self.tokenizer.encode(sentence)

    def decode(self, sentence: str) -> str:
        return self.tokenizer.decode(sentence)


def LayerNorm(
    normalized_shape: int, eps: float = 1e-5, elementwise_affine: bool = True, export: bool = False
) -> nn.LayerNorm:
    """``torch.nn.LayerNorm`` under the old name; ``export`` chose between two implementations and is ignored."""
    return nn.LayerNorm(normalized_shape, eps, elementwise_affine)
