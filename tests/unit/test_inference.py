"""The loop that runs a model over data: order, modes, gradients, choices, mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairseq.data.wrappers import ListDataset
from fairseq.errors import ConfigError
from fairseq.finetune.sentences import input_dataset
from fairseq.models.inference import head_outputs, in_order, length_batches
from tests.common import tiny_dictionary

LENGTHS = [3, 1, 4, 1, 5]


class Sums(nn.Module):
    """A model whose head gives the sum of the ids that are not padding, times a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.classification_heads = {"sum": None}

    def forward(self, src_tokens: Tensor, classification_head_name: str, **unused: Any) -> tuple[Tensor, None]:
        assert not self.training and not torch.is_grad_enabled()
        return self.weight * src_tokens.where(src_tokens != 1, 0).sum(dim=1, keepdim=True), None


def dataset(*names: str) -> Any:
    rows = ListDataset([torch.full((length,), 7) for length in LENGTHS], np.array(LENGTHS))
    return input_dataset(dict.fromkeys(names, rows), tiny_dictionary(), rows.sizes)


@pytest.mark.parametrize("longest_first", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_outputs_come_back_in_the_order_of_the_data(batch_size: int, longest_first: bool) -> None:
    model = Sums()
    outputs = head_outputs(model, length_batches(dataset("net_input"), batch_size, longest_first), "sum")
    first, _ = next(outputs)
    assert first["id"].tolist()[0] == (4 if longest_first else 1) and len(first["id"]) <= batch_size
    assert torch.is_grad_enabled()  # while the loop waits for its next turn
    found = in_order(head_outputs(model, length_batches(dataset("net_input"), batch_size, longest_first), "sum"))
    assert found.tolist() == [[14.0 * length] for length in LENGTHS] and not found.requires_grad


def test_choices_are_columns_and_the_mode_is_restored() -> None:
    model = Sums()
    found = in_order(head_outputs(model, length_batches(dataset("net_input1", "net_input2"), 2), "sum"))
    assert found.shape == (5, 2) and model.training
    list(head_outputs(model.eval(), [], "sum"))
    assert not model.training


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match="no head 'x'; its heads: sum"):
        head_outputs(Sums(), [], "x")
    with pytest.raises(ConfigError, match="batch_size must be at least 1, but is 0"):
        next(length_batches(dataset("net_input"), 0))
