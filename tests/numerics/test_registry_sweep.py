"""Everything that is registered: each preset, and each pair of variants in different slots, meets the same claims.

A new variant, a plugin's too, is in here without a line of test. What a combination may do otherwise it has to declare:
a mixer whose outputs depend on padding says why in ``depends_on_padding``.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fairseq.checkpoint import schema
from fairseq.dataclass.build import build_config
from fairseq.dataclass.slots import chosen_variants, slots_of
from fairseq.dataclass.state import config_to_state
from fairseq.dataclass.user_module import import_user_module
from fairseq.errors import ConfigError
from fairseq.models import build_model
from fairseq.models.roberta import RobertaModel
from fairseq.models.roberta.config import RobertaConfig
from tests.common import ROOT, assert_as_accurate_as
from tests.unit.roberta import KINDS, PAD, Task

PLUGIN = ROOT / "tests" / "data" / "plugin_mixer"
import_user_module(argparse.Namespace(user_dir=str(PLUGIN)))

SIZES: dict[str, Any] = {
    "encoder_layers": 2, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 24, "encoder_attention_heads": 2,
    "max_positions": 40, "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0,
}  # fmt: skip
SLOTS = slots_of(RobertaConfig)


def build(settings: dict[str, Any], seed: int = 1, **more: Any) -> RobertaModel:
    torch.manual_seed(seed)
    return build_model(argparse.Namespace(**{**SIZES, **settings, **more}), Task())  # type: ignore[return-value]


def allowed(settings: dict[str, Any]) -> bool:
    """Whether the combination can be built; one that cannot is refused with a sentence."""
    try:
        with torch.device("meta"):
            build(settings)
    except ConfigError as error:
        assert len(str(error)) > 30
        return False
    return True


def combinations() -> dict[str, dict[str, Any]]:
    """Name -> settings: every kind of preset, and for every pair of variants of two slots the allowed combination that has both
    and otherwise is nearest to the defaults.
    """
    found: dict[str, dict[str, Any]] = {name: {"arch": name} for name in KINDS}
    usual = chosen_variants("roberta", {})
    every = [dict(zip(SLOTS, names, strict=True)) for names in itertools.product(*(r.names() for r in SLOTS.values()))]
    every.sort(key=lambda chosen: sum(chosen[slot] != usual[slot] for slot in SLOTS))
    good = [chosen for chosen in every if allowed({"arch": "roberta", **chosen})]
    for first, second in itertools.combinations(SLOTS, 2):
        for a, b in itertools.product(SLOTS[first].names(), SLOTS[second].names()):
            chosen = next((one for one in good if one[first] == a and one[second] == b), None)
            if chosen is not None:
                found["-".join(chosen.values())] = {"arch": "roberta", **chosen}
    return found


ALLOWED = combinations()
sweep = pytest.mark.parametrize("settings", ALLOWED.values(), ids=ALLOWED)


def some_tokens(lengths: tuple[int, ...], width: int | None = None) -> Tensor:
    """Ids (B, T), padded on the right."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 30, (len(lengths), width or max(lengths)), generator=generator)
    for row, length in zip(ids, lengths, strict=True):
        row[:1], row[length:] = 0, PAD
    return ids


def masked(ids: Tensor) -> Tensor:
    """Every third token that is not padding."""
    return (torch.arange(ids.size(1)) % 3 == 1).expand(ids.shape) & ids.ne(PAD)


def gradients(model: RobertaModel, ids: Tensor, seed: int = 5) -> dict[str, Tensor]:
    """Gradient of the summed loss over the masked tokens, by parameter."""
    model.zero_grad()
    torch.manual_seed(seed)
    where = masked(ids)
    logits = model(ids, masked_tokens=where)[0]
    torch.nn.functional.cross_entropy(logits.float(), ids[where], reduction="sum").backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}  # type: ignore[misc]


def digest(model: torch.nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()[:12]


def test_every_variant_is_allowed_somewhere() -> None:
    for slot, registry in SLOTS.items():
        used = {chosen_variants(s["arch"], s)[slot] for s in ALLOWED.values()}
        assert used == set(registry.names()), f"{slot}: no allowed combination with {set(registry.names()) - used}"
    assert set(KINDS) <= set(ALLOWED)


@sweep
def test_builds_on_meta(settings: dict[str, Any]) -> None:
    with torch.device("meta"):
        empty = build(settings)
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    real = build(settings)
    assert [(n, p.shape) for n, p in empty.named_parameters()] == [(n, p.shape) for n, p in real.named_parameters()]


@sweep
def test_every_parameter_receives_a_gradient(settings: dict[str, Any]) -> None:
    found = gradients(build(settings), some_tokens((9, 4, 6)))
    assert [name for name, grad in found.items() if grad is None or not torch.isfinite(grad).all()] == []


@sweep
@pytest.mark.parametrize("lengths", [(1,), (7, 1), (5, 0, 3), (0, 0)], ids=str)
def test_no_nan_with_odd_lengths_and_all_padding_rows(settings: dict[str, Any], lengths: tuple[int, ...]) -> None:
    model = build(settings)
    ids = some_tokens(lengths, max(*lengths, 2))
    if bool(masked(ids).any()):
        assert all(torch.isfinite(grad).all() for grad in gradients(model, ids).values())
    model.eval()
    with torch.no_grad():
        assert torch.isfinite(model(ids)[0]).all()


@sweep
def test_padding_changes_nothing(settings: dict[str, Any]) -> None:
    model = build(settings).eval()
    layers = model.encoder.sentence_encoder.layers
    if reason := next((getattr(layer.self_attn, "depends_on_padding", "") for layer in layers), ""):
        assert len(reason) > 20, "say why outputs depend on padding"
        return
    ids = some_tokens((8,))
    with torch.no_grad():
        alone = model.extract_features(ids)[0]
        for width in (12, 32):
            padded = model.extract_features(
                some_tokens((8, 5), width).index_copy(0, torch.tensor([0]), _widened(ids, width))
            )
            torch.testing.assert_close(padded[0][:1, :8], alone, rtol=0, atol=1e-5)


def _widened(ids: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(ids, (0, width - ids.size(1)), value=PAD)


@sweep
def test_evaluation_is_deterministic(settings: dict[str, Any]) -> None:
    model = build(settings).eval()
    ids = some_tokens((9, 4))
    with torch.no_grad():
        assert torch.equal(model(ids)[0], model(ids)[0])


@sweep
def test_packed_equals_padded_and_selected_rows_equal_all(settings: dict[str, Any]) -> None:
    """What is left out (padding, hidden states that nobody reads) changes neither loss nor gradients."""
    model = build(settings)
    encoder: Any = model.encoder.sentence_encoder
    ids = some_tokens((9, 4, 2, 6))
    results = []
    for packed, selected in ((0.0, 0.0), (1.1, 0.0), (0.0, 1.1), (1.1, 1.1)):
        encoder.pack_below, encoder.read_below = packed, selected
        with torch.no_grad():
            logits = model(ids, masked_tokens=masked(ids))[0]
        results.append([logits, *gradients(model, ids).values()])
    everywhere = model(ids)[0].detach()[masked(ids)]
    torch.testing.assert_close(results[0][0], everywhere, rtol=1e-5, atol=1e-6)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-4, atol=1e-5)


@sweep
def test_saved_and_loaded_by_from_pretrained(settings: dict[str, Any], tmp_path: Path) -> None:
    chosen = {**SIZES, **{key: value for key, value in settings.items() if key != "arch"}}
    task = {"_name": "masked_lm", "data": str(tmp_path)}
    cfg = build_config({"task": task, "model": {"_name": settings["arch"], **chosen}})
    torch.manual_seed(1)
    model = build_model(cfg.model, Task())
    Task().source_dictionary.save(str(tmp_path / "dict.txt"))
    state = schema.portable({"args": None, "cfg": config_to_state(cfg), "model": model.state_dict()})
    torch.save(state, tmp_path / "model.pt")
    hub = RobertaModel.from_pretrained(str(tmp_path), "model.pt", str(tmp_path), bpe=None).eval()
    assert digest(hub.model) == digest(model)
    ids = some_tokens((9, 4))
    with torch.no_grad():
        assert torch.equal(hub.model(ids)[0], model.eval()(ids)[0])


def test_a_seed_gives_the_same_weights_in_another_process() -> None:
    code = (
        "from tests.numerics.test_registry_sweep import ALLOWED, build, digest\n"
        "for name, settings in ALLOWED.items(): print(name, digest(build(settings)))"
    )
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    there = dict(line.split() for line in done.stdout.splitlines())
    assert there == {name: digest(build(settings)) for name, settings in ALLOWED.items()}
    assert digest(build({"arch": "roberta"}, seed=2)) != there["roberta"]


@sweep
@pytest.mark.parametrize("kind", ["bf16", "autocast"])
def test_low_precision_is_as_accurate_as_the_plain_path(settings: dict[str, Any], kind: str) -> None:
    ids = some_tokens((9, 4, 6))
    found = []
    for backend in ("auto", "eager"):
        model = build(settings, attention_backend=backend).eval()
        model = model.bfloat16() if kind == "bf16" else model
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"):
            found.append(model(ids)[0])
    with torch.no_grad():
        truth = build(settings, attention_backend="eager").eval().double()(ids)[0]
    real = ids.ne(PAD)
    assert_as_accurate_as(found[0][real], found[1][real], truth[real], factor=2.0)
    assert float((found[0][real].double() - truth[real]).abs().max()) < 0.15 * float(truth.abs().max() + 1)


@sweep
def test_activation_checkpointing_gives_the_same_gradients(settings: dict[str, Any]) -> None:
    ids = some_tokens((9, 4, 6))
    plain = gradients(build(settings, dropout=0.1), ids)
    again = gradients(build(settings, dropout=0.1, checkpoint_activations=True), ids)
    assert all(torch.equal(plain[name], again[name]) for name in plain)
