"""Token types and the ways to count positions."""

from __future__ import annotations

import types

import pytest
import torch

from fairseq.errors import ConfigError, DataError
from fairseq.models.roberta import RobertaHubInterface
from fairseq.modules.positions import LearnedPositionalEmbedding, SinusoidalPositionalEmbedding
from fairseq.modules.slots import EncoderShape
from fairseq.registry import POSITIONS
from tests.unit.roberta import PAD, Task, small_model, some_tokens, without_dropout

SHAPE = EncoderShape(dim=6, heads=2, ffn_dim=12, layers=2, max_positions=5, padding_idx=1)
PADDING = torch.tensor([[False, False, False], [False, True, True], [True, False, False]])


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({}, [[2, 3, 4], [2, 1, 1], [1, 2, 3]]),
        ({"offset": 0}, [[0, 1, 2], [0, 0, 0], [0, 0, 1]]),
        ({"offset": 3}, [[3, 4, 5], [3, 1, 1], [1, 3, 4]]),
        ({"by_column": True}, [[2, 3, 4]] * 3),
        ({"offset": 0, "by_column": True}, [[0, 1, 2]] * 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["learned", "sinusoidal"])
def test_how_positions_are_counted(name, options, ids):
    positions = POSITIONS.get(name)(SHAPE, **options)
    assert positions.ids(PADDING).tolist() == ids
    assert positions.num_embeddings == 5 + options.get("offset", 2)
    positions.check(positions.ids(PADDING), explicit=False)
    assert positions(positions.ids(PADDING)).shape == (3, 3, 6)


def test_a_table_without_unused_rows():
    positions = LearnedPositionalEmbedding(5, 6, 1, offset=0)
    assert (
        positions.padding_idx is None and positions.max_positions == 5 and bool(positions.weight.detach().any(1).all())
    )
    positions.check(torch.full((1, 9), 4), explicit=False)
    with pytest.raises(DataError, match="6 tokens does not fit the model.*at most 5 tokens"):
        positions.check(torch.full((1, 9), 5), explicit=False)
    table = SinusoidalPositionalEmbedding(5, 6, 1, offset=0)
    assert bool(table(torch.arange(5)).any(dim=1).all())


@pytest.mark.parametrize("name", ["learned", "sinusoidal"])
@pytest.mark.parametrize("offset", [-1, 10**9])
def test_offsets_that_no_table_has(name, offset):
    with pytest.raises(
        ConfigError, match=rf"model\.{name}_offset must lie between 0 and 1000, but is {offset} instead"
    ):
        POSITIONS.get(name)(SHAPE, offset=offset)


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("what", ["position_ids", "token_type_ids"])
def test_ids_that_a_caller_gives(learned, what):
    torch.manual_seed(1)
    model = small_model(type_vocab_size=5, encoder_learned_pos=learned, **without_dropout()).eval()
    tokens = torch.tensor([[0, 5, 6, 2], [0, 5, 2, PAD]])
    row = torch.tensor([2, 4, 3, 1])
    expected = model(tokens, features_only=True, **{what: row.repeat(2, 1)})[0]
    for ids in (row, row[None], row.to(torch.int32)):
        assert torch.equal(model(tokens, features_only=True, **{what: ids})[0], expected)
    for ids, message in (
        (row.float(), f"{what} must be integers, but are of type float32"),
        (row.bool(), f"{what} must be integers, but are of type bool"),
        (row[:3], rf"{what} must have the shape of the tokens, \(2, 4\), but have \(3,\)"),
        (row.repeat(1, 2, 1), r"\(2, 4\), but have \(1, 2, 4\)"),
        (row - 2, "-1"),
    ):
        with pytest.raises(DataError, match=message):
            model(tokens, features_only=True, **{what: ids})


def test_types_are_added_to_the_token_vectors():
    torch.manual_seed(1)
    model = small_model(type_vocab_size=2, **without_dropout()).eval()
    encoder = model.encoder.sentence_encoder
    names = [name.split(".")[2] for name, _ in model.named_parameters() if "sentence_encoder" in name]
    assert list(dict.fromkeys(names))[:4] == [
        "embed_tokens",
        "embed_positions",
        "embed_token_types",
        "layernorm_embedding",
    ]
    tokens = some_tokens()[:2]
    ids = (torch.arange(9) > 4).long().expand(2, 9)
    found = model(tokens, token_type_ids=ids)[0]
    assert torch.equal(model(tokens)[0], model(tokens, token_type_ids=torch.zeros_like(ids))[0])
    assert not torch.allclose(found, model(tokens)[0])
    features = model.extract_features(tokens, token_type_ids=ids)[0]
    assert torch.equal(features, model.encoder.extract_features(tokens, token_type_ids=ids)[0])
    vectors = encoder.embed_tokens(tokens) + encoder.embed_token_types(ids)
    encoder.embed_token_types = None
    torch.testing.assert_close(encoder(vectors, tokens.eq(PAD)).features, features)


def test_types_of_packed_batches():
    torch.manual_seed(1)
    model = small_model(type_vocab_size=2, **without_dropout()).double()
    tokens = some_tokens()[:2]
    ids = torch.randint(2, tokens.shape)
    masked = (torch.arange(18).view(2, 9) % 4 == 1) & tokens.ne(PAD)
    results = []
    for below in (0.0, 1.0):
        model.encoder.sentence_encoder.pack_below = below
        model.zero_grad()
        model(tokens, masked_tokens=masked, token_type_ids=ids)[0].square().sum().backward()
        results.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(results[0], results[1])


def test_models_without_types_have_no_trace_of_them():
    torch.manual_seed(1)
    plain = small_model()
    torch.manual_seed(1)
    typed = small_model(type_vocab_size=2)
    assert set(typed.state_dict()) - set(plain.state_dict()) == {"encoder.sentence_encoder.embed_token_types.weight"}
    tokens = some_tokens()
    with pytest.raises(DataError, match="the model has no token types"):
        plain(tokens, token_type_ids=torch.zeros_like(tokens))
    for ids, words in (
        (torch.full_like(tokens, 2), "between 0 and 1, but 2"),
        (torch.full_like(tokens, -1), "between 0 and 1, but -1"),
        (torch.zeros(1, 2, dtype=torch.long), "the shape of the tokens"),
    ):
        with pytest.raises(DataError, match=words):
            typed(tokens, token_type_ids=ids)
    with pytest.raises(ConfigError, match="type_vocab_size must be at least 0"):
        small_model(type_vocab_size=-1)


def test_types_through_the_hub():
    model = small_model(type_vocab_size=2).eval()
    model.register_classification_head("h", num_classes=3)
    hub = RobertaHubInterface(types.SimpleNamespace(), Task(), model, bpe=None)
    rows = [torch.tensor([0, 5, 2, 6, 7, 2]), torch.tensor([0, 8, 2])]
    kinds = [torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 0])]
    with torch.no_grad():
        found = hub.predict("h", rows, token_type_ids=kinds)
        torch.testing.assert_close(found[0], hub.predict("h", rows[0], token_type_ids=kinds[0])[0])
        assert not torch.allclose(found[0], hub.predict("h", rows)[0])
        assert torch.equal(hub.extract_features(rows[1], token_type_ids=kinds[1]), hub.extract_features(rows[1]))
        layers = hub.extract_features(rows[0], return_all_hiddens=True, token_type_ids=kinds[0])
    assert len(layers) == 4 and layers[0].shape == (1, 6, 12)
