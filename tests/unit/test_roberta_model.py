"""RoBERTa: variants, padding, heads, gradients, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch

from fairseq.errors import ConfigError, DataError, OutOfScopeError
from tests.unit.roberta import PAD, Task, small_model, some_tokens, without_dropout

ALIBI = {"encoder_alibi": True, "no_token_positional_embeddings": True}
VARIANTS = {
    "post-norm": {},
    "pre-norm": {"encoder_normalize_before": True, "layernorm_embedding": False},
    "sinusoidal": {"encoder_learned_pos": False},
    "odd width": {"encoder_embed_dim": 15, "encoder_attention_heads": 3, "encoder_learned_pos": False},
    "no positions": {"no_token_positional_embeddings": True},
    "untied": {"untie_weights_roberta": True},
    "scaled": {"no_scale_embedding": False},
    "one head": {"encoder_attention_heads": 1},
    "relu": {"activation_fn": "relu"},
    "no layers": {"encoder_layers": 0},
    "alibi": ALIBI,
    "alibi, one head": {**ALIBI, "encoder_attention_heads": 1, "encoder_alibi_asymmetrical": True},
    "alibi, pre-norm": {**ALIBI, "encoder_normalize_before": True},
    "clap": {"contrastive_pretraining": True, "initial_beta": 3.0},
    "clap, not normalized": {"contrastive_pretraining": True, "l2norm_embedding": False},
    "zero clap": {**ALIBI, "contrastive_pretraining": True, "zero_masking": True, "no_scale_embedding": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_runs_and_trains_every_parameter(variant):
    model = small_model(**VARIANTS[variant])
    tokens = some_tokens()
    masked = tokens.eq(tokens[0, 3])
    logits, extra = model(tokens, masked_tokens=masked)
    assert logits.shape == (int(masked.sum()), 31) and extra["inner_states"] is None
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_nothing_and_is_never_nan(variant):
    model = small_model(**VARIANTS[variant]).eval()
    tokens = some_tokens()
    with torch.no_grad():
        batched = model(tokens)[0]
        alone = model(tokens[1:2, :-2])[0]
    assert bool(batched.isfinite().all())
    torch.testing.assert_close(batched[1:2, :-2], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 2, 16])
def test_lengths(tokens):
    model = small_model().eval()
    features, extra = model(some_tokens(2, tokens), features_only=True, return_all_hiddens=True)
    assert features.shape == (2, tokens, 12)
    assert [state.shape for state in extra["inner_states"]] == [(tokens, 2, 12)] * 4
    assert torch.equal(extra["inner_states"][-1].transpose(0, 1), features)  # post-norm


def test_last_state_of_pre_norm_is_not_normalized():
    model = small_model("roberta_prenorm").eval()
    features, extra = model(some_tokens(), features_only=True, return_all_hiddens=True)
    last = extra["inner_states"][-1].transpose(0, 1)
    assert torch.allclose(model.encoder.sentence_encoder.layer_norm(last), features)


def test_given_padding_replaces_the_derived_one():
    model = small_model().eval()
    tokens = some_tokens()
    derived = model(tokens, features_only=True)[0]
    same = model(tokens, features_only=True, padding_mask=tokens.eq(PAD))[0]
    none = model(tokens, features_only=True, padding_mask=torch.zeros_like(tokens, dtype=torch.bool))[0]
    assert torch.equal(derived, same)
    assert not torch.allclose(derived[1], none[1])
    assert torch.allclose(derived[0], none[0], atol=1e-6)


def test_position_ids_override():
    model = small_model().eval()
    tokens = some_tokens(2, 6)
    ids = torch.arange(2, 8).expand(2, -1)
    unpadded = tokens.clone()
    unpadded[unpadded.eq(PAD)] = 5
    assert torch.equal(model(unpadded)[0], model(unpadded, position_ids=ids)[0])
    assert not torch.allclose(model(unpadded)[0], model(unpadded, position_ids=ids + 3)[0])
    with pytest.raises(DataError, match="at most 16 tokens"):
        model(unpadded, position_ids=ids + 20)


def test_too_long_an_input():
    with pytest.raises(DataError, match="17 tokens.*at most 16"):
        small_model()(torch.full((1, 17), 5))
    padded = torch.full((1, 20), PAD)
    padded[0, :16] = 5
    assert small_model()(padded)[0].shape == (1, 20, 31)  # only non-padding tokens need a position
    for values in ({"encoder_learned_pos": False}, {"no_token_positional_embeddings": True}):
        assert small_model(**values)(torch.full((1, 40), 5))[0].shape == (1, 40, 31)


def test_layerdrop_leaves_out_layers_in_training_only():
    model = small_model(**without_dropout(encoder_layerdrop=1.0))
    tokens = some_tokens()
    assert len(model(tokens, return_all_hiddens=True)[1]["inner_states"]) == 1
    assert len(model.eval()(tokens, return_all_hiddens=True)[1]["inner_states"]) == 4
    model = small_model(**without_dropout(encoder_layerdrop=0.5))
    torch.manual_seed(5)
    kept = int((torch.empty(3).uniform_() > 0.5).sum())
    torch.manual_seed(5)
    assert len(model(tokens, return_all_hiddens=True)[1]["inner_states"]) == 1 + kept


@pytest.mark.parametrize("option", ["checkpoint_activations", "offload_activations"])
def test_recomputing_activations_gives_the_same_gradients(option):
    plain = small_model(dropout=0.2, attention_dropout=0.2)
    recomputing = small_model(dropout=0.2, attention_dropout=0.2, **{option: True})
    recomputing.load_state_dict(plain.state_dict())
    tokens = some_tokens()
    for model in (plain, recomputing):
        torch.manual_seed(11)
        model(tokens)[0].square().mean().backward()
    for (name, a), b in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_evaluation_is_deterministic_and_training_is_not():
    model = small_model(dropout=0.3)
    tokens = some_tokens()
    assert not torch.equal(model(tokens)[0], model(tokens)[0])
    model.eval()
    assert torch.equal(model(tokens)[0], model(tokens)[0])


def test_copies_are_independent():
    model = small_model().eval()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    tokens = some_tokens()
    assert not bool(copied(tokens)[0].any())
    assert bool(model(tokens)[0].any())


def test_low_precision_stays_close():
    model = small_model().eval()
    tokens = some_tokens()
    exact = model(tokens)[0]
    rounded = copy.deepcopy(model).bfloat16()(tokens)[0]
    assert rounded.dtype == torch.bfloat16
    assert float((rounded.float() - exact).abs().max()) < 0.05 * float(exact.abs().max()) + 0.02


def test_bfloat16_trains():
    model = small_model().bfloat16()
    tokens = some_tokens()
    model(tokens, masked_tokens=tokens.eq(tokens[0, 3]))[0].float().square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_meta_device():
    with torch.device("meta"):
        model = small_model()
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_classification_heads():
    model = small_model()
    model.register_classification_head("a", num_classes=2)
    model.register_classification_head("b", num_classes=5, inner_dim=7)
    logits, _ = model(some_tokens(), classification_head_name="b")
    assert logits.shape == (3, 5)
    with pytest.raises(ConfigError, match=r"no classification head 'c'.*a, b"):
        model(some_tokens(), classification_head_name="c")
    with pytest.raises(ConfigError, match="num_classes"):
        model.register_classification_head("d")
    model.register_classification_head("a", num_classes=3)
    assert model.classification_heads["a"].out_proj.out_features == 3


def test_new_heads_are_where_the_model_is():
    model = small_model().double()
    model.register_classification_head("a", num_classes=2)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_spectral_norm_heads():
    model = small_model(spectral_norm_classification_head=True)
    model.register_classification_head("a", num_classes=2)
    assert "classification_heads.a.out_proj.weight_orig" in model.state_dict()
    model(some_tokens(), classification_head_name="a")[0].sum().backward()


def test_normalized_probabilities_are_float32():
    model = small_model().bfloat16().eval()
    output = model(some_tokens())
    for log_probs in (True, False):
        probabilities = model.get_normalized_probs(output, log_probs)
        assert probabilities.dtype == torch.float32
        total = (probabilities.exp() if log_probs else probabilities).sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"encoder_attention_heads": 5}, ConfigError, "multiple"),
        ({"encoder_attention_heads": 0}, ConfigError, "at least 1"),
        ({"dropout": 1.0}, ConfigError, "dropout must be at least 0 and below 1, but is 1.0"),
        ({"activation_fn": "gelo"}, ConfigError, "did you mean 'gelu'"),
        ({"attention_backend": "sdqa"}, ConfigError, "did you mean 'sdpa'"),
        ({"max_positions": 0}, ConfigError, "max_positions"),
        ({"encoder_layers_to_keep": "0,x"}, ConfigError, "layer numbers"),
        ({"quant_noise_pq": 0.1}, OutOfScopeError, "quantization noise"),
        ({"encoder_alibi": True}, ConfigError, "--no-token-positional-embeddings"),
        ({"lm_head": "clap", "untie_weights_roberta": True}, ConfigError, "lm_head=clap .* leave out"),
        ({"layer_norm_eps": 0.0}, ConfigError, "layer_norm_eps must be above 0 and below 1, but is 0.0"),
        ({"layer_norm_eps": float("nan")}, ConfigError, "layer_norm_eps must be above 0 and below 1, but is nan"),
        ({"type_vocab_size": -1}, ConfigError, "type_vocab_size must be at least 0, but is -1"),
        ({"contrastive_pretraining": True, "untie_weights_roberta": True}, ConfigError, "untie_weights_roberta"),
        ({"mask_prob": -0.1}, ConfigError, "at least 0 and at most 1"),
        ({"adaptive_input": True}, OutOfScopeError, "adaptive input"),
    ],
)
def test_bad_settings(values, error, words):
    with pytest.raises(error, match=words):
        small_model(**values)


def test_limits():
    model = small_model()
    assert model.max_positions() == 16 and model.encoder.max_positions() == 16
    assert model.supported_targets == {"self"}
    assert model.get_targets({"target": 5}, None) == 5
    model.set_num_updates(3)
    assert len(Task().source_dictionary) == 31
