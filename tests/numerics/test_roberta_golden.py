"""The model against outputs of the original: initial weights from a seed, forward passes, filled masks.

``tests/data/roberta/<name>`` holds a checkpoint of a small run after 12 updates (without optimizer state), what the
original computed from it, and digests of the weights it started from with seed 7.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from fairseq.checkpoint.reader import read
from fairseq.data.dictionary import Dictionary
from fairseq.models import build_model
from fairseq.models.roberta import RobertaModel

DATA = Path(__file__).parents[1] / "data"
RUNS = ("baseline", "sinusoidal", "alibi", "zero_clap")
STARTS = (*RUNS, "alibi_asymmetrical", "learned_clap", "learned_clap_unnormalized")


def golden(name: str) -> dict[str, Any]:
    return json.loads((DATA / "roberta" / name / "golden.json").read_text(encoding="utf-8"))


class FakeTask:
    def __init__(self, name: str) -> None:
        self.source_dictionary = self.target_dictionary = Dictionary.load(str(DATA / "reference/data-bin/dict.txt"))
        if name != "zero_clap":
            self.source_dictionary.add_symbol("<mask>")

    def max_positions(self) -> None:
        return None


def build(name: str) -> tuple[RobertaModel, dict[str, Any]]:
    state = read(str(DATA / "roberta" / name / "checkpoint.pt"))
    model = build_model(state["cfg"].model, FakeTask(name))
    model.load_state_dict(state["model"], model_cfg=state["cfg"].model)
    return model.eval(), state


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest) -> tuple[str, RobertaModel, dict[str, Any], Any]:
    model, state = build(request.param)
    return request.param, model, state, np.load(DATA / "roberta" / request.param / "forward.npz")


@pytest.mark.parametrize("name", STARTS)
def test_a_seed_gives_the_weights_of_the_original(name):
    given = OmegaConf.load(DATA / "reference" / name / "run.yaml").model
    torch.manual_seed(7)
    state = build_model(given, FakeTask(name)).state_dict()
    digests = golden(name)["init_sha256"]
    found = {key: hashlib.sha256(value.numpy().tobytes()).hexdigest() for key, value in state.items()}
    assert [key for key in state if not key.endswith("_float_tensor")] == list(digests)
    assert [key for key, digest in digests.items() if found[key] != digest] == []


def test_forward(run):
    _, model, _, expected = run
    with torch.no_grad():
        logits, extra = model(torch.from_numpy(expected["tokens"]), return_all_hiddens=True)
        features, _ = model(torch.from_numpy(expected["clean_tokens"]), features_only=True)
    columns = expected["columns"] if "columns" in expected else slice(None)
    assert np.abs(logits.numpy()[..., columns] - expected["logits"]).max() < 2e-5
    assert np.abs(features.numpy() - expected["features"]).max() < 2e-5
    assert len(extra["inner_states"]) == 3
    for number, state in enumerate(extra["inner_states"]):
        assert np.abs(state.numpy() - expected[f"inner{number}"]).max() < 2e-5


def test_masked_rows_are_those_of_the_whole(run):
    _, model, _, expected = run
    tokens = torch.from_numpy(expected["tokens"])
    masked = tokens.eq(2000)
    with torch.no_grad():
        rows = model(tokens, masked_tokens=masked)[0]
    assert rows.shape == (2, len(model.encoder.dictionary))
    columns = expected["columns"] if "columns" in expected else slice(None)
    assert np.abs(rows.numpy()[:, columns] - expected["logits"][masked.numpy()]).max() < 2e-5


def test_keys_order_shapes_and_types_are_those_of_the_file(run):
    _, model, state, _ = run
    mine = model.state_dict()
    stored = torch.load(DATA / "roberta" / run[0] / "checkpoint.pt", weights_only=True)["model"]
    assert list(mine) == list(stored)
    assert all(mine[key].shape == stored[key].shape and mine[key].dtype == stored[key].dtype for key in stored)
    assert model.encoder.lm_head.weight is model.encoder.sentence_encoder.embed_tokens.weight
    assert state["model"].keys() == stored.keys()


def test_filled_configuration_is_the_stored_one(run):
    name, _, state, _ = run
    stored = torch.load(DATA / "roberta" / name / "checkpoint.pt", weights_only=True)["cfg"]["model"]
    node = OmegaConf.load(DATA / "reference" / name / "run.yaml").model
    build_model(node, FakeTask(name))
    filled = OmegaConf.to_container(node)
    assert filled == stored
    assert {key: type(value) for key, value in filled.items()} == {key: type(value) for key, value in stored.items()}


class CutBpe:
    """The few entries of GPT-2's BPE that the golden texts need."""

    def __init__(self, tables: dict[str, dict[str, str]]) -> None:
        self.tables = tables

    def encode(self, text: str) -> str:
        return self.tables["encode"][text]

    def decode(self, pieces: str) -> str:
        return "".join(self.tables["decode"][piece] for piece in pieces.split())


@pytest.mark.parametrize("name", RUNS)
def test_fill_mask_and_encode(name):
    expected = golden(name)
    hub = RobertaModel.from_pretrained(
        str(DATA / "roberta" / name), "checkpoint.pt", str(DATA / "reference/data-bin"), bpe=None
    )
    hub.bpe = CutBpe(expected["bpe"])
    for sentences, ids in zip(expected["sentences"], expected["encoded"], strict=True):
        assert hub.encode(*sentences).tolist() == ids
    found = hub.fill_mask(expected["text"], topk=5)
    reference = expected["fill_mask"]
    assert len(found) == 5 and hub.training
    assert [candidate.text for candidate in found[: len(reference)]] == [text for text, _, _ in reference]
    assert [candidate.token for candidate in found[: len(reference)]] == [token for _, _, token in reference]
    assert sorted((candidate.probability for candidate in found), reverse=True) == [c.probability for c in found]
    # The original left out "</s>" of its top five and shifted what followed; what came before is comparable.
    for candidate, (_, probability, _) in list(zip(found, reference, strict=False))[: 5 if len(reference) == 5 else 2]:
        assert abs(candidate.probability - probability) < 1e-6
