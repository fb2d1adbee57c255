"""Encoders with the interfaces of the original, inside a `RobertaEncoder`; position embeddings that take tokens.

Legend: B batch, T tokens, C channels, L layers.
"""

from __future__ import annotations

import argparse
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.errors import DataError, OutOfScopeError
from fairseq.models.fairseq_model import EncoderOut
from fairseq.models.roberta import RobertaClassificationHead, RobertaEncoder, RobertaModel
from fairseq.modules import LearnedPositionalEmbedding, PositionalEmbedding, SinusoidalPositionalEmbedding
from fairseq.modules.positions import sinusoidal_table
from tests.unit.roberta import PAD, SIZES, Task, some_tokens, without_dropout

TOKENS = torch.tensor([[5, 6, 7, PAD], [8, PAD, PAD, PAD]])
ROWS = torch.tensor([[2, 3, 4, 1], [2, 1, 1, 1]])


class Inner(nn.Module):
    """One linear layer over the embeddings; the subclasses differ in their interface alone."""

    def __init__(self, embed_tokens: Any) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.fc = nn.Linear(embed_tokens.embedding_dim, embed_tokens.embedding_dim)

    def states(self, tokens: Tensor, embeddings: Tensor | None) -> list[Tensor]:
        x = (self.embed_tokens(tokens) if embeddings is None else embeddings).transpose(0, 1)
        return [x, torch.tanh(self.fc(x))]


class OfThe12(Inner):
    def forward(self, src_tokens, src_lengths=None, return_all_hiddens=False, token_embeddings=None):  # type: ignore[no-untyped-def]
        states = self.states(src_tokens, token_embeddings)
        return {"encoder_out": [states[-1]], "encoder_states": states if return_all_hiddens else []}


class OfThe10(Inner):
    def forward(self, tokens, segment_labels=None, last_state_only=False, positions=None, token_embeddings=None):  # type: ignore[no-untyped-def]
        states = self.states(tokens, token_embeddings)
        return states[-1:] if last_state_only else states, states[-1][0]


class Named(Inner):
    def forward(self, src_tokens, src_lengths=None, return_all_hiddens=False):  # type: ignore[no-untyped-def]
        states = self.states(src_tokens, None)
        return EncoderOut(states[-1], None, None, states if return_all_hiddens else None, None, None)


def encoder_of(kind: type[Inner], takes: int = 3) -> Any:
    class Encoder(RobertaEncoder):
        if takes == 3:

            def build_encoder(self, args, dictionary, embed_tokens):  # type: ignore[no-untyped-def, override]
                return kind(embed_tokens)
        else:

            def build_encoder(self, args, dictionary):  # type: ignore[no-untyped-def, override]
                return kind(nn.Embedding(len(dictionary), args.encoder_embed_dim, dictionary.pad()))

    return Encoder(argparse.Namespace(**SIZES, **without_dropout()), Task().source_dictionary)


@pytest.mark.parametrize("takes", [2, 3])
@pytest.mark.parametrize("kind", [OfThe12, OfThe10, Named])
def test_old_contracts(kind: type[Inner], takes: int) -> None:
    encoder, tokens = encoder_of(kind, takes), some_tokens(2)
    inner = encoder.sentence_encoder
    expected = inner.states(tokens, None)
    features, extra = encoder.extract_features(tokens)
    torch.testing.assert_close(features, expected[-1].transpose(0, 1))
    assert extra["inner_states"] is None
    states = encoder(tokens, features_only=True, return_all_hiddens=True, src_lengths=torch.tensor([9, 7]))[1]
    assert [state.shape for state in states["inner_states"]] == [(9, 2, 12)] * 2
    assert encoder.lm_head.weight is inner.embed_tokens.weight
    torch.testing.assert_close(encoder(tokens)[0], encoder.lm_head(features))
    twice = inner.embed_tokens(tokens) * 2
    if kind is Named:
        with pytest.raises(TypeError, match="the encoder Named takes no token_embeddings"):
            encoder.extract_features(tokens, token_embeddings=twice)
    else:
        changed = encoder(tokens, features_only=True, token_embeddings=twice)[0]
        torch.testing.assert_close(changed, inner.states(tokens, twice)[-1].transpose(0, 1))
    with pytest.raises(TypeError, match="takes no padding_mask"):
        encoder.extract_features(tokens, padding_mask=tokens.eq(PAD))


def test_an_old_encoder_is_trained_and_loaded() -> None:
    args = argparse.Namespace(**SIZES, **without_dropout())
    model = RobertaModel(args, encoder_of(OfThe12))
    tokens = some_tokens(2)
    sample = {"net_input": {"src_tokens": tokens}, "target": tokens, "ntokens": 18, "nsentences": 2}
    loss, size, _ = MaskedLmLoss(None, Task())(model, sample)
    logits = model(tokens)[0][tokens.ne(PAD)]
    wanted = nn.functional.cross_entropy(logits, tokens[tokens.ne(PAD)], reduction="sum")
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5) and int(size) == 16
    other = RobertaModel(args, encoder_of(OfThe12))
    other.load_state_dict(model.state_dict())  # which has no version: the encoder knows of none
    torch.testing.assert_close(other(tokens)[0], model(tokens)[0])


def test_an_encoder_that_replaces_the_built_one() -> None:
    class Replacing(RobertaEncoder):
        def __init__(self, args, dictionary):  # type: ignore[no-untyped-def]
            super().__init__(args, dictionary)
            self.sentence_encoder = OfThe10(self.sentence_encoder.embed_tokens)

    encoder = Replacing(argparse.Namespace(**SIZES, **without_dropout()), Task().source_dictionary)
    tokens = some_tokens(2)
    assert encoder(tokens)[0].shape == (2, 9, 31)
    torch.testing.assert_close(
        encoder.extract_features(tokens)[0], encoder.sentence_encoder.states(tokens, None)[-1].transpose(0, 1)
    )


def test_learned_positions_take_tokens() -> None:
    table = LearnedPositionalEmbedding(66, 4, 1)
    assert table.max_positions == 64
    torch.testing.assert_close(table(TOKENS), table.weight[ROWS])
    assert torch.equal(table(TOKENS, incremental_state={}), table.weight[None, None, 5])
    with pytest.raises(ValueError, match="none can be given"):
        table(TOKENS, positions=ROWS)
    free = LearnedPositionalEmbedding(66, 4, None)
    torch.testing.assert_close(free(TOKENS, positions=ROWS), free.weight[ROWS])
    with pytest.raises(ValueError, match="give them"):
        free(TOKENS)
    with pytest.raises(DataError, match="70 tokens does not fit the table, which has positions for 64"):
        table(torch.full((1, 70), 5))


def test_the_old_builder_of_positions() -> None:
    learned = PositionalEmbedding(64, 6, 1, learned=True)
    assert isinstance(learned, LearnedPositionalEmbedding) and learned.weight.shape == (66, 6)
    assert not bool(learned.weight[1].any()) and float(learned.weight.std()) == pytest.approx(6**-0.5, rel=0.2)
    torch.testing.assert_close(learned(TOKENS), learned.weight[ROWS])
    assert PositionalEmbedding(64, 6, None, learned=True).weight.shape == (64, 6)  # type: ignore[union-attr]
    fixed = PositionalEmbedding(64, 6, 1)
    assert isinstance(fixed, SinusoidalPositionalEmbedding)
    torch.testing.assert_close(fixed(TOKENS), sinusoidal_table(66, 6, 1)[ROWS])


def test_sinusoidal_positions_take_tokens() -> None:
    table = SinusoidalPositionalEmbedding(8, 1, 4)
    torch.testing.assert_close(table(TOKENS), sinusoidal_table(9, 8, 1)[ROWS])
    assert table(torch.full((1, 30), 5)).shape == (1, 30, 8) and table.weights.size(0) == 32
    torch.testing.assert_close(table(TOKENS, incremental_state={}), sinusoidal_table(9, 8, 1)[5].expand(2, 1, 8))
    torch.testing.assert_close(
        table.get_embedding(6, 8, 1), SinusoidalPositionalEmbedding.get_embedding(6, 8, padding_idx=1)
    )
    assert list(table.state_dict()) == ["_float_tensor"] and table.max_positions == 10**5
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(table), file)
    file.seek(0)
    assert torch.equal(torch.jit.load(file)(TOKENS), table(TOKENS))
    assert table.half()(TOKENS).dtype is torch.float16 and torch.equal(table.float()(TOKENS), table(TOKENS))


def test_quantization_noise_of_heads() -> None:
    head = RobertaClassificationHead(12, 8, 3, "tanh", 0.0, 0, 8, True)
    assert hasattr(head.out_proj, "weight_orig"), "the eighth argument is spectral norm, as in the original"
    assert RobertaClassificationHead(12, 8, 3, "tanh", 0.0, q_noise=0, qn_block_size=8)(torch.ones(2, 5, 12)).shape == (
        2,
        3,
    )
    with pytest.raises(OutOfScopeError, match="q_noise must be 0, but is 0.1"):
        RobertaClassificationHead(12, 8, 3, "tanh", 0.0, q_noise=0.1)
