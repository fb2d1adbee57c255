"""Datasets, collectives, registries and views of the configuration that only plugins use."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fairseq import file_chunker_utils, file_utils, utils
from fairseq.data import (
    BucketPadLengthDataset,
    ColorizeDataset,
    Dictionary,
    FairseqIterableDataset,
    IdDataset,
    ListDataset,
    MultiCorpusDataset,
    MultiCorpusSampledDataset,
    NestedDictionaryDataset,
    PrependDataset,
    ReplaceDataset,
    RightPadDataset,
    RoundRobinZipDatasets,
    TruncatedDictionary,
    data_utils,
    iterators,
)
from fairseq.data.nested_dictionary_dataset import _flatten, _unflatten
from fairseq.data.padding_mask_dataset import LeftPaddingMaskDataset
from fairseq.dataclass import FairseqDataclass
from fairseq.distributed import utils as distributed_utils
from fairseq.errors import DataError
from fairseq.models.roberta import RobertaModel
from fairseq.registry import REGISTRIES, setup_registry
from tests.unit.roberta import PAD

DATA = Path(__file__).parents[1] / "data"


def items(*rows: list[int]) -> ListDataset:
    return ListDataset([torch.tensor(row) for row in rows], np.array([len(row) for row in rows]))


def test_tokens_are_replaced():
    found = ReplaceDataset(items([7, 8, 7], [8, 8]), {7: 9}, offsets=[1])
    assert found[0].tolist() == [7, 8, 9] and found[1].tolist() == [8, 8] and len(found) == 2
    assert ReplaceDataset(items([7, 8, 7]), {7: 9, 8: 7}, offsets=[-1])[0].tolist() == [9, 7, 7]
    pairs = ListDataset([(torch.tensor([7, 7]), torch.tensor([7, 8]))])
    assert [part.tolist() for part in ReplaceDataset(pairs, {7: 9}, offsets=[0, 1])[0]] == [[9, 9], [7, 8]]


def test_first_tokens_and_colors():
    found = PrependDataset(items([2, 5]), lambda dataset, index: 40 + index, ensure_first_token_is=2)
    assert found[0].tolist() == [40, 5]
    with pytest.raises(ValueError, match="begins with"):
        PrependDataset(items([3, 5]), lambda dataset, index: 0, ensure_first_token_is=2)[0]
    tokens = items([4, 5, 6], [7])
    samples = NestedDictionaryDataset({"id": IdDataset(), "net_input": {"src_tokens": RightPadDataset(tokens, PAD)}})
    batch = ColorizeDataset(samples, lambda dataset, index: 10 * index).collater([samples[0], samples[1]])
    assert batch["net_input"]["src_tokens"].tolist() == [[4, 5, 6], [7, PAD, PAD]]


def test_lengths_in_buckets():
    sizes = np.array([1, 2, 3, 9, 10])
    buckets = data_utils.get_buckets(sizes, 2)
    assert buckets.tolist() == [3, 10]
    assert data_utils.get_bucketed_sizes(sizes, buckets).tolist() == [3, 3, 3, 10, 10]
    with pytest.raises(DataError, match="fits into no bucket"):
        data_utils.get_bucketed_sizes([11], buckets)
    found = BucketPadLengthDataset(items([5], [6, 7], [8, 9, 4]), np.array([1, 2, 3]), 1, PAD, left_pad=True)
    assert found[0].tolist() == [PAD, PAD, 5] and found.size(1) == 3 and found.num_tokens(0) == 3


def test_padding_masks():
    tokens = items([5, 6, 7], [8])
    found = LeftPaddingMaskDataset(tokens)
    assert found.collater([found[0], found[1]]).tolist() == [[False] * 3, [True, True, False]]


class Ordered(RightPadDataset):
    def ordered_indices(self):
        return np.arange(len(self))


def test_several_corpora():
    parts = {"a": Ordered(items([1], [2], [3]), PAD), "b": Ordered(items([7]), PAD)}
    zipped = RoundRobinZipDatasets(parts)
    with pytest.raises(RuntimeError, match="ordered_indices"):
        zipped[0]
    assert zipped.ordered_indices().tolist() == [0, 1, 2]
    assert {key: value.item() for key, value in zipped[2].items()} == {"a": 3, "b": 7}
    assert {key: value.tolist() for key, value in zipped.collater([zipped[0], zipped[1]]).items()} == {
        "a": [[1], [2]],
        "b": [[7], [7]],
    }
    sampled = MultiCorpusSampledDataset(parts, sampling_func=lambda keys: keys[1])
    sampled.ordered_indices()
    assert len(sampled) == 3 and sampled.collater([sampled[0], sampled[2]]).tolist() == [[7], [7]]
    mixed = MultiCorpusDataset(
        {"a": items(*[[1]] * 30), "b": items(*[[2]] * 10)}, distribution=[0.5, 0.5], seed=3, sort_indices=False
    )
    orders = []
    for epoch in (1, 2):
        mixed.set_epoch(epoch)
        orders.append(mixed.ordered_indices().tolist())
        values = [mixed[index].item() for index in orders[-1]]
        assert (values.count(1), values.count(2)) == (10, 10)
    assert orders[0] != orders[1]


def test_nested_dictionaries():
    assert dict(_flatten({"a": {"b": 1}, "c": [2, None]})) == {"a.b": 1, "c.[0]": 2}
    assert _unflatten({"a.b": 1}) == {"a": {"b": 1}}


class Stream(FairseqIterableDataset):
    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        return iter(range(10 * self.epoch, 10 * self.epoch + 4))


def test_streams():
    found = iterators.StreamingEpochBatchIterator(Stream(), max_sentences=2, collate_fn=list)
    assert list(found.next_epoch_itr()) == [[10, 11], [12, 13]] and found.end_of_epoch()
    assert found.state_dict() == {"epoch": 1} and found.next_epoch_idx == 2
    assert list(found.next_epoch_itr()) == [[20, 21], [22, 23]]


def test_a_dictionary_cut_short():
    dictionary = Dictionary()
    dictionary.add_symbol("a")
    dictionary.add_symbol("b")
    short = TruncatedDictionary(dictionary, 5)
    assert len(short) == 5 and short.index("a") == 4 and short.index("b") == dictionary.unk() and short[5] == "<unk>"
    assert short.pad() == dictionary.pad()


def test_collectives_of_one_process():
    tensor = torch.tensor([2.0])
    assert distributed_utils.get_rank() == 0 and distributed_utils.get_world_size() == 1
    assert distributed_utils.all_reduce(tensor) is tensor and distributed_utils.all_gather_list("x") == ["x"]
    assert distributed_utils.all_gather(tensor, return_tensor=True).tolist() == [[2.0]]
    assert distributed_utils.all_reduce_dict({"a": 1.0}, "cpu") == {"a": 1.0}
    assert distributed_utils.broadcast_object({"b": 2}, 0, None) == {"b": 2}


def test_registries_of_plugins():
    build, register, names, configs = setup_registry("--denoiser", base_class=object)

    @dataclass
    class DenoiserConfig(FairseqDataclass):
        strength: int = 3

    @register("median", dataclass=DenoiserConfig)
    class Median:
        def __init__(self, cfg, *more):
            self.cfg, self.more = cfg, more

    assert build("median", "x").cfg.strength == 3 and build("median", "x").more == ("x",)
    assert build(None) is None and "median" in names and configs["median"] is DenoiserConfig
    assert "denoiser" in REGISTRIES and "adam" in REGISTRIES["optimizer"]["registry"]
    assert setup_registry("--denoiser") is None
    del REGISTRIES["denoiser"]


def test_small_helpers(tmp_path, caplog):
    assert utils.relu_squared(torch.tensor([-2.0, 3.0])).tolist() == [0.0, 9.0]
    assert utils.get_activation_fn("relu")(torch.tensor([-1.0])).item() == 0
    assert utils.new_arange(torch.zeros(2, 3)).tolist() == [[0, 1, 2]] * 2 and utils.buffered_arange(2).tolist() == [
        0,
        1,
    ]
    assert not utils.is_xla_tensor(torch.ones(1)) and utils.index_put(torch.zeros(2), 0, 1.0).tolist() == [1.0, 0.0]
    (tmp_path / "vectors.txt").write_text("2 2\na 1 2\nb 3 4\n", encoding="utf-8")
    vectors = utils.parse_embedding(str(tmp_path / "vectors.txt"))
    dictionary = Dictionary()
    dictionary.add_symbol("b")
    table = utils.load_embedding(vectors, dictionary, torch.nn.Embedding(len(dictionary), 2))
    assert table.weight[dictionary.index("b")].tolist() == [3.0, 4.0]
    with caplog.at_level(logging.INFO):
        utils.print_embed_overlap(vectors, dictionary)
    assert "1/5" in caplog.text
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", action=utils.FileContentsAction)
    assert parser.parse_args(["--text", str(tmp_path / "vectors.txt")]).text.startswith("2 2")
    assert file_utils.load_archive_file(str(tmp_path)) == str(tmp_path) and file_utils.load_archive_file("no") is None
    assert file_utils.read_set_from_file(tmp_path / "vectors.txt") == {"2 2", "a 1 2", "b 3 4"}
    assert file_utils.get_file_extension("a/b.TAR") == ".tar"
    (tmp_path / "text").write_text("zäh\nb\n", encoding="utf-8")
    with open(tmp_path / "text", encoding="utf-8") as handle:
        handle.seek(2)  # the second byte of the umlaut
        assert file_chunker_utils.safe_readline(handle) == "äh\n"


def test_loggers_and_checkpoint_helpers():
    from fairseq import checkpoint_utils
    from fairseq.trainer import logger

    assert isinstance(logger, logging.Logger) and checkpoint_utils.PathManager.exists("/")
    home = checkpoint_utils.__name__
    with mock.patch(f"{home}.PathManager.opena") as opened, mock.patch(f"{home}._torch_persistent_save") as saved:
        checkpoint_utils.torch_persistent_save({}, "later.pt", async_write=True)
    opened.assert_called_with("later.pt", "wb")
    saved.assert_called()


# ---- views of the configuration, and converters ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub():
    return RobertaModel.from_pretrained(
        str(DATA / "roberta/baseline"), "checkpoint.pt", str(DATA / "reference/data-bin"), bpe=None
    ).eval()


def test_the_configuration_is_flat_too(hub):
    args = hub.args
    assert args.encoder_embed_dim == hub.model.args.encoder_embed_dim == hub.cfg.model.encoder_embed_dim
    assert args.task == "masked_lm" and args.arch == hub.cfg.model._name and args.seed == hub.cfg.common.seed
    assert "encoder_layers" in args and not hasattr(args, "nothing_of_this_name")
    assert vars(args)["dropout"] == hub.cfg.model.dropout and hub.args is args
    encoder = hub.model.encoder.sentence_encoder
    assert encoder.embedding_dim == args.encoder_embed_dim and encoder.segment_embeddings is None
    assert hub.task.args is hub.task.cfg


def converted_logits(hub, tokens: Tensor) -> Tensor:
    """What converters to other libraries do: read every parameter by attribute, and compute with it in plain torch."""
    encoder, args = hub.model.encoder.sentence_encoder, hub.args
    batch, length = tokens.shape
    positions = encoder.embed_positions.weight[PAD + 1 : PAD + 1 + length]
    x = encoder.embed_tokens.weight[tokens] + positions
    norm = encoder.emb_layer_norm
    x = F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, 1e-5)
    heads = args.encoder_attention_heads
    for number in range(args.encoder_layers):
        layer = encoder.layers[number]
        attend = layer.self_attn

        def split(projection, x=x):
            out = F.linear(x, projection.weight, projection.bias)
            return out.view(batch, length, heads, -1).transpose(1, 2)

        mixed = F.scaled_dot_product_attention(split(attend.q_proj), split(attend.k_proj), split(attend.v_proj))
        mixed = mixed.transpose(1, 2).reshape(batch, length, -1)
        mixed = F.linear(mixed, attend.out_proj.weight, attend.out_proj.bias)
        norm = layer.self_attn_layer_norm
        x = F.layer_norm(x + mixed, norm.weight.shape, norm.weight, norm.bias, 1e-5)
        inner = F.gelu(F.linear(x, layer.fc1.weight, layer.fc1.bias))
        norm = layer.final_layer_norm
        x = x + F.linear(inner, layer.fc2.weight, layer.fc2.bias)
        x = F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, 1e-5)
    head = hub.model.encoder.lm_head
    x = F.gelu(F.linear(x, head.dense.weight, head.dense.bias))
    x = F.layer_norm(x, head.layer_norm.weight.shape, head.layer_norm.weight, head.layer_norm.bias, 1e-5)
    return F.linear(x, head.weight, head.bias)


def test_converters_find_every_parameter(hub):
    tokens = torch.randint(4, len(hub.task.source_dictionary), (2, 7))
    torch.testing.assert_close(converted_logits(hub, tokens), hub.model(tokens)[0], atol=1e-5, rtol=1e-5)


def test_what_training_scripts_ask_of_the_trainer():
    from types import SimpleNamespace

    from fairseq.optim import build_optimizer
    from fairseq.optim.configs import SGDConfig
    from fairseq.optim.lr_scheduler import build_lr_scheduler
    from fairseq.trainer import Trainer
    from fairseq.training.peers import Alone

    trainer = object.__new__(Trainer)
    weight = torch.nn.Parameter(torch.ones(1))
    trainer.cfg = SimpleNamespace(checkpoint=SimpleNamespace(checkpoint_suffix=None))
    trainer.optimizer = build_optimizer(SGDConfig(_name="sgd", lr=[0.5]), [weight])
    schedule = argparse.Namespace(
        lr_scheduler="fixed", lr=[0.5, 0.25], force_anneal=None, warmup_updates=0, lr_shrink=0.1
    )
    trainer.lr_scheduler = build_lr_scheduler(schedule, trainer.optimizer)
    trainer.criterion, trainer.peers = torch.nn.Identity(), Alone(dict)
    weight.grad = torch.full((1,), 8.0)
    assert trainer.clip_grad_norm(2.0).item() == 8 and weight.grad.item() == pytest.approx(2.0, abs=1e-5)
    trainer.zero_grad()
    assert weight.grad is None or weight.grad.item() == 0
    assert [trainer.lr_step_begin_epoch(epoch) for epoch in (1, 2)] == [0.5, 0.25]
    assert trainer.get_criterion() is trainer.criterion and trainer.checkpoint_suffix == ""
    assert (trainer.data_parallel_rank, trainer.data_parallel_world_size) == (0, 1)
    assert trainer.should_save_checkpoint_on_current_rank and not trainer.tpu and not trainer.is_fsdp
