"""A plugin in the style of 2023: a task with several labels for every token, each from a head of its own."""

import os

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from fairseq import metrics, models, utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.data import (
    Dictionary,
    IdDataset,
    NestedDictionaryDataset,
    NumelDataset,
    NumSamplesDataset,
    PrependTokenDataset,
    ReplaceDataset,
    RightPadDataset,
    SortDataset,
    TruncateDataset,
    data_utils,
)
from fairseq.tasks import LegacyFairseqTask, register_task


class TokenHead(nn.Module):
    """A head that knows of features alone."""

    def __init__(self, dim, classes):
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.project = nn.Linear(dim, classes)

    def forward(self, features):
        return self.project(torch.tanh(self.dense(features)))


@register_task("token_labels")
class TokenLabelsTask(LegacyFairseqTask):
    @staticmethod
    def add_args(parser):
        parser.add_argument("data", metavar="FILE", help="directory of the binarized data")
        parser.add_argument("--label-names", default="parity,third", help="heads, one for each label")
        parser.add_argument("--tokens-per-sample", type=int, default=64)

    def __init__(self, args, dictionary):
        super().__init__(args)
        self.dictionary = dictionary
        self.names = args.label_names.split(",")
        self.seen = 0

    @classmethod
    def setup_task(cls, args, **kwargs):
        return cls(args, Dictionary.load(os.path.join(args.data, "dict.txt")))

    def load_dataset(self, split, combine=False, **kwargs):
        tokens = data_utils.load_indexed_dataset(
            os.path.join(self.args.data, split), self.dictionary, self.args.dataset_impl, combine=combine
        )
        tokens = TruncateDataset(tokens, self.args.tokens_per_sample - 1)
        tokens = PrependTokenDataset(tokens, self.dictionary.bos())
        pad = self.dictionary.pad()
        # Beginnings and ends have no label.
        labels = ReplaceDataset(tokens, {self.dictionary.bos(): pad, self.dictionary.eos(): pad}, offsets=[0])
        with data_utils.numpy_seed(self.args.seed):
            shuffle = np.random.permutation(len(tokens))
        self.datasets[split] = SortDataset(
            NestedDictionaryDataset(
                {
                    "id": IdDataset(),
                    "net_input": {
                        "src_tokens": RightPadDataset(tokens, pad_idx=pad),
                        "src_lengths": NumelDataset(tokens),
                    },
                    "target": RightPadDataset(labels, pad_idx=pad),
                    "nsentences": NumSamplesDataset(),
                    "ntokens": NumelDataset(tokens, reduce=True),
                },
                sizes=[tokens.sizes],
            ),
            sort_order=[shuffle],
        )

    def build_model(self, args):
        model = models.build_model(args, self)
        for number, name in enumerate(self.names, start=2):
            model.classification_heads[name] = TokenHead(args.encoder_embed_dim, number)
        return model

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        self.seen += sample["nsentences"]
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def get_checkpoint_dict(self):
        return {type(self).__name__: {"seen": self.seen}}

    def set_checkpoint_dict(self, state):
        self.seen = state["seen"]

    def max_positions(self):
        return self.args.tokens_per_sample

    @property
    def source_dictionary(self):
        return self.dictionary

    @property
    def target_dictionary(self):
        return self.dictionary


@register_criterion("token_labels")
class TokenLabelsCriterion(FairseqCriterion):
    def forward(self, model, sample, reduce=True):
        targets = model.get_targets(sample, None)
        labelled = targets.ne(self.padding_idx)
        loss, correct = 0.0, 0
        for number, name in enumerate(self.task.names, start=2):
            logits = model(**sample["net_input"], features_only=True, classification_head_name=name)[0][labelled]
            classes = targets[labelled] % number
            loss = loss + F.cross_entropy(logits.float(), classes, reduction="sum")
            correct += utils.item((logits.argmax(dim=-1) == classes).sum())
        size = int(labelled.sum())
        return (
            loss,
            size,
            {
                "loss": loss.data,
                "ncorrect": correct,
                "seen": self.task.seen,
                "ntokens": sample["ntokens"],
                "nsentences": sample["nsentences"],
                "sample_size": size,
            },
        )

    @staticmethod
    def reduce_metrics(logging_outputs):
        size = sum(output["sample_size"] for output in logging_outputs)
        metrics.log_scalar("loss", sum(output["loss"] for output in logging_outputs) / size, size, round=3)
        metrics.log_scalar(
            "accuracy", sum(output["ncorrect"] for output in logging_outputs) / (2 * size), size, round=3
        )
        metrics.log_scalar("seen", max(output["seen"] for output in logging_outputs), weight=0)

    @staticmethod
    def logging_outputs_can_be_summed():
        return False
