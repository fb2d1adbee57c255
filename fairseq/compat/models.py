"""Old names of the model side: sequence-to-sequence base classes, torch-hub modules, `LayerNorm`.

The sequence-to-sequence classes can be imported and derived from, and are refused when one is made.
"""

from __future__ import annotations

import argparse
from typing import Any

from torch import nn

from fairseq.data import encoders
from fairseq.errors import OutOfScopeError
from fairseq.models.fairseq_model import BaseFairseqModel
from fairseq.models.hub import load_pretrained
from fairseq.refusals import HERE


class _OutOfScope(BaseFairseqModel):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kind = next(base.__name__ for base in type(self).__mro__ if base.__module__ == __name__)
        raise OutOfScopeError(
            f"{type(self).__name__} is a {kind}, which belongs to sequence-to-sequence modelling or generation and is "
            f"out of scope: {HERE}; encoders derive from FairseqEncoderModel"
        )


class FairseqEncoderDecoderModel(_OutOfScope):
    pass


class FairseqLanguageModel(_OutOfScope):
    pass


class FairseqMultiModel(_OutOfScope):
    pass


class FairseqDecoder(_OutOfScope):
    pass


class FairseqIncrementalDecoder(FairseqDecoder):
    pass


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
