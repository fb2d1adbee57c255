"""Loading by directory, archive or name, and the hub interface."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from fairseq.compat.models import BPEHubInterface
from fairseq.data.dictionary import Dictionary
from fairseq.errors import CheckpointError, ConfigError, DataError, DataNotFoundError, OutOfScopeError
from fairseq.models import hub as archives
from fairseq.models.hub import load_pretrained
from fairseq.models.loading import load_model_ensemble_and_task
from fairseq.models.roberta import GottbertModel, RobertaModel, XLMRModel
from fairseq.models.roberta.addresses import PUBLISHED
from fairseq.models.roberta.alignment_utils import align_bpe_to_words, align_features_to_words
from fairseq.models.roberta.hub_interface import RobertaHubInterface
from tests.unit.roberta import PAD, Task, small_model

DATA = Path(__file__).parents[1] / "data"
CHECKPOINT = DATA / "roberta/baseline/checkpoint.pt"


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    """A model directory as published: ``model.pt`` and ``dict.txt``."""
    place = tmp_path_factory.mktemp("model")
    shutil.copyfile(CHECKPOINT, place / "model.pt")
    shutil.copyfile(DATA / "reference/data-bin/dict.txt", place / "dict.txt")
    return place


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PYTORCH_FAIRSEQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class WordBpe:
    """Pieces are symbols of the test dictionary; a word after a space carries that space, as in GPT-2."""

    def encode(self, text: str) -> str:
        return text.replace("w", " w").strip() if "  " not in text else text

    def decode(self, pieces: str) -> str:
        if "<" in pieces:
            raise ValueError(pieces)
        return "".join(f" {piece}" for piece in pieces.split())


@pytest.fixture
def hub() -> RobertaHubInterface:
    made = RobertaHubInterface(None, Task(), small_model().eval(), bpe=None)
    made.bpe = WordBpe()
    return made


def test_a_published_directory_needs_no_options(directory):
    hub = RobertaModel.from_pretrained(str(directory), bpe=None)
    assert hub.training and hub.device.type == "cpu" and hub.bpe is None
    assert {p.dtype for p in hub.parameters()} == {torch.float32}
    assert hub.encode("373 845 651").tolist() == [
        0,
        *(hub.task.source_dictionary.index(s) for s in ("373", "845", "651")),
        2,
    ]
    assert hub.decode(hub.encode("373 845", "651")) == ["373 845", "651"]
    assert hub.model.args.load_checkpoint_heads is True
    assert [c.text for c in hub.fill_mask("373 <mask>", topk=3)][0].startswith("373 ")


def test_data_beginning_with_a_dot_is_relative_to_the_model(directory, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (directory / "sub").mkdir(exist_ok=True)
    shutil.copyfile(directory / "dict.txt", directory / "sub/dict.txt")
    for data in (".", "./sub", f"../{directory.name}", str(directory)):
        assert (
            len(RobertaModel.from_pretrained(str(directory), data_name_or_path=data, bpe=None).task.dictionary) == 2001
        )


def test_overrides_reach_the_configuration(directory):
    hub = RobertaModel.from_pretrained(str(directory), bpe=None, dropout=0.4, activation_fn="relu")
    assert hub.cfg.model.dropout == 0.4 and hub.model.args.activation_fn == "relu"


def test_bpe_files_in_the_directory_are_found(directory, tmp_path):
    place = tmp_path / "with_bpe"
    shutil.copytree(directory, place)
    (place / "vocab.json").write_text("{}")
    seen = {}

    class Probe(RobertaModel):
        @classmethod
        def hub_models(cls):
            return {"probe": {"path": str(place), "checkpoint_file": "model.pt", "bpe": None, "dropout": 0.25}}

    loaded = load_pretrained("probe", archives=Probe.hub_models(), checkpoint_file="wrong.pt")
    seen.update(loaded.cfg.model)
    assert seen["dropout"] == 0.25


def test_the_path_of_a_checkpoint_itself(directory):
    loaded = load_pretrained(str(directory / "model.pt"))
    assert len(loaded.models) == 1


def test_the_directory_of_a_training(directory, tmp_path):
    torch.manual_seed(1)
    state = torch.load(directory / "model.pt", weights_only=False)
    for name, seed in (("checkpoint_last.pt", 7), ("checkpoint_best.pt", 8)):
        state["cfg"]["common"]["seed"], state["cfg"]["task"]["data"] = seed, str(directory)
        torch.save(state, tmp_path / name)
        assert RobertaModel.from_pretrained(str(tmp_path), bpe=None).cfg.common.seed == seed
    hub = RobertaModel.from_pretrained(str(tmp_path), "checkpoint_last.pt", bpe=None)
    assert hub.cfg.common.seed == 7 and len(hub.task.source_dictionary) == 2001


def test_lists_are_not_encoded(directory):
    hub = RobertaModel.from_pretrained(str(directory), bpe=None)
    for texts in ((["373", "845"],), ("373", ["845"])):
        with pytest.raises(DataError, match=r"for a list of texts use \[encode\(text\) for text in texts\]"):
            hub.encode(*texts)


def test_an_ensemble(directory):
    import os

    shutil.copyfile(directory / "model.pt", directory / "second.pt")
    loaded = load_pretrained(str(directory), os.pathsep.join(["model.pt", "second.pt"]))
    assert len(loaded.models) == 2


def test_missing_things(directory, tmp_path):
    with pytest.raises(DataNotFoundError, match="neither a directory .* nor a published model"):
        RobertaModel.from_pretrained(str(tmp_path / "none"))
    with pytest.raises(DataNotFoundError, match="no checkpoint .*other.pt"):
        RobertaModel.from_pretrained(str(directory), "other.pt")
    with pytest.raises(DataNotFoundError, match="dict.txt"):
        RobertaModel.from_pretrained(str(directory), data_name_or_path=str(tmp_path / "nowhere"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataNotFoundError, match="is a file"):
        RobertaModel.from_pretrained(str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_model_ensemble_and_task(
            [str(directory / "model.pt")], {"data": str(directory), "encoder_ffn_embed_dim": 8}
        )


def test_a_dictionary_that_does_not_fit(directory, tmp_path):
    (tmp_path / "dict.txt").write_text("a 1\n")
    with pytest.raises(CheckpointError, match="has 2001 symbols, but the dictionary has 6"):
        RobertaModel.from_pretrained(str(directory), data_name_or_path=str(tmp_path), bpe=None)


def test_offline_published_names_say_what_to_put_where(cache, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(
        DataNotFoundError, match="cannot download 'roberta.base'.*no network.*model.pt and dict.txt"
    ) as error:
        RobertaModel.from_pretrained("roberta.base")
    assert str(cache) in str(error.value)


def test_a_downloaded_archive_is_unpacked_once(directory, cache, monkeypatch):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(directory, arcname="roberta.base")
    downloads = []

    def serve(address, timeout):
        downloads.append(address)
        return io.BytesIO(packed.getvalue())

    monkeypatch.setattr("urllib.request.urlopen", serve)
    for _ in range(2):
        assert RobertaModel.from_pretrained("roberta.base", bpe=None).task.mask_idx == 2000
    assert downloads == [PUBLISHED["roberta"]["roberta.base"]]
    assert not list(cache.glob("*.part"))


def test_an_archive_in_the_cache_is_unpacked_once(directory, cache):
    address = "https://nowhere.invalid/model.tar.gz"
    cache.mkdir()
    with tarfile.open(
        cache / f"{archives.url_to_filename(address)}.etag", "w:gz"
    ) as archive:  # as the original left it
        archive.add(directory, "model")
    places = {archives.model_directory(address, "model", "files") for _ in range(3)}
    (place,) = places
    assert {path.name for path in place.iterdir()} == {path.name for path in directory.iterdir()}


def test_a_local_archive(directory, tmp_path):
    with tarfile.open(tmp_path / "model.tar", "w") as tar:
        tar.add(directory / "model.pt", arcname="model.pt")
        tar.add(directory / "dict.txt", arcname="dict.txt")
    assert RobertaModel.from_pretrained(str(tmp_path / "model.tar"), bpe=None).task.mask_idx == 2000


@pytest.mark.parametrize("member", ["../outside", "/absolute"])
def test_archives_cannot_write_outside(tmp_path, member):
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        entry = tarfile.TarInfo(member)
        entry.size = 3
        tar.addfile(entry, io.BytesIO(b"abc"))
        tar.addfile(tarfile.TarInfo("other"), io.BytesIO(b""))
    try:
        archives.unpack(tmp_path / "evil.tar", tmp_path / "target")
    except CheckpointError as error:
        assert "cannot unpack" in str(error)
    assert not (tmp_path / "outside").exists() and not Path("/absolute").exists()


def test_addresses_and_torch_hub_entrance():
    import hubconf

    assert {"roberta.base", "xlmr.large", "camembert", "gottbert-base"} <= set(dir(hubconf))
    assert "torch" in hubconf.dependencies
    assert XLMRModel.hub_models() is PUBLISHED["xlmr"] and GottbertModel.hub_models() is PUBLISHED["gottbert"]
    with pytest.raises(ConfigError, match="unknown bpe"):
        BPEHubInterface("gtp2")


# The interface


def test_encode_and_decode(hub):
    assert hub.encode("w1 w2").tolist() == [0, 5, 6, 2]
    assert hub.encode("w1", "w2").tolist() == [0, 5, 2, 2, 6, 2]
    assert hub.encode("w1", "w2", no_separator=True).tolist() == [0, 5, 2, 6, 2]
    assert hub.decode(torch.tensor([0, 5, 2])) == " w1"
    assert hub.decode(hub.encode("w1", "w2", "w3")) == [" w1", " w2", " w3"]
    assert hub.decode(torch.tensor([5])) == " w1"
    with pytest.raises(DataError, match="one sentence"):
        hub.decode(torch.zeros(1, 2, dtype=torch.long))


def test_features_of_one_and_of_several_sentences(hub):
    ids = hub.encode("w1 w2")
    assert hub.extract_features(ids).shape == (1, 4, 12)
    hidden = hub.extract_features(torch.stack([ids, ids]), return_all_hiddens=True)
    assert [h.shape for h in hidden] == [(2, 4, 12)] * 4
    assert hub.extract_features(ids).requires_grad
    with pytest.raises(DataError, match="17 tokens, more than the 16"):
        hub.extract_features(torch.full((17,), 5))


def test_predict_gives_log_probabilities_or_logits(hub):
    hub.register_classification_head("h", num_classes=3, embedding_size=99)
    ids = hub.encode("w1 w2")
    log_probabilities = hub.predict("h", ids)
    torch.testing.assert_close(log_probabilities.exp().sum(-1), torch.ones(1))
    torch.testing.assert_close(hub.predict("h", ids, return_logits=True).log_softmax(-1), log_probabilities)
    with pytest.raises(OutOfScopeError, match="Winograd"):
        hub.disambiguate_pronoun("x")


def test_fill_mask_gives_exactly_k(hub):
    dictionary: Dictionary = hub.task.source_dictionary
    found = hub.fill_mask("w1 <mask> w2", topk=27)
    assert len(found) == 27
    assert not {candidate.token for candidate in found} & {"<s>", "</s>", "<pad>"}
    assert "<unk>" in {candidate.token for candidate in hub.fill_mask("w1 <mask> w2", topk=1000)}
    assert len(hub.fill_mask("w1 <mask> w2", topk=1000)) == len(dictionary) - 3
    with torch.no_grad():
        probabilities = hub.model(torch.tensor([[0, 5, 30, 6, 2]]))[0][0, 2].softmax(-1)
    for text, probability, token in found:
        symbol = dictionary.index(token.strip())
        assert probability == pytest.approx(float(probabilities[symbol]), abs=1e-7)
        assert text == f"w1{token} w2"
    assert found == sorted(found, key=lambda candidate: -candidate.probability)


def test_fill_mask_spaces(hub):
    assert hub.fill_mask("<mask> w2", topk=1)[0].text.endswith(" w2")
    first = hub.fill_mask("w1<mask>", topk=1)[0]
    assert first.text == f"w1{first.token}"


def test_several_masks_and_several_texts(hub):
    one = hub.fill_mask("w1 <mask> w2", topk=2)
    two = hub.fill_mask("w1 <mask> w2 <mask>", topk=2)
    assert len(two) == 2 and all(len(candidates) == 2 for candidates in two)
    assert all("<mask>" in candidate.text for candidates in two for candidate in candidates)
    batch = hub.fill_mask(["w1 <mask> w2", "w1 <mask> w2 <mask>"], topk=2)
    assert [c.token for c in batch[0]] == [c.token for c in one]
    for found, expected in zip(batch[0], one, strict=True):
        assert found.probability == pytest.approx(expected.probability, abs=1e-6)
    assert [[c.token for c in mask] for mask in batch[1]] == [[c.token for c in mask] for mask in two]
    assert hub.fill_mask([]) == []


def test_fill_mask_restores_the_mode(hub):
    hub.train()
    assert hub.fill_mask("<mask>", topk=1) == hub.fill_mask("<mask>", topk=1)
    assert hub.model.training


def test_fill_mask_mistakes(hub):
    with pytest.raises(DataError, match="no <mask>"):
        hub.fill_mask("w1 w2")
    with pytest.raises(ConfigError, match="topk"):
        hub.fill_mask("<mask>", topk=0)
    with pytest.raises(DataError, match="more than the 16"):
        hub.fill_mask("w1 " * 20 + "<mask>")
    del hub.task.mask_idx
    with pytest.raises(ConfigError, match="no mask symbol"):
        hub.fill_mask("<mask>")


def test_aligned_features(hub):
    words = hub.extract_features_aligned_to_words("w1 w2w3")
    features = hub.extract_features(hub.encode("w1 w2w3"))[0]
    assert [word.text for word in words] == ["<s>", "w1", "w2w3", "</s>"]
    torch.testing.assert_close(words[2].vector, features[2] + features[3])
    torch.testing.assert_close(torch.stack([word.vector for word in words]).sum(0), features.sum(0))
    assert hub.extract_features_aligned_to_words("w1 w2", return_all_hiddens=True)[1].vector.shape == (4, 12)


def test_a_piece_may_belong_to_several_words(hub):
    ids = hub.encode("w1 w2")
    alignment = align_bpe_to_words(hub, ids, ["w", "1", "w2"])
    assert alignment == [[1], [1], [2]]
    features = torch.randn(4, 5)
    aligned = align_features_to_words(hub, features, alignment)
    torch.testing.assert_close(aligned[1], features[1] / 2)
    torch.testing.assert_close(aligned.sum(0), features.sum(0))
    with pytest.raises(DataError, match="spell"):
        align_bpe_to_words(hub, ids, ["w1", "w3"])
    assert PAD == 1
