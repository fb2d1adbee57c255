"""``--compile``: layers compiled once for all lengths give what they gave before, under the same names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from fairseq.models.roberta import RobertaModel
from fairseq.training.compilation import compile_layers
from tests.unit.roberta import PAD, small_model, without_dropout

SHAPES = [(3, 9, 0), (4, 12, 0), (2, 17, 0), (5, 11, 3), (6, 16, 4), (3, 13, 1), (2, 16, 0)]
"""Sequences, tokens, and tokens of padding in the first of them."""
DROPPED = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1}


@pytest.fixture(autouse=True)
def _nothing_compiled_yet() -> None:
    torch.compiler.reset()
    counters.clear()


def train_pass(model: RobertaModel, sequences: int, tokens: int, padded: int) -> Tensor:
    """Logits (M, V) of some masked tokens; the gradient of the sum of their squares is added to the parameters'."""
    ids = torch.randint(4, 30, (sequences, tokens), generator=torch.Generator().manual_seed(tokens))
    ids[0, tokens - padded :] = PAD
    masked = torch.zeros_like(ids, dtype=torch.bool)
    masked[:, 1:3] = True
    logits = model(ids, masked_tokens=masked)[0]
    logits.float().pow(2).sum().backward()
    return logits.detach()


def graphs() -> int:
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize(
    ("backend", "checkpointed", "compiler"), [("auto", True, "aot_eager"), ("sdpa", False, "eager")]
)
def test_four_compilations_serve_all_lengths_and_layers(backend: str, checkpointed: bool, compiler: str) -> None:
    model = small_model(
        "roberta_alibi", attention_backend=backend, max_positions=32, checkpoint_activations=checkpointed, **DROPPED
    )
    compile_layers(model, backend=compiler)
    for shape in SHAPES:
        train_pass(model, *shape)
    assert graphs() == 4, "with padding or without, and those of the last layer, of which not everything is read"


@pytest.mark.parametrize(
    "arch", ["roberta_base", "roberta_prenorm", "roberta_alibi", "roberta_clap", "roberta_zero_clap"]
)
def test_presets_compute_the_same_compiled(arch: str) -> None:
    plain = small_model(arch, max_positions=32, **without_dropout())
    model = small_model(arch, max_positions=32, **without_dropout())
    model.load_state_dict(plain.state_dict())
    compile_layers(model, backend="eager")
    assert list(model.state_dict()) == list(plain.state_dict())
    for shape in SHAPES:
        torch.testing.assert_close(train_pass(model, *shape), train_pass(plain, *shape))
    expected, gradient = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (plain, model))
    assert (gradient - expected).norm() <= 1e-5 * expected.norm()
    assert graphs() == 4
