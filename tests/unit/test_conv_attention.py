"""Attention with convolutions: its strings, its forms against each other and against plain sums, its first weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairseq.errors import ConfigError
from fairseq.models import build_model
from fairseq.modules import attention_backends, score_tables
from fairseq.modules.attention_backends import works_like_eager
from fairseq.modules.attention_bias import ALiBi
from fairseq.modules.conv_attention import ConvAttention, ConvBertAttention, conv_attention
from fairseq.modules.conv_grammar import (
    Kernel,
    Projection,
    parse_kernel,
    parse_projection,
    read_options,
    spell_kernel,
    spell_projection,
)
from fairseq.modules.conv_projections import SequenceConv
from fairseq.modules.initialization import init_bert_params
from fairseq.modules.slots import EncoderContext, EncoderShape
from fairseq.optim.parameter_groups import parameter_groups
from tests.unit.roberta import small_model, some_tokens

KERNELS = (
    "qk",
    "qk_convfixed 2",
    "qk_convq 2",
    "qk_convk 2",
    "qk_convfixed_convq_convk 2",
    "convfixed 2",
    "convq 1",
    "convk 3",
    "convq_convk 2",
    "convfixed_convq_convk 2",
    "convolution 2",
    "qk_convfixed_convolution_scaled 2",
    "convbert",
)
PROJECTIONS = (
    "convolution 1 1",
    "convolution_mixed 2 2",
    "convolution_depth 1",
    "convolution_depth_no_act 1",
    "convolution_depth_mixed 2",
)
MIXERS: dict[str, dict[str, Any]] = {
    **{kernel: {"kernel": kernel} for kernel in KERNELS},
    "convbert at the query": {"kernel": "convbert", "convbert": "query", "reach": 2},
    **{f"values {text}": {"kernel": "qk", "value_projection": text} for text in PROJECTIONS},
    **{f"queries and keys {text}": {"kernel": "qk", "query_key_projection": text} for text in (*PROJECTIONS, "none")},
    "tables without projections": {"kernel": "convq_convk 2", "query_key_projection": "none"},
    "width of heads": {"kernel": "qk_convfixed_convq_convk_convolution 2", "head_dim": 3},
}
every = pytest.mark.parametrize("options", MIXERS.values(), ids=MIXERS)


def shape_of(dim: int = 8, heads: int = 4, **values: Any) -> EncoderShape:
    return EncoderShape(dim=dim, heads=heads, ffn_dim=8, layers=1, max_positions=40, padding_idx=1, **values)


def mixer_of(options: dict[str, Any], dtype: torch.dtype = torch.float64, **values: Any) -> nn.Module:
    """A mixer with numbers of the size of one everywhere, in evaluation mode."""
    torch.manual_seed(1)
    mixer = conv_attention(shape_of(**values), **options).to(dtype).eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(0.0, 0.5)
    return mixer


def batch(lengths: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """x (B, T, C) with anything at padding, and padding (B, T)."""
    x = torch.randn(len(lengths), max(lengths), 8, generator=torch.Generator().manual_seed(2), dtype=dtype)
    return x, torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]


# ------------------------------------------------------------------------------------------------------ spelling


def test_what_strings_mean() -> None:
    assert parse_kernel("qk_convfixed_convq_convk 5") == Kernel(fixed=True, query=True, key=True, reach=5)
    assert parse_kernel("convq_convk 5") == Kernel(content=False, query=True, key=True, reach=5)
    assert (
        parse_kernel("convolution 5") == parse_kernel("dot_product_convolution 5") == Kernel(depthwise="plain", reach=5)
    )
    assert parse_kernel("convolution_scaled_convk 5") == Kernel(content=False, key=True, depthwise="scaled", reach=5)
    assert parse_kernel("dot_product") == parse_kernel("qk") == Kernel()
    assert parse_kernel("convbert") == Kernel(convbert="key", reach=4)
    assert parse_projection("convolution_depth_mixed_no_act 5 4") == Projection(
        kind="depthwise", mixed=True, activation=False, reach=5
    )
    assert parse_projection("convolution_mixed 3 2") == Projection(kind="convolution", mixed=True, reach=3, groups=2)
    assert parse_projection("feedforward") == parse_projection("linear") == Projection()
    for kernel in KERNELS:
        assert spell_kernel(parse_kernel(kernel)) is not None
        assert parse_kernel(str(spell_kernel(parse_kernel(kernel)))) == parse_kernel(kernel)
    for text in (*PROJECTIONS, "linear", "none"):
        assert parse_projection(spell_projection(parse_projection(text))) == parse_projection(text)
    assert spell_kernel(Kernel(convbert="query", reach=4)) is None


@pytest.mark.parametrize(
    "text",
    ["foo", "", "QK_convfixed 5", "convqk 5", "qk_convfixed", "qk_convfixed 0", "qk_convfixed 5 7", "qk convfixed 5", "qk 5",
     "convbert 4", "qk_convbert 4", "qk_qk", "qk_scaled 3", "convolution_convolution_scaled 3", "qk_convq x", "qk__convq 2"],
)  # fmt: skip
def test_what_is_no_kernel(text: str) -> None:
    with pytest.raises(ConfigError, match="is spelt qk"):
        parse_kernel(text)


@pytest.mark.parametrize(
    "text",
    ["mixed_convolution 3 1", "convolution 3", "convolution_mixed", "convolution_depth", "convolution 0 1", "convolution 3 1 2",
     "convolution_no_act 3 1", "convolution_deep 3 1", "linear 3", "", "convbert", "convolution_depth_depth 3"],
)  # fmt: skip
def test_what_is_no_projection(text: str) -> None:
    with pytest.raises(ConfigError, match="is spelt linear"):
        parse_projection(text)


def test_options_change_one_thing_of_a_string() -> None:
    parts = read_options(
        kernel="qk_convq 8", reach=3, key=True, depthwise="plain", value_projection="convolution", value_reach=2
    )
    assert parts.kernel == Kernel(query=True, key=True, depthwise="plain", reach=3)
    assert parts.value == Projection(kind="convolution", reach=2)
    for options, said in (
        ({"kernel": "qk", "content": False}, "nothing to attend by"),
        ({"kernel": "qk", "fixed": True}, "reach must be at least 1"),
        ({"kernel": "convbert", "fixed": True}, "no other term"),
        ({"value_projection": "convolution"}, "value_reach must be at least 1"),
        ({"value_projection": "none"}, "cannot be none"),
        ({"value_reach": 3}, "no convolution"),
        ({"head_dim": 0}, "head_dim"),
        ({"kernel": "convbert", "value_projection": "convolution_depth 3"}, "projections of its own"),
    ):
        with pytest.raises(ConfigError, match=said):
            read_options(**options)  # type: ignore[arg-type]


def test_sizes_that_do_not_fit() -> None:
    for options, values, said in (
        ({}, {"heads": 3}, "multiple"),
        ({"kernel": "convbert"}, {"dim": 9, "heads": 3}, "even number"),
        ({"value_projection": "convolution 2 3"}, {}, "3 groups"),
        ({"value_projection": "convolution_depth 2", "head_dim": 3}, {}, "8 groups"),
        ({"value_projection": "convolution_mixed 2 1", "head_dim": 3}, {"dim": 9, "heads": 3}, "even number"),
        ({"query_key_projection": "none", "head_dim": 3}, {}, "without projections"),
        ({"kernel": "convbert"}, {"attention_bias": object()}, "room for an attention bias"),
    ):
        bias = values.pop("attention_bias", None)  # type: ignore[attr-defined]
        with pytest.raises(ConfigError, match=said):
            conv_attention(shape_of(**values), bias, **options)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- computation


def by_sums(mixer: ConvAttention, x: Tensor) -> Tensor:
    """The formula of the module, number by number, for one sequence x (T, C) and linear projections."""
    tokens, heads, width = len(x), mixer.num_heads, mixer.head_dim
    q, k, v = (
        None if p is None else p(x).view(tokens, heads, width) for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    )
    reach, scale = mixer.kernel.reach or 0, width**-0.5
    scores = torch.zeros(heads, tokens, tokens, dtype=x.dtype)
    for h in range(heads):
        for i in range(tokens):
            for j in range(tokens):
                ahead = min(max(j - i, -reach), reach) + reach
                behind = min(max(i - j, -reach), reach) + reach
                if mixer.kernel.content:
                    scores[h, i, j] += q[i, h] @ k[j, h] * scale
                if mixer.fixed_table is not None:
                    scores[h, i, j] += mixer.fixed_table[h, ahead]
                if mixer.query_table is not None:
                    scores[h, i, j] += q[i, h] @ mixer.query_table[:, ahead] * scale
                if mixer.key_table is not None:
                    scores[h, i, j] += k[j, h] @ mixer.key_table[:, behind] * scale
    mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(tokens, -1)
    if mixer.depthwise is not None:
        flat = v.reshape(tokens, -1)
        near = mixer.depthwise.bias.expand(tokens, -1).clone()
        for t in range(tokens):
            for u in range(2 * reach + 1):
                if 0 <= t + u - reach < tokens:
                    near[t] += mixer.depthwise.weight[:, 0, u] * flat[t + u - reach]
        near = near.view(tokens, heads, width)
        mixed = mixed + (near * (1 if mixer.depthwise_scale is None else mixer.depthwise_scale[:, None])).reshape(
            tokens, -1
        )
    return mixer.out_proj(mixed)


@pytest.mark.parametrize("kernel", KERNELS[:-1])
@pytest.mark.parametrize("tokens", [1, 2, 6])
def test_the_formula(kernel: str, tokens: int) -> None:
    mixer = mixer_of({"kernel": kernel})
    x = batch((tokens,))[0]
    torch.testing.assert_close(mixer(x, EncoderContext())[0], by_sums(mixer, x[0]), rtol=0, atol=1e-12)  # type: ignore[arg-type]


@every
def test_padded_packed_and_every_backend(options: dict[str, Any]) -> None:
    lengths = (7, 1, 4, 2)
    x, padding = batch(lengths)
    rows = x[~padding][None]
    found = []
    for backend in ("eager", "fused", "auto", "sdpa", "triton"):
        mixer = mixer_of(options, attention_backend=backend)
        padded = mixer(x, EncoderContext(padding))
        found += [padded[~padding], mixer(rows, EncoderContext(lengths=lengths))[0]]
        alone = torch.cat([mixer(row[None, :n], EncoderContext())[0] for row, n in zip(x, lengths, strict=True)])
        found.append(alone)
    starts, counts = torch.tensor([0, 7, 8, 12, 14], dtype=torch.int32), torch.tensor(lengths, dtype=torch.int32)
    found.append(mixer(rows, EncoderContext(lengths=lengths, starts=starts))[0])  # by the last backend
    found.append(mixer(x, EncoderContext(padding, token_counts=counts))[~padding])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-10)


def test_the_check_of_kernels_with_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the reference implementation is checked, which is right, and one that forgets the ends, which is not."""
    for dtype in (torch.float32, torch.bfloat16):
        assert works_like_eager(score_tables.TRITON, "cpu", dtype)
    given = score_tables._reference

    def without_the_end(*inputs: Any) -> tuple[Tensor, Tensor]:
        return given(*inputs[:-1], torch.nn.functional.pad(inputs[-1][..., :-1], (0, 1)))

    monkeypatch.setattr(score_tables, "_reference", without_the_end)
    attention_backends._tried.cache_clear()
    with pytest.warns(UserWarning, match="'triton, with tables' is not used: it differs from eager by"):
        assert not works_like_eager(score_tables.TRITON, "cpu", torch.float32)
    attention_backends._tried.cache_clear()


@pytest.mark.parametrize("options", [{"kernel": "qk_convq_convk 2"}, {"kernel": "convbert"}])
def test_what_auto_chooses_on_a_device(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class OnCuda:
        device, dtype = torch.device("cuda", 0), torch.bfloat16

    def chosen(base: Any = None, known: bool = True) -> str:
        return score_tables._auto_backend(OnCuda(), base, known)  # type: ignore[arg-type]

    works = {True}
    monkeypatch.setattr(score_tables.flash, "runs", lambda q: True)
    monkeypatch.setattr(score_tables, "works_like_eager", lambda *unused: bool(works))
    mixer = mixer_of(options, attention_backend="triton")
    assert chosen() == chosen(ALiBi(2)) == "triton" and chosen(known=False) == chosen(object()) == "sdpa"
    assert mixer.finds_starts(torch.empty(1, 5, 8))  # type: ignore[operator]
    works.clear()
    assert chosen() == "sdpa" and not score_tables.tables_find_starts(OnCuda(), None, "auto")  # type: ignore[arg-type]


@every
def test_gradients(options: dict[str, Any]) -> None:
    mixer = mixer_of(options)
    x, padding = batch((3, 2))
    names, parameters = zip(*mixer.named_parameters(), strict=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        mixed = torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), (x, EncoderContext(padding)))
        return mixed.masked_fill(padding[..., None], 0.0)

    leaves = [x.requires_grad_(), *(p.detach().requires_grad_() for p in parameters)]
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


def test_alibi_on_top() -> None:
    """Near by the tables, far away by the line: in plain torch and in Triton; other kernels know one of the two only."""
    model = small_model("roberta_conv", encoder_alibi=True, dropout=0.0, attention_dropout=0.0).eval()
    other = small_model("roberta_conv", attention_bias="none").eval()
    other.load_state_dict(model.state_dict())
    ids = some_tokens()
    expected = model(ids)[0]
    assert not torch.allclose(expected, other(ids)[0])
    attention = model.encoder.sentence_encoder.layers[0].self_attn
    attention.backend = "triton"
    torch.testing.assert_close(model(ids)[0], expected, rtol=0, atol=1e-5)
    attention.backend = "fused"
    with pytest.raises(ConfigError, match="together with an attention bias"):
        model(ids)


@pytest.mark.parametrize(
    "values",
    [{"channel_mixer": "fff", "fff_depth": 2}, {"contrastive_pretraining": True}, {"encoder_alibi": True}],
    ids=lambda values: next(iter(values)),
)
def test_with_other_variants(values: dict[str, Any]) -> None:
    model = small_model("roberta_conv", **values)
    model(some_tokens())[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# ------------------------------------------------------------------------------------------- the rest of the model


def test_first_weights() -> None:
    mixer = conv_attention(
        shape_of(512, 8), kernel="qk_convfixed_convq_convk_convolution 8", value_projection="convolution_depth_mixed 3"
    )
    mixer.apply(init_bert_params).requires_grad_(False)
    assert bool((mixer.fixed_table == 0).all())
    bound = 17**-0.5
    for table in (mixer.query_table, mixer.key_table):
        assert 0.9 * bound < float(table.detach().abs().max()) <= bound
    convolutions = [module for module in mixer.modules() if isinstance(module, SequenceConv)]
    assert len(convolutions) == 2
    for conv in convolutions:
        bound = conv.kernel_size[0] ** -0.5
        assert 0.9 * bound < float(conv.weight.abs().max()) <= bound and float(conv.bias.abs().max()) <= bound
    for name in ("q_proj", "v_proj.pointwise", "v_proj.linear", "out_proj"):
        linear = mixer.get_submodule(name)
        assert abs(float(linear.weight.std()) - 0.02) < 1e-3 and bool((linear.bias == 0).all())


def test_factorised_embeddings() -> None:
    model = small_model("roberta", embedding_size=5, type_vocab_size=2).eval()
    encoder = model.encoder.sentence_encoder
    for part in (encoder.embed_tokens, encoder.embed_positions, encoder.embed_token_types):
        assert part.weight.size(1) == 5
    assert encoder.embed_projection.weight.shape == (12, 5) and model.encoder.lm_head.dense.weight.shape == (5, 12)
    assert model.encoder.lm_head.weight is encoder.embed_tokens.weight
    ids = torch.tensor([[0, 7, 8, 2]])
    states = model(ids, return_all_hiddens=True)[1]["inner_states"]
    embedded = (
        encoder.embed_tokens(ids) + encoder.embed_positions(torch.arange(2, 6)) + encoder.embed_token_types.weight[0]
    )
    torch.testing.assert_close(states[0][:, 0], encoder.embed_projection(encoder.layernorm_embedding(embedded))[0])
    for values in ({"contrastive_pretraining": True}, {"lm_head": "product"}):
        with pytest.raises(ConfigError, match="need one width"):
            small_model("roberta", embedding_size=5, **values)
    with pytest.raises(ConfigError, match="embedding_size must be at least 1"):
        small_model("roberta", embedding_size=0)


class Vocabulary:
    """30004 symbols, as the original's."""

    pad_index = 1

    def __len__(self) -> int:
        return 30004

    def pad(self) -> int:
        return 1


def test_the_base_model_has_the_parameters_of_the_original() -> None:
    """Counted in the original: 108,751,300, reach 8, without absolute positions."""
    from argparse import Namespace

    class Task:
        source_dictionary = Vocabulary()

        def max_positions(self) -> int:
            return 128

    with torch.device("meta"):
        for values, count in (
            ({}, 108_751_300),
            ({"conv_attention_reach": 16}, 108_778_180),
            ({"conv_attention_kernel": "qk_convfixed 8"}, 108_725_188),
            ({"conv_attention_kernel": "qk", "positions": "learned", "learned_offset": 0}, 108_821_044),
        ):
            model = build_model(Namespace(arch="bert_conv_base", **values), Task())
            assert sum(parameter.numel() for parameter in model.parameters()) == count
    groups = parameter_groups(small_model("bert_conv_base", encoder_attention_heads=2).named_parameters())
    assert {parameter.dim() for parameter in groups[1]["params"]} == {1} and groups[1]["weight_decay"] == 0.0
    assert all(parameter.dim() > 1 for parameter in groups[0]["params"])


def test_presets() -> None:
    kinds = {
        "roberta_conv": (ConvAttention, None),
        "roberta_conv_absolute": (ConvAttention, 1),
        "roberta_conv_depthwise": (ConvAttention, None),
        "roberta_convbert": (ConvBertAttention, 1),
    }
    for name, (kind, positions) in kinds.items():
        encoder = small_model(name, encoder_attention_heads=2).encoder.sentence_encoder
        assert type(encoder.layers[0].self_attn) is kind
        assert (encoder.embed_positions is None) == (positions is None)
    mixer = small_model("roberta_conv").encoder.sentence_encoder.layers[0].self_attn
    assert mixer.kernel == Kernel(fixed=True, query=True, key=True, reach=8)
