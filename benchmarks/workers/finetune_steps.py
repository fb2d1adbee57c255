"""One pass over sentences of given lengths, training or inference; prints what it took and what was computed as JSON.

    python finetune_steps.py '{"lengths": [12, 40, ...], "packed": true, "grouped": false, "train": true, ...}'

The batches are those of fine-tuning: the task's iterator over the dataset, grouped by length or in random order.
Token ids are random. The seconds are those of all batches but a first pass over the longest one.
"""

import json
import sys
import time
from argparse import Namespace

import numpy as np
import torch
import torch.nn.functional as F

from fairseq.data.datasets import FairseqDataset
from fairseq.data.dictionary import Dictionary
from fairseq.data.sampling import GroupByLengthDataset, SortDataset
from fairseq.models import build_model
from fairseq.optim.fairseq_optimizer import build_optimizer
from fairseq.tasks.fairseq_task import FairseqTask


class Sentences(FairseqDataset):
    """Random ids of given lengths, padded on the right."""

    def __init__(self, lengths, vocabulary):
        generator = torch.Generator().manual_seed(1)
        self.sizes = np.asarray(lengths)
        self.items = [torch.randint(4, vocabulary, (n,), generator=generator) for n in lengths]

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self):
        return len(self.items)

    def num_tokens(self, index):
        return int(self.sizes[index])

    size = num_tokens

    def collater(self, samples):
        return torch.nn.utils.rnn.pad_sequence(samples, batch_first=True, padding_value=1)


class Task:
    def __init__(self, vocabulary):
        self.source_dictionary = self.target_dictionary = Dictionary()
        for number in range(vocabulary - len(self.source_dictionary)):
            self.source_dictionary.add_symbol(f"w{number}")

    def max_positions(self):
        return None


def build(job):
    model = build_model(
        Namespace(
            arch="roberta",
            encoder_layers=job["layers"],
            encoder_embed_dim=job["width"],
            encoder_ffn_embed_dim=4 * job["width"],
            encoder_attention_heads=job["width"] // 64,
            max_positions=max(job["lengths"]),
            dropout=job["dropout"],
            attention_dropout=job["dropout"],
        ),
        Task(job["vocabulary"]),
    )
    model.register_classification_head("head", num_classes=2)
    if not job["packed"]:
        model.encoder.sentence_encoder.pack_below = 0.0
    return model.to(getattr(torch, job["dtype"])).train(job["train"])


def main():
    job = json.loads(sys.argv[1])
    torch.manual_seed(1)
    model = build(job)
    adam = Namespace(
        _name="adam", optimizer="adam", adam_betas="(0.9, 0.98)", adam_eps=1e-6, weight_decay=0.1, lr=[1e-5]
    )
    optimizer = build_optimizer(adam, model.named_parameters()) if job["train"] else None

    def step(tokens):
        with torch.set_grad_enabled(job["train"]):
            logits = model(tokens, features_only=True, classification_head_name="head")[0]
            loss = F.cross_entropy(logits.float(), torch.zeros(len(tokens), dtype=torch.long))
        if optimizer is not None:
            optimizer.zero_grad()
            optimizer.backward(loss)
            optimizer.step()

    sentences = Sentences(job["lengths"], job["vocabulary"])
    if job["grouped"]:
        ordered = GroupByLengthDataset(sentences, sentences.sizes, seed=1)
    else:
        ordered = SortDataset(sentences, sort_order=[np.random.RandomState(1).permutation(len(sentences))])
    batches = FairseqTask(None).get_batch_iterator(
        ordered, max_sentences=job["batch"], required_batch_size_multiple=1, seed=1
    )
    batches = list(batches.next_epoch_itr())
    step(max(batches, key=torch.Tensor.numel))
    start, used = time.perf_counter(), time.process_time()
    for tokens in batches:
        step(tokens)
    figures = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - used}
    print(json.dumps({**figures, "padded_tokens": sum(x.numel() for x in batches), "steps": len(batches)}))


main()
