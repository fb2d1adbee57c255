"""ALiBi, the CLAP head and zero masking in the model and its task."""

from __future__ import annotations

import types

import pytest
import torch
import torch.nn.functional as F

from fairseq.data.dictionary import Dictionary
from fairseq.dataclass.build import convert_namespace_to_omegaconf
from fairseq.dataclass.parser import get_training_parser, parse_args_and_arch
from fairseq.dataclass.state import config_from_state
from fairseq.errors import CheckpointError, ConfigError, DataError
from fairseq.models import build_model
from fairseq.models.roberta import RobertaHubInterface
from fairseq.modules.lm_head import ClapHead
from fairseq.tasks.configs import MaskedLMConfig
from fairseq.tasks.masked_lm import MaskedLMTask
from tests.unit.roberta import SIZES, Task, small_model, some_tokens, without_dropout

ALIBI = {"encoder_alibi": True, "no_token_positional_embeddings": True}
ZERO = without_dropout(zero_masking=True)


@pytest.mark.parametrize("normalize", [False, True])
def test_clap_head(normalize):
    weight = torch.nn.Parameter(torch.randn(7, 4))
    head = ClapHead(weight, initial_beta=2.5, normalize=normalize)
    features, masked = torch.randn(2, 3, 4), torch.tensor([[True, False, False], [False, True, True]])
    table = F.normalize(weight, dim=-1) if normalize else weight
    torch.testing.assert_close(head(features), 2.5 * features @ table.T)
    torch.testing.assert_close(head(features, masked), head(features)[masked])
    assert list(head.state_dict()) == ["beta", "weight"] and head.beta.shape == ()


def test_clap_model():
    model = small_model("roberta_clap", encoder_layers=0, **without_dropout()).eval()
    embed = model.encoder.sentence_encoder.embed_tokens
    assert model.encoder.lm_head.weight is embed.weight and embed.padding_idx is None
    assert bool(embed.weight[1].any())  # the padding row is an ordinary one
    tokens = some_tokens(1)
    torch.testing.assert_close(embed(tokens).norm(dim=-1), torch.ones(1, 9))
    raw = small_model("roberta_clap", l2norm_embedding=False).encoder.sentence_encoder.embed_tokens
    assert torch.equal(raw(tokens), raw.weight[tokens])


def test_alibi_leaves_no_trace_in_the_state_and_takes_longer_input():
    model = small_model("roberta_alibi").eval()
    assert not any("bias" in key and "attention_bias" in key for key in model.state_dict())
    with torch.no_grad():
        assert model(some_tokens(2, 40))[0].shape == (2, 40, 31)  # trained for 16
        hub = RobertaHubInterface(None, Task(), model, None)
        assert hub.extract_features(some_tokens(1, 40)).shape == (1, 40, 12)
        with pytest.raises(DataError):
            RobertaHubInterface(None, Task(), small_model(), None).extract_features(some_tokens(1, 40))


def test_alibi_is_not_rounded_for_good():
    model = small_model("roberta_alibi").eval()
    tokens = some_tokens()
    with torch.no_grad():
        before = model(tokens)[0]
        weights = {key: value.clone() for key, value in model.state_dict().items()}
        model.bfloat16()(tokens)
        model.float().load_state_dict(weights)
        assert torch.equal(model(tokens)[0], before)


def test_alibi_sees_order_and_direction():
    def last(asymmetrical):
        torch.manual_seed(1)
        model = small_model(**ALIBI, encoder_alibi_asymmetrical=asymmetrical, **without_dropout()).eval()
        return model(some_tokens(1))[0], model(some_tokens(1).flip(1))[0].flip(1)

    forward, backward = last(False)
    torch.testing.assert_close(forward, backward, atol=1e-6, rtol=0)  # a symmetrical bias cannot tell ahead from behind
    forward, backward = last(True)
    assert float((forward - backward).detach().abs().max()) > 1e-5


def test_ids_beyond_the_dictionary_are_zero_vectors():
    model = small_model(no_scale_embedding=False, layernorm_embedding=False, **ZERO).eval()
    encoder = model.encoder.sentence_encoder
    tokens = some_tokens(1)
    vectors = encoder.embed_tokens(tokens.index_fill(1, torch.tensor([2, 5]), 31))
    assert torch.equal(vectors[0].norm(dim=-1) == 0, torch.tensor([i in (2, 5) for i in range(9)]))
    states = model(tokens.fill_(31), return_all_hiddens=True)[1]["inner_states"]
    torch.testing.assert_close(states[0][:, 0], encoder.embed_positions.weight[2:11])


def test_self_masking_is_drawn_where_the_loss_is_computed_and_nowhere_else():
    model = small_model(mask_prob=0.4, **ZERO)
    tokens = some_tokens()
    plain = small_model(**ZERO)
    plain.load_state_dict(model.state_dict())
    for mode in (True, False):
        model.train(mode), plain.train(mode)
        torch.manual_seed(9)
        logits = model(tokens)[0]
        following = torch.rand(3)
        torch.manual_seed(9)
        masked = torch.rand(tokens.shape) < 0.4
        assert torch.equal(following, torch.rand(3))  # nothing else was drawn
        padding = tokens.eq(1)
        expected = plain(tokens.masked_fill(masked, 31), padding_mask=padding)[0]
        assert torch.equal(logits, expected)
        state = torch.get_rng_state()
        features = model(tokens, features_only=True)[0]
        assert torch.equal(features, plain(tokens, features_only=True)[0])
        assert torch.equal(model.extract_features(tokens)[0], features)
        assert torch.equal(torch.get_rng_state(), state)
    exported = torch.export.export(model, (tokens,)).module()
    torch.testing.assert_close(exported(tokens)[0], plain(tokens)[0])


def test_self_masking_leaves_fill_mask_alone():
    task = Task()
    task.mask_idx = len(task.source_dictionary)
    model = small_model(mask_prob=0.9, **ZERO).eval()
    hub = RobertaHubInterface(None, task, model, None)
    assert hub.fill_mask("w1 <mask> w2") == hub.fill_mask("w1 <mask> w2")
    plain = small_model(**ZERO).eval()
    plain.load_state_dict(model.state_dict())
    assert hub.fill_mask("w1 <mask> w2") == RobertaHubInterface(None, task, plain, None).fill_mask("w1 <mask> w2")


def masked_lm(**options):
    dictionary = Dictionary()
    dictionary.add_symbol("w")
    return MaskedLMTask(types.SimpleNamespace(**vars(MaskedLMConfig(data="-", **options))), dictionary)


def test_masks_and_model_must_fit():
    def build(task, **values):
        cfg = types.SimpleNamespace(**{"arch": "roberta_zero_clap", "encoder_layers": 1, "max_positions": 8, **values})
        return task.build_model(cfg, from_checkpoint=values.pop("stored", False))

    sizes = {"encoder_embed_dim": 4, "encoder_ffn_embed_dim": 4, "encoder_attention_heads": 2}
    with pytest.raises(ConfigError, match="omit_mask=true"):
        build(masked_lm(), **sizes)
    with pytest.raises(ConfigError, match="masked twice"):
        build(masked_lm(omit_mask=True), mask_prob=0.15, **sizes)
    assert build(masked_lm(omit_mask=True), **sizes).encoder.self_masking == 0
    assert build(masked_lm(mask_prob=0.0), mask_prob=0.15, **sizes).encoder.self_masking == 0.15
    # The original's command line wrote such files.
    assert build(masked_lm(omit_mask=True), mask_prob=0.15, stored=True, **sizes)
    # Without zero masking the model's probability means nothing.
    assert build(masked_lm(), arch="roberta", mask_prob=0.15, **sizes).encoder.self_masking == 0


def test_overrides_go_by_the_names_of_the_flags():
    stored = {"model": {"_name": "roberta", "mask_prob": 0.0}, "task": {"_name": "masked_lm", "data": "x"}}
    cfg = config_from_state(stored, {"mask_prob": 0.3})
    assert (cfg.task.mask_prob, cfg.model.mask_prob) == (0.3, 0.0)
    cfg = config_from_state(stored, {"model_mask_prob": 0.2})
    assert (cfg.task.mask_prob, cfg.model.mask_prob) == (0.15, 0.2)


def test_flags():
    parser = get_training_parser()
    words = "data --task masked_lm --arch roberta_zero_clap --criterion masked_lm --optimizer adam --lr 1 --omit-mask".split()
    cfg = convert_namespace_to_omegaconf(parse_args_and_arch(parser, words))
    assert cfg.task.omit_mask and cfg.task.mask_prob == 0.15 and not hasattr(cfg.model, "mask_prob")
    more = "--mask-prob 0 --model-mask-prob 0.2 --no-l2norm-embedding --scale-embedding --no-layernorm-embedding"
    cfg = convert_namespace_to_omegaconf(parse_args_and_arch(get_training_parser(), words + more.split()))
    assert (cfg.task.mask_prob, cfg.model.mask_prob) == (0, 0.2)
    assert not (cfg.model.l2norm_embedding or cfg.model.no_scale_embedding or cfg.model.layernorm_embedding)
    old = convert_namespace_to_omegaconf(parse_args_and_arch(get_training_parser(), [*words, "--l2norm-embedding"]))
    assert old.model.l2norm_embedding is False


def with_madeup(count):
    task = Task()
    dictionary = task.source_dictionary = task.target_dictionary = Dictionary()
    for symbol in [f"w{number}" for number in range(24)] + [f"madeupword{number:04d}" for number in range(count)]:
        dictionary.add_symbol(symbol)
    return task


@pytest.mark.parametrize(
    ("trained", "found", "words"),
    [
        (1, 3, "should have 1 madeupword lines and has 3: delete the last 2: madeupword0001, madeupword0002"),
        (0, 1, "should have 0 madeupword lines and has 1: delete the last 1: madeupword0000"),
        (3, 1, "should have 3 .* has 1: add 2 at its end: 'madeupword0001 0', 'madeupword0002 0'"),
        (0, -20, "use the dict.txt it was trained with"),
    ],
)
def test_a_dictionary_that_does_not_fit(trained, found, words):
    state = small_model().state_dict()
    key = "encoder.sentence_encoder.embed_tokens.weight"
    state[key] = state["encoder.lm_head.weight"] = torch.zeros(28 + trained, 12)
    task = with_madeup(max(found, 0))
    if found < 0:
        state[key] = torch.zeros(99, 12)
    model = build_model(types.SimpleNamespace(arch="roberta", **SIZES), task)
    with pytest.raises(CheckpointError, match=words):
        model.load_state_dict(state)
