"""The encoder in plain PyTorch that goes along with exported weights: the same numbers as the one that trains."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch

from fairseq.dataclass.build import build_config
from fairseq.dataclass.state import config_to_state
from fairseq.interop.hf_settings import portable_settings, portable_weights
from fairseq.models import build_model
from fairseq.portable.encoder import Encoder, LMHead
from tests.unit.roberta import KINDS, SIZES, Task, some_tokens

COMBINATIONS: dict[str, dict[str, Any]] = {
    **{name: {"_name": name} for name in KINDS},
    "bigs, leak": {"_name": "roberta_bigs", "bigs_padding": "leak"},
    "bigs, clap": {"_name": "roberta_bigs", "lm_head": "clap", "zero_masking": True},
    "fff, alibi, clap": {
        "_name": "roberta",
        "channel_mixer": "fff",
        "fff_depth": 2,
        "fff_trees": 2,
        "attention_bias": "alibi_asymmetrical",
        "positions": "none",
        "lm_head": "clap",
    },
    "sinusoidal, narrow": {"_name": "roberta", "positions": "sinusoidal", "embedding_size": 6},
    "convolutions": {
        "_name": "roberta_conv",
        "conv_attention_kernel": "convfixed_convq_convk_convolution_scaled 2",
        "conv_attention_value_projection": "convolution_depth_mixed 2",
        "conv_attention_query_key_projection": "none",
    },
    "convolutions of queries": {
        "_name": "roberta_conv",
        "conv_attention_kernel": "qk_convq 3",
        "conv_attention_query_key_projection": "convolution_mixed 2 1",
        "attention_bias": "alibi",
        "encoder_normalize_before": True,
    },
    "convbert at the query": {"_name": "roberta_convbert", "conv_attention_convbert": "query", "type_vocab_size": 2},
    "own head": {"_name": "roberta", "untie_weights_roberta": True, "no_scale_embedding": False},
}


def small(name: str) -> dict[str, Any]:
    return {"fff_depth": 3, "fff_trees": 1} if "ultrafastbert" in name else {}


def made(settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model in float64 with random weights, and its checkpoint."""
    torch.manual_seed(7)
    heads = 2 if "convbert" in settings["_name"] else SIZES["encoder_attention_heads"]
    sizes = {**SIZES, "max_positions": 200, "encoder_attention_heads": heads}
    cfg = build_config(
        {
            "task": {"_name": "masked_lm", "data": ".", "tokens_per_sample": 300},
            "model": {**sizes, **small(settings["_name"]), **settings},
        }
    )
    model = build_model(cfg.model, Task(300)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model, {"cfg": config_to_state(cfg), "model": model.state_dict()}


@pytest.mark.parametrize("name", COMBINATIONS)
@pytest.mark.parametrize("tokens", [1, 9, 130])
def test_the_same_numbers_as_our_own_encoder(name: str, tokens: int) -> None:
    model, state = made(COMBINATIONS[name])
    settings = portable_settings(state)
    config = argparse.Namespace(**settings)
    weights = portable_weights(state, settings["tied"])
    encoder, head = Encoder(config).double().eval(), LMHead(config).double().eval()
    encoder.load_state_dict({key[8:]: value for key, value in weights.items() if key.startswith("encoder.")})
    head.load_state_dict({key[8:]: value for key, value in weights.items() if key.startswith("lm_head.")})
    ids = some_tokens(2, tokens)
    with torch.no_grad():
        wanted, _ = model(ids)
        found = head(encoder(ids)[-1], encoder.embed_tokens.weight)
    kept = ids != 1
    assert torch.allclose(found[kept], wanted[kept], rtol=0, atol=1e-9), (found - wanted)[kept].abs().max()
