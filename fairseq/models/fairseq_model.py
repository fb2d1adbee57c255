"""The base classes of models and encoders, under their old import path.

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fairseq.dataclass.flags import gen_parser_from_dataclass
from fairseq.models.hub import load_pretrained
from fairseq.models.loading import prune_layers
from fairseq.overrides import inherited, supports


class EncoderOut(NamedTuple):
    """What encoders of the original's seq2seq models returned; kept for plugins and tests that import it."""

    encoder_out: Tensor
    encoder_padding_mask: Tensor | None
    encoder_embedding: Tensor | None
    encoder_states: list[Tensor] | None
    src_tokens: Tensor | None
    src_lengths: Tensor | None


class FairseqEncoder(nn.Module):
    """A module that knows its dictionary and its longest input."""

    refuses_unused = True
    """An argument that it cannot use is an error: nobody else uses it either."""

    def __init__(self, dictionary: Any) -> None:
        super().__init__()
        self.dictionary = dictionary

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    def max_positions(self) -> int:
        """The longest input in tokens."""
        return int(1e6)

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> dict[str, Any]:
        """Change old names in ``state_dict``, in place; ``name`` is this module's own."""
        return state_dict

    def set_num_updates(self, num_updates: int) -> None:
        """Called by the trainer after every update; forwarded to the modules inside that have such a method."""
        tell_modules(self, "set_num_updates", num_updates)


def tell_modules(module: nn.Module, method: str, value: Any) -> None:
    """Call ``method(value)`` on those modules inside ``module`` that have it, however deep."""
    for inner in _inside(module, {}):
        own: Any = vars(inner).get(method) or getattr(type(inner), method, None)
        # The base classes would only tell the same modules again.
        if own is not None and own is not getattr(FairseqEncoder, method, None):
            getattr(inner, method)(value)


def _inside(module: nn.Module, found: dict[nn.Module, None]) -> dict[nn.Module, None]:
    """The modules inside ``module``, each once, parents first; quicker than ``modules()``, for every micro-batch."""
    for child in module._modules.values():
        if child is not None and child not in found:
            found[child] = None
            _inside(child, found)
    return found


class BaseFairseqModel(nn.Module):
    """What the trainer and the tasks ask of a model."""

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        """Add the flags of a model without a configuration dataclass (old plugins); otherwise they follow from it."""
        config = inherited(cls, "__dataclass")
        if config is not None:
            gen_parser_from_dataclass(parser, config(), delete_default=True)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> BaseFairseqModel:
        """A new model from its configuration node ``args`` and the task it is for."""
        raise NotImplementedError(f"{cls.__name__} must define build_model(cls, args, task)")

    @classmethod
    def hub_models(cls) -> dict[str, Any]:
        """Names of published models, with their addresses."""
        return {}

    @classmethod
    def from_pretrained(
        cls, model_name_or_path: str, checkpoint_file: str = "model.pt", data_name_or_path: str = ".", **kwargs: Any
    ) -> Any:
        """Load a checkpoint with its task, by directory or published name; see ``load_pretrained``."""
        return load_pretrained(model_name_or_path, checkpoint_file, data_name_or_path, cls.hub_models(), **kwargs)

    def get_targets(self, sample: dict[str, Any], net_output: Any) -> Tensor:
        """The targets (B, T) of a batch."""
        return sample["target"]

    def get_normalized_probs(self, net_output: Any, log_probs: bool, sample: dict[str, Any] | None = None) -> Tensor:
        """(Log-)probabilities in float32 over the last dimension of ``net_output[0]``."""
        logits = net_output[0] if isinstance(net_output, (tuple, list)) else net_output
        normalize = F.log_softmax if log_probs else F.softmax
        return normalize(logits, dim=-1, dtype=torch.float32)

    def extract_features(self, *args: Any, **kwargs: Any) -> Any:
        """What ``forward`` computes, unless a model separates features from output."""
        return self(*args, **kwargs)

    def max_positions(self) -> int | None:
        """The longest input in tokens, None for no limit."""
        return None

    def upgrade_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Bring an old state dict up to date, in place."""
        self.upgrade_state_dict_named(state_dict, "")

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """The same for a model that is called ``name`` in the state dict; asks every sub-module that has such a method."""
        prefix = f"{name}." if name else ""
        for child_name, module in list(self.named_modules())[1:]:
            upgrade: Any = getattr(module, "upgrade_state_dict_named", None)
            if upgrade is not None:
                upgrade(state_dict, prefix + child_name)
            elif hasattr(module, "upgrade_state_dict"):
                module.upgrade_state_dict(state_dict)  # type: ignore[operator]

    def load_state_dict(  # type: ignore[override]
        self, state_dict: dict[str, Any], strict: bool = True, model_cfg: Any = None, args: Any = None
    ) -> Any:
        """Load ``state_dict`` after the legacy upgrade; the dict given is left as it is.

        ``model_cfg`` (``args`` is its old name) may ask for some layers only (``encoder_layers_to_keep``).
        """
        state = dict(state_dict)
        self.upgrade_state_dict(state)
        return super().load_state_dict(prune_layers(state, model_cfg if model_cfg is not None else args), strict)

    def set_num_updates(self, num_updates: int) -> None:
        """Called by the trainer after every update; forwarded to the modules inside that have such a method."""
        tell_modules(self, "set_num_updates", num_updates)

    def set_epoch(self, epoch: int) -> None:
        """Called at the beginning of an epoch; forwarded to the modules inside that have such a method."""
        tell_modules(self, "set_epoch", epoch)

    def prepare_for_inference_(self, cfg: Any) -> None:
        """Old interface; evaluation needs nothing beyond ``eval()``."""


class FairseqEncoderModel(BaseFairseqModel):
    """A model that is one encoder and what stands on it."""

    hands_on = True
    """Its ``forward`` uses no arguments beside those that it names; all others are the encoder's."""

    def __init__(self, encoder: FairseqEncoder) -> None:
        super().__init__()
        if not isinstance(encoder, FairseqEncoder):
            raise TypeError(f"encoder must be a FairseqEncoder, but is a {type(encoder).__name__} instead")
        self.encoder = encoder
        # A plugin's own forward may use an argument and hand it on with all others.
        encoder.refuses_unused = supports(self, "hands_on", "forward")

    def forward(self, src_tokens: Tensor, src_lengths: Tensor | None = None, **kwargs: Any) -> Any:
        return self.encoder(src_tokens, src_lengths, **kwargs)

    def max_positions(self) -> int | None:
        return self.encoder.max_positions()
