"""Times of one fast feedforward layer and of what it is compared with; prints one line of JSON.

    python fff_layer.py '{"tokens": 2048, "training": false, "cache": "cold", "rounds": 5, "width": 768, "depth": 11}'

All contestants take turns in one process, every round on new random inputs. `cold`: 256 MiB were written before each call,
so neither inputs nor tables are in a cache; `warm`: the same call just ran. The bags are two `F.embedding_bag` calls on
the layer's own routes: what it costs to read the visited rows of both tables. In training they do not train: beside
them stands the time to fill both gradients with zeros.
"""

import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

from fairseq.ops import fast_feed_forward, fff_routes
from fairseq.ops.fff_reference import fast_feed_forward_reference
from fairseq.ops.linear import linear


class Layer:
    """One set of weights in the layouts that the contestants want, and an input for all."""

    def __init__(self, width, depth, training):
        nodes = 2 ** (depth + 1) - 1
        self.width, self.depth, self.training = width, depth, training
        tables = [torch.randn(nodes, width) * 0.02, torch.randn(nodes) * 0.02, torch.randn(nodes, width) * 0.02]
        dense = [tables[0].clone(), tables[1].clone(), tables[2].t().contiguous()]
        self.tables, self.dense = ([t.requires_grad_(training) for t in kind] for kind in (tables, dense))

    def renew(self, tokens):
        self.x = torch.randn(tokens, self.width).requires_grad_(self.training)
        self.grad = torch.randn(tokens, self.width)
        with torch.no_grad():
            self.nodes = fff_routes(self.x, *self.tables[:2], self.depth).flatten(1)
            self.activations = torch.randn(self.nodes.shape)

    def step(self, function, weights):
        y = function()
        return torch.autograd.grad(y, (self.x, *weights), self.grad) if self.training else y

    def ours(self):
        return self.step(lambda: fast_feed_forward(self.x, *self.tables, self.depth), self.tables)

    def masked(self):
        return self.step(lambda: fast_feed_forward_reference(self.x, *self.tables, self.depth), self.tables)

    def stock(self):
        key, bias, value = self.dense
        return self.step(lambda: F.linear(F.gelu(F.linear(self.x, key, bias)), value), self.dense)

    def dense_here(self):
        key, bias, value = self.dense
        return self.step(lambda: linear(F.gelu(linear(self.x, key, bias)), value), self.dense)

    def bags(self):
        with torch.no_grad():
            first = F.embedding_bag(self.nodes, self.tables[0], mode="sum")
            return first, F.embedding_bag(self.nodes, self.tables[2], mode="sum", per_sample_weights=self.activations)

    def zeros(self):
        with torch.no_grad():
            return torch.zeros_like(self.tables[0]), torch.zeros_like(self.tables[2])

    def dispatch(self):
        return fast_feed_forward(self.x[:0], *self.tables, self.depth)


def main():
    job = json.loads(sys.argv[1])
    torch.manual_seed(1)
    layer = Layer(job["width"], job["depth"], job["training"])
    names = ["ours", "bags", "stock", "dense_here", "masked", *(["zeros"] if job["training"] else ["dispatch"])]
    names = [name for name in names if name in job.get("only", names)]
    sweep = torch.zeros(256 << 18)
    times = {name: [] for name in names}
    with torch.set_grad_enabled(job["training"]):
        for turn in range(job["rounds"] + 1):
            layer.renew(job["tokens"])
            for name in names if turn % 2 else names[::-1]:
                call = getattr(layer, name)
                if job["cache"] == "cold":
                    sweep.add_(1)
                else:
                    call()
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    print(json.dumps({name: statistics.median(found[1:]) for name, found in times.items()}))


if __name__ == "__main__":
    main()
