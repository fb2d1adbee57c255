"""Parts of the original under their old names: the same numbers as the parts of today, and what they refuse."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fairseq.errors import ConfigError, DataError, OutOfScopeError
from fairseq.models.roberta import TransformerSentenceEncoder
from fairseq.modules import (
    EMAModule,
    EMAModuleConfig,
    FairseqDropout,
    Fp32GroupNorm,
    Fp32LayerNorm,
    GradMultiply,
    LayerDropModuleList,
    MultiheadAttention,
    SamePad,
    TransformerSentenceEncoderLayer,
    TransposeLast,
)
from fairseq.modules.attention import MultiheadSelfAttention
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from fairseq.modules.quant_noise import quant_noise
from tests.unit.roberta import PAD, SIZES, small_model, some_tokens, without_dropout

DIM, HEADS = 12, 3


def attention(**settings) -> MultiheadAttention:
    torch.manual_seed(1)
    return MultiheadAttention(DIM, HEADS, **settings).eval()


def test_attention_is_torch_s_own():
    layer = attention(self_attention=True)
    theirs = nn.MultiheadAttention(DIM, HEADS).eval()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.q_proj.weight, layer.k_proj.weight, layer.v_proj.weight]))
        theirs.in_proj_bias.copy_(torch.cat([layer.q_proj.bias, layer.k_proj.bias, layer.v_proj.bias]))
        theirs.out_proj.weight.copy_(layer.out_proj.weight)
    x = torch.randn(5, 2, DIM)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    causal = torch.full((5, 5), -math.inf).triu(1)
    for mask in (None, causal):
        wanted, weights = theirs(x, x, x, key_padding_mask=padding, attn_mask=mask, average_attn_weights=False)
        found, by_head = layer(x, x, x, key_padding_mask=padding, attn_mask=mask, need_head_weights=True)
        torch.testing.assert_close(found, wanted)
        torch.testing.assert_close(by_head, weights.transpose(0, 1))
        assert by_head.shape == (HEADS, 2, 5, 5)
    found, mean = layer(x, x, x, key_padding_mask=padding)
    torch.testing.assert_close(mean, layer(x, x, x, padding, need_head_weights=True)[1].mean(0))
    assert layer(x, x, x, need_weights=False)[1] is None
    scores, values = layer(x, x, x, before_softmax=True)
    assert scores.shape == (2 * HEADS, 5, 5) and values.shape == (2 * HEADS, 5, DIM // HEADS)


def test_attention_can_be_scripted():
    layer = attention(self_attention=True)
    x, padding = torch.randn(5, 2, DIM), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    found, weights = torch.jit.script(layer)(x, x, x, padding)
    torch.testing.assert_close((found, weights), layer(x, x, x, padding))


def test_attention_begins_as_that_of_today():
    torch.manual_seed(1)
    today = MultiheadSelfAttention(DIM, HEADS).state_dict()
    assert all(torch.equal(value, today[name]) for name, value in attention().state_dict().items())


def test_attention_over_other_keys():
    layer = attention(kdim=7, vdim=9, encoder_decoder_attention=True)
    out, weights = layer(torch.randn(4, 2, DIM), torch.randn(6, 2, 7), torch.randn(6, 2, 9))
    assert out.shape == (4, 2, DIM) and weights.shape == (2, 4, 6)
    assert [name for name, _ in layer.named_parameters()][::2] == [
        f"{name}_proj.weight" for name in ("k", "v", "q", "out")
    ]
    with pytest.raises(ConfigError, match="same size"):
        attention(kdim=7, self_attention=True)


@pytest.mark.parametrize("settings", [{"add_bias_kv": True}, {"add_zero_attn": True}, {"q_noise": 0.1}])
def test_what_attention_refuses(settings):
    with pytest.raises(OutOfScopeError, match="out of scope"):
        attention(**settings)


def old_encoder(**settings) -> TransformerSentenceEncoder:
    return TransformerSentenceEncoder(
        padding_idx=PAD,
        vocab_size=31,
        num_encoder_layers=SIZES["encoder_layers"],
        embedding_dim=SIZES["encoder_embed_dim"],
        ffn_embedding_dim=SIZES["encoder_ffn_embed_dim"],
        num_attention_heads=SIZES["encoder_attention_heads"],
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        max_seq_len=SIZES["max_positions"],
        num_segments=0,
        encoder_normalize_before=True,
        apply_bert_init=True,
        activation_fn="gelu",
        **settings,
    )


def test_the_old_encoder_computes_what_that_of_today_does():
    model = small_model(**without_dropout()).eval()
    old, tokens = old_encoder().eval(), some_tokens()
    weights = {
        key.replace("layernorm_embedding", "emb_layer_norm"): value
        for key, value in model.encoder.sentence_encoder.state_dict().items()
        if key != "version"
    }
    assert weights.keys() == old.state_dict().keys()
    old.load_state_dict(weights)
    states, sentence = old(tokens)
    features, extra = model(tokens, features_only=True, return_all_hiddens=True)
    real = tokens.ne(PAD)
    real[-1] = False  # a row without a token, where nothing is defined
    for mine, theirs in zip(states, extra["inner_states"], strict=True):
        torch.testing.assert_close(mine.transpose(0, 1)[real], theirs.transpose(0, 1)[real])
    torch.testing.assert_close(sentence[:2], features[:2, 0])
    [last], _ = old(tokens, last_state_only=True)
    torch.testing.assert_close(last, states[-1], equal_nan=True)
    embedded, _ = old(tokens, token_embeddings=old.embed_tokens(tokens))
    torch.testing.assert_close(embedded[-1], states[-1], equal_nan=True)
    with pytest.raises(DataError, match=f"positions for {SIZES['max_positions']}"):
        old(torch.full((1, SIZES["max_positions"] + 1), 5))


def test_settings_of_the_old_encoder():
    old = old_encoder(layerdrop=0.5, freeze_embeddings=True, n_trans_layers_to_freeze=1, traceable=True)
    assert isinstance(old.layers, LayerDropModuleList) and isinstance(old.layers[0], TransformerSentenceEncoderLayer)
    assert not old.embed_tokens.weight.requires_grad and not old.layers[0].fc1.weight.requires_grad
    assert old.layers[1].fc1.weight.requires_grad
    assert torch.is_tensor(old.eval()(some_tokens())[0])
    renamed = {key.replace("emb_layer_norm", "layernorm_embedding"): value for key, value in old.state_dict().items()}
    assert renamed.keys() != old.state_dict().keys()
    nn.Sequential(old).load_state_dict({f"0.{key}": value for key, value in renamed.items()})
    with pytest.raises(OutOfScopeError, match="quantization"):
        old_encoder(q_noise=0.1)


def test_a_layer_s_parts_can_be_replaced():
    class Layer(TransformerSentenceEncoderLayer):
        def build_fc1(self, input_dim, output_dim, q_noise, qn_block_size):
            return quant_noise(nn.Linear(input_dim, output_dim, bias=False), q_noise, qn_block_size)

    layer = Layer(DIM, 20, HEADS)
    x, weights = layer(torch.randn(4, 2, DIM), self_attn_padding_mask=torch.zeros(2, 4, dtype=torch.bool))
    assert x.shape == (4, 2, DIM) and weights is None and layer.fc1.bias is None


def test_dropout():
    x = torch.ones(1000)
    layer = FairseqDropout(0.5, module_name="Here")
    torch.manual_seed(1)
    dropped = layer(x)
    torch.manual_seed(1)
    assert torch.equal(dropped, F.dropout(x, 0.5)) and (dropped == 0).any()
    layer.eval()
    assert layer(x) is x
    layer.make_generation_fast_("m", retain_dropout=True, retain_dropout_modules=["Elsewhere"])
    assert layer(x) is x
    layer.make_generation_fast_("m", retain_dropout=True, retain_dropout_modules=["Here"])
    assert (layer(x) == 0).any()


def test_layers_are_left_out_in_training_alone():
    layers = LayerDropModuleList(p=0.5, modules=[nn.Linear(1, 1) for _ in range(8)])
    assert list(layers.eval()) == [layers[number] for number in range(8)]
    torch.manual_seed(3)
    draws = torch.empty(8).uniform_()
    torch.manual_seed(3)
    assert list(layers.train()) == [layers[number] for number in range(8) if draws[number] > 0.5]


def test_small_modules():
    linear = nn.Linear(2, 2)
    assert quant_noise(linear, 0, 8) is linear
    x = torch.ones(3, requires_grad=True)
    GradMultiply.apply(x, 0.25).sum().backward()
    assert x.grad.tolist() == [0.25] * 3
    half = torch.randn(2, 4, dtype=torch.bfloat16)
    assert Fp32LayerNorm(4)(half).dtype == torch.bfloat16
    torch.testing.assert_close(Fp32LayerNorm(4)(half).float(), F.layer_norm(half.float(), (4,)), atol=1e-2, rtol=1e-2)
    assert Fp32GroupNorm(2, 4)(half.unsqueeze(-1)).shape == (2, 4, 1)
    assert (
        SamePad(4)(torch.ones(1, 1, 9)).shape[-1] == 8 and SamePad(3, causal=True)(torch.ones(1, 1, 9)).shape[-1] == 7
    )
    assert TransposeLast()(torch.ones(2, 3, 4)).shape == (2, 4, 3)


@pytest.mark.parametrize("offload", [False, True])
def test_activations_are_computed_again(offload):
    plain = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    again = checkpoint_wrapper(copy.deepcopy(plain), offload_to_cpu=offload)
    x = torch.randn(4, 3)
    plain(x).sum().backward()
    again(x).sum().backward()
    for mine, theirs in zip(again.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_losses():
    from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
    from fairseq.modules import cross_entropy

    logits, target = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, PAD])
    torch.testing.assert_close(cross_entropy(logits, target), F.cross_entropy(logits, target))
    lprobs = torch.log_softmax(logits, -1)
    loss, nll = label_smoothed_nll_loss(lprobs, target.unsqueeze(-1), 0.1, ignore_index=PAD)
    kept = target.ne(PAD)
    torch.testing.assert_close(nll, F.nll_loss(lprobs[kept], target[kept], reduction="sum"))
    # 0.9 for the target and 0.1 / 4 for each of the other four classes.
    weights = torch.full((6, 5), 0.1 / 4).scatter(1, target.unsqueeze(1), 0.9)
    torch.testing.assert_close(loss, -(weights * lprobs)[kept].sum())
    assert label_smoothed_nll_loss(lprobs, target, 0.1, reduce=False)[0].shape == (6,)


def test_ema_of_a_module():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    ema = EMAModule(model, EMAModuleConfig(ema_decay=0.9, ema_fp32=True), skip_keys=["0.bias"])
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
        model[1].running_mean.fill_(7.0)
    ema.step(model)
    after = ema.model.state_dict()
    torch.testing.assert_close(after["0.weight"], before["0.weight"] + 0.1)
    torch.testing.assert_close(after["0.bias"], before["0.bias"] + 1.0)
    assert after["1.running_mean"].tolist() == [7.0, 7.0]
    ema.set_decay(0.5)
    assert ema.get_decay() == 0.5 and ema.reverse(model)[0].weight.equal(after["0.weight"])
    assert ema.fp32_params.keys() >= {"0.weight"} and not any(p.requires_grad for p in ema.model.parameters())
    with pytest.raises(ConfigError, match="ema_fp32"):
        EMAModule(model, {"ema_decay": 0.9}).build_fp32_params()


def test_tied_weights_are_averaged_once():
    model = nn.ModuleDict({"one": nn.Linear(2, 2, bias=False), "two": nn.Linear(2, 2, bias=False)})
    model["two"].weight = model["one"].weight
    ema = EMAModule(model, {"ema_decay": 0.9})
    before = model["one"].weight.detach().clone()
    with torch.no_grad():
        model["one"].weight += 1
    ema.step(model)
    for name in ("one", "two"):
        assert torch.allclose(ema.model[name].weight, before + 0.1)
