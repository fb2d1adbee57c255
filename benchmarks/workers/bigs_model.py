"""Times of BiGS by the length of its inputs, and of what it is compared with; prints one line of JSON.

    python bigs_model.py '{"kind": "model", "tokens": 512, "batch": 32, "training": true, "rounds": 5, "width": 512, "layers": 6}'

Contestants take turns in one process. `model`: whole encoders, features or the loss of 15 % of the tokens with all gradients;
with "only" one contestant runs, and the growth of the process's peak over what the model itself takes is in the answer.
`operator`: both directions of the convolutions alone, forward and backward, in chunks and by Fourier transforms; and the
seven linear maps of a block.
"""

import argparse
import json
import resource
import statistics
import sys
import time

import torch

from fairseq.data.dictionary import Dictionary
from fairseq.models import build_model
from fairseq.modules.bigs import StateSpace
from fairseq.ops.linear import linear
from fairseq.ops.ssm import ssm_conv

SYMBOLS = 1000
BIGS = {"arch": "roberta_bigs", "positions": "none"}
MODELS = {
    "bigs, chunks": {**BIGS, "bigs_method": "chunks"},
    "bigs, fft": {**BIGS, "bigs_method": "fft"},
    "attention": {"arch": "roberta", "positions": "none"},
    "alibi": {"arch": "roberta", "positions": "none", "attention_bias": "alibi"},
}


class Task:
    """A dictionary, which is all that a model wants of its task."""

    def __init__(self, limit):
        self.source_dictionary = Dictionary()
        for number in range(SYMBOLS - 4):
            self.source_dictionary.add_symbol(str(number))
        self.limit = limit

    def max_positions(self):
        return self.limit


def model(name, job):
    """A feed-forward part is four times as wide as the model; the gate of BiGS three times, which costs as much."""
    settings = {"encoder_layers": job["layers"], "encoder_embed_dim": job["width"], "encoder_attention_heads": 8}
    wide = 3 if name.startswith("bigs") else 4
    settings |= {"encoder_ffn_embed_dim": wide * job["width"], "dropout": 0.0, "attention_dropout": 0.0}
    torch.manual_seed(1)
    return build_model(argparse.Namespace(**settings, **MODELS[name]), Task(job["tokens"])).train(job["training"])


def step(net, ids, where, training):
    if not training:
        with torch.no_grad():
            net(ids, features_only=True)
        return
    for parameter in net.parameters():
        parameter.grad = None
    net(ids, masked_tokens=where, masked_targets=ids[where])[0].backward()


def in_turns(calls, rounds):
    """Median seconds of each of ``calls``, after one round that does not count."""
    times = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name in list(calls) if turn % 2 else list(calls)[::-1]:
            start = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def models(job):
    names = job.get("only") or list(MODELS)
    ids = torch.randint(4, SYMBOLS, (job["batch"], job["tokens"]), generator=torch.Generator().manual_seed(2))
    where = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.15
    nets = {name: model(name, job) for name in names}
    if job.get("memory"):
        (net,) = nets.values()
        step(net, ids[:1, :64], where[:1, :64], job["training"])  # what is made once
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step(net, ids, where, job["training"])
        return {"peak_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024}
    return in_turns(
        {name: (lambda net=net: step(net, ids, where, job["training"])) for name, net in nets.items()}, job["rounds"]
    )


def operator(job):
    width, shape = job["width"], (job["batch"], job["tokens"], job["width"])
    torch.manual_seed(1)
    spaces = [StateSpace(64) for _ in range(2)]
    u, v = (torch.randn(shape, requires_grad=True) for _ in range(2))
    grads = [torch.randn(shape) for _ in range(2)]
    parameters = [p for space in spaces for p in space.parameters()]
    sizes = [(width, width)] * 4 + [(3 * width, width)] * 2 + [(width, 3 * width)]
    maps = [torch.randn(size, requires_grad=True) for size in sizes]
    inputs = {wide: torch.randn(*shape[:2], wide, requires_grad=True) for wide in (width, 3 * width)}
    ups = {wide: torch.randn(*shape[:2], wide) for wide in (width, 3 * width)}

    def convolve(method):
        found = ssm_conv(u, v, spaces[0](), spaces[1](), None, method)
        torch.autograd.grad(found, [u, v, *parameters], grads)

    def linears():
        for weight in maps:
            x = inputs[weight.size(1)]
            torch.autograd.grad(linear(x, weight, None), [x, weight], ups[weight.size(0)])

    return in_turns(
        {"chunks": lambda: convolve("chunks"), "fft": lambda: convolve("fft"), "linears": linears}, job["rounds"]
    )


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    print(json.dumps(operator(task) if task["kind"] == "operator" else models(task)))
