"""Times of a whole model with fast feedforward layers and of its dense counterparts; prints one line of JSON.

    python fff_model.py '{"layers": 16, "width": 768, "heads": 12, "depth": 11, "batch": 32, "tokens": 128,
                          "vocabulary": 32768, "rounds": 3}'

`ours` and `dense_here` are the presets `ultrafastbert_1x11` and `crammed_bert_4095`, the second on our own linears; `stock`
is the dense model of `torch.nn.TransformerEncoderLayer`, with PyTorch's cross entropy and AdamW. All take turns in one
process, every round on new random tokens of which 25 % are predicted. Features are in evaluation mode; a step is forward,
loss, backward, clipping and optimizer. The profiles say where steps went.
"""

import json
import statistics
import sys
import time
from argparse import Namespace
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fairseq.criterions.masked_lm import MaskedLmLoss
from fairseq.data.dictionary import Dictionary
from fairseq.models import build_model
from fairseq.optim.fairseq_optimizer import build_optimizer

SHARE = 0.25
CLIP = 0.5
ADAM = {"lr": 1e-4, "betas": (0.9, 0.98), "eps": 1e-12, "weight_decay": 0.01}
# Pieces of the names of operators, in the order in which they are looked for.
KINDS = {
    "fast feedforward": ("fast_feed_forward",),
    "optimizer": ("adam", "vector_norm", "Optimizer", "_foreach"),
    "head and loss": ("cross_entropy", "log_softmax", "nll"),
    "attention": ("attention", "softmax", "bmm", "baddbmm"),
    "linears": ("linear", "addmm", "::mm", "aten::t"),
    "norms, residuals": ("norm", "residual"),
    "embedding, choosing rows": ("embedding", "index"),
    "activation": ("gelu",),
}


class Task:
    def __init__(self, vocabulary):
        self.source_dictionary = self.target_dictionary = Dictionary()
        for number in range(vocabulary - len(self.source_dictionary) - 1):
            self.source_dictionary.add_symbol(f"w{number}")
        self.mask_idx = self.source_dictionary.add_symbol("<mask>")

    def max_positions(self):
        return None


class Ours:
    """A preset of the package with its criterion and optimizer."""

    def __init__(self, arch, job, **sizes):
        task = Task(job["vocabulary"])
        sizes |= {"encoder_layers": job["layers"], "encoder_embed_dim": job["width"], "max_positions": job["tokens"]}
        values = {"encoder_attention_heads": job["heads"], "dropout": 0.0, "attention_dropout": 0.0, "arch": arch}
        self.model = build_model(Namespace(**sizes, **values), task)
        self.criterion = MaskedLmLoss(None, task)
        adam = {"adam_betas": str(ADAM["betas"]), "adam_eps": ADAM["eps"], "weight_decay": ADAM["weight_decay"]}
        cfg = SimpleNamespace(_name="adamw", lr=[ADAM["lr"]], no_decay="bias,norm", **adam)
        self.optimizer = build_optimizer(cfg, self.model.named_parameters())

    def features(self, batch):
        self.model.eval()
        return self.model.extract_features(batch.tokens)[0]

    def step(self, batch):
        self.model.train()
        self.optimizer.zero_grad()
        sample = {"net_input": {"src_tokens": batch.tokens}, "target": batch.target}
        loss, size, _ = self.criterion(self.model, {**sample, "ntokens": 0, "nsentences": 0})
        self.optimizer.backward(loss)
        self.optimizer.multiply_grads(1 / float(size))
        self.optimizer.clip_grad_norm(CLIP)
        self.optimizer.step()


class Stock(nn.Module):
    """The dense model in what PyTorch brings."""

    def __init__(self, job, neurons):
        super().__init__()
        width = job["width"]
        self.embed = nn.Embedding(job["vocabulary"], width)
        self.positions = nn.Parameter(torch.zeros(job["tokens"], width))
        self.first, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        shape = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True, "bias": False}
        layer = nn.TransformerEncoderLayer(width, job["heads"], neurons, **shape)
        self.layers = nn.TransformerEncoder(layer, job["layers"], enable_nested_tensor=False)
        self.optimizer = torch.optim.AdamW(self.parameters(), **ADAM)

    def forward(self, tokens):
        return self.last(self.layers(self.first(self.embed(tokens) + self.positions)))

    def features(self, batch):
        self.eval()
        return self(batch.tokens)

    def step(self, batch):
        self.train()
        self.optimizer.zero_grad()
        chosen = batch.target.ne(1)
        loss = F.cross_entropy(self(batch.tokens)[chosen] @ self.embed.weight.t(), batch.target[chosen])
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), CLIP)
        self.optimizer.step()


def new_batch(job):
    tokens = torch.randint(4, job["vocabulary"] - 1, (job["batch"], job["tokens"]))
    count = round(SHARE * job["tokens"])
    chosen = torch.rand(tokens.shape).argsort(dim=1) < count
    return SimpleNamespace(tokens=tokens, target=torch.where(chosen, tokens, 1))


def timed(contestants, method, job):
    """Median seconds of each, in turns; the first round is not counted."""
    times = {name: [] for name in contestants}
    for turn in range(job["rounds"] + 1):
        batch = new_batch(job)
        for name in contestants if turn % 2 else reversed(contestants):
            start = time.perf_counter()
            with torch.set_grad_enabled(method == "step"):
                getattr(contestants[name], method)(batch)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def kind_of(event, vocabulary):
    """The products of the head are linear maps like others, but for their shapes."""
    name = event.key
    if ("linear" in name or "::mm" in name) and any(vocabulary in shape for shape in event.input_shapes):
        return "head and loss"
    return next((kind for kind, pieces in KINDS.items() if any(piece in name for piece in pieces)), "other")


def profiled(contestant, job):
    """Seconds of one step by kind of operator."""
    batch = new_batch(job)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
        contestant.step(batch)
    kinds = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in found.key_averages(group_by_input_shape=True):
        kinds[kind_of(event, job["vocabulary"])] += event.self_cpu_time_total / 1e6
    return kinds


def main():
    job = json.loads(sys.argv[1])
    torch.manual_seed(1)
    neurons = 2 ** (job["depth"] + 1) - 1
    contestants = {
        "ours": Ours("ultrafastbert_1x11", job, fff_depth=job["depth"]),
        "dense_here": Ours("crammed_bert_4095", job, encoder_ffn_embed_dim=neurons),
        "stock": Stock(job, neurons),
    }
    found = {method: timed(contestants, method, job) for method in ("features", "step")}
    found["profile"] = {name: profiled(contestants[name], job) for name in ("ours", "dense_here")}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
