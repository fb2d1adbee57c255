"""The helpers at ``fairseq.compat.utils`` behave as old plugins and tests expect."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch

from fairseq.compat import utils
from fairseq.dataclass.base import eval_str_list
from fairseq.errors import ConfigError
from fairseq.training.batches import resolve_max_positions


def test_padding_changes_sides():
    pad = 1
    left = torch.tensor([[2, 3, 4, 5, 6], [1, 7, 8, 9, 10], [1, 1, 1, 11, 12]])
    right = torch.tensor([[2, 3, 4, 5, 6], [7, 8, 9, 10, 1], [11, 12, 1, 1, 1]])
    assert torch.equal(utils.convert_padding_direction(right, pad, right_to_left=True), left)
    assert torch.equal(utils.convert_padding_direction(left, pad, left_to_right=True), right)
    assert torch.equal(utils.convert_padding_direction(left[:1], pad, left_to_right=True), left[:1])
    with pytest.raises(ValueError, match="exactly one"):
        utils.convert_padding_direction(left, pad)


def test_positions_count_from_the_padding_index():
    pad = 1
    left = torch.tensor([[9, 9, 9], [1, 9, 9], [1, 1, 1]])
    assert utils.make_positions(left, pad).tolist() == [[2, 3, 4], [1, 2, 3], [1, 1, 1]]
    assert utils.make_positions(left.flip(1), pad).tolist() == [[2, 3, 4], [2, 3, 1], [1, 1, 1]]


def test_clipping_returns_the_norm_before():
    frozen = torch.nn.Parameter(torch.zeros(5)).requires_grad_(False)
    assert utils.clip_grad_norm_(frozen, 1.0) == 0.0
    params = [torch.nn.Parameter(torch.zeros(5)) for _ in range(3)]
    for parameter in params:
        parameter.grad = torch.full((5,), 2.0)
    norm = utils.clip_grad_norm_(params, 1.0)
    assert torch.is_tensor(norm) and torch.allclose(norm, torch.full((15,), 2.0).norm())
    assert float(utils.clip_grad_norm_(iter(params), 0.0)) == pytest.approx(1.0, abs=1e-5)
    doubled = utils.clip_grad_norm_(params, 0.0, aggregate_norm_fn=lambda value: 2 * value)
    assert float(doubled) == pytest.approx(2.0, abs=1e-5)


def test_limits_are_combined():
    assert resolve_max_positions(None, (2000, 100, 2000), 12000) == (2000, 100, 2000)
    assert resolve_max_positions(None, None) is None
    assert resolve_max_positions(512, 514) == 512


def test_samples_keep_their_structure():
    sample = OrderedDict(a=torch.ones(2), b=[torch.ones(1), (3, torch.zeros(1))], c="text", d=None)
    found = utils.apply_to_sample(lambda tensor: tensor + 1, sample)
    assert isinstance(found, OrderedDict) and list(found) == list("abcd")
    assert found["a"].tolist() == [2, 2] and found["b"][1] == (3, torch.ones(1)) and found["c"] == "text"
    assert utils.apply_to_sample(lambda tensor: tensor, []) == {}
    half = utils.move_to_cpu({"x": torch.ones(1, dtype=torch.bfloat16), "ids": torch.ones(1, dtype=torch.int64)})
    assert half["x"].dtype == torch.float32 and half["ids"].dtype == torch.int64


def test_seeds_come_back():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with utils.set_torch_seed(9):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(9)
    assert torch.equal(torch.rand(3), inside)
    with pytest.raises(TypeError, match="integer"):
        utils.set_torch_seed("9")  # type: ignore[arg-type]


def test_literals_are_read_not_run():
    assert eval_str_list("[1, 2]", int) == [1, 2] and eval_str_list("0.1") == [0.1]
    assert utils.eval_str_dict("{'a': 1}") == {"a": 1} and utils.eval_bool(None, True) is True
    assert utils.eval_bool("False") is False
    with pytest.raises(ConfigError, match="Python literal"):
        utils.eval_bool("__import__('os').getcwd()")


def test_small_helpers():
    assert utils.item(torch.tensor(3.0)) == 3.0 and utils.item(4) == 4
    assert (
        utils.get_perplexity(3) == 8 and utils.get_perplexity(None) == 0 and utils.get_perplexity(1e9) == float("inf")
    )
    assert utils.strip_pad(torch.tensor([5, 1, 1]), 1).tolist() == [5]
    assert utils.softmax(torch.zeros(2, dtype=torch.bfloat16), dim=0).dtype == torch.float32
    assert utils.fill_with_neg_inf(torch.zeros(2)).tolist() == [float("-inf")] * 2
    assert utils.has_parameters(torch.nn.Linear(1, 1)) and not utils.has_parameters(torch.nn.Identity())
    assert utils.safe_getattr(object(), "missing", 7) == 7 and not utils.safe_hasattr(object(), "missing")
    layer = torch.nn.Dropout().train()
    with utils.model_eval(layer):
        assert not layer.training
    assert layer.training
