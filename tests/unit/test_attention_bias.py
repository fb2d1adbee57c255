"""ALiBi: slopes, both forms of the distance, any length."""

from __future__ import annotations

import pytest
import torch

from fairseq.modules.attention_bias import ALiBi, alibi_slopes
from fairseq.modules.slots import EncoderShape
from fairseq.registry import ATTENTION_BIASES


@pytest.mark.parametrize(
    "heads, slopes",
    [
        (1, [2**-8]),
        (4, [0.25, 0.0625, 0.015625, 0.00390625]),
        (8, [2**-k for k in range(1, 9)]),
        (3, [2**-4, 2**-8, 2**-2]),
        (12, [2**-k for k in range(1, 9)] + [0.70710678, 0.35355339, 0.1767767, 0.08838835]),
    ],
)
def test_slopes(heads, slopes):
    assert len(alibi_slopes(heads)) == heads
    torch.testing.assert_close(torch.tensor(alibi_slopes(heads)), torch.tensor(slopes), rtol=0, atol=1e-7)


def test_sixteen_heads():
    slopes = alibi_slopes(16)
    assert [round(slope, 8) for slope in (slopes[0], slopes[1], slopes[2], slopes[15])] == [
        0.70710678,
        0.5,
        0.35355339,
        0.00390625,
    ]


@pytest.mark.parametrize("heads", range(1, 13))
def test_dense(heads):
    shape = EncoderShape(dim=heads, heads=heads, ffn_dim=1, layers=1, max_positions=1, padding_idx=1)
    for asymmetrical in (False, True):
        bias = ATTENTION_BIASES.get("alibi_asymmetrical" if asymmetrical else "alibi")(shape)
        for tokens in (1, 7):
            dense = bias.dense(tokens)
            assert dense.shape == (heads, tokens, tokens)
            for h, slope in enumerate(bias.slopes):
                for i in range(tokens):
                    for j in range(tokens):
                        ahead = 0.5 if asymmetrical and j > i else 0
                        assert dense[h, i, j] == -torch.tensor(slope) * (abs(i - j) - ahead)


def test_asymmetrical_by_hand():
    expected = torch.tensor(
        [
            [0, -0.5, -1.5, -2.5, -3.5],
            [-1, 0, -0.5, -1.5, -2.5],
            [-2, -1, 0, -0.5, -1.5],
            [-3, -2, -1, 0, -0.5],
            [-4, -3, -2, -1, 0],
        ]
    )
    bias = ALiBi(2, asymmetrical=True)
    torch.testing.assert_close(bias.dense(5), torch.stack([expected * 2**-4, expected * 2**-8]))
    assert bias.dense(5, dtype=torch.bfloat16).dtype == torch.bfloat16
