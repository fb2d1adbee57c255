"""Prints how many operations a second this machine's matrix products reach, by type, as JSON: the floor of a model's time.

    python product_rate.py '{"rows": 2048, "inner": 512, "outer": 2048, "types": ["float32", "bfloat16"]}'

(rows, inner) times (inner, outer), the quickest of the ways that torch has, best of many: no training step can beat it.
"""

import json
import sys
import time

import torch


def ways(dtype):
    """Functions of x (rows, inner) and w (outer, inner)."""
    yield torch.nn.functional.linear
    if torch.backends.mkldnn.is_available():
        yield lambda x, w: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")


def rate(job, dtype):
    x = torch.randn(job["rows"], job["inner"], dtype=dtype)
    w = torch.randn(job["outer"], job["inner"], dtype=dtype)
    best = float("inf")
    for way in ways(dtype):
        end = time.perf_counter() + 1.0
        while time.perf_counter() < end:
            start = time.perf_counter()
            way(x, w)
            best = min(best, time.perf_counter() - start)
    return 2 * job["rows"] * job["inner"] * job["outer"] / best


def main():
    job = json.loads(sys.argv[1])
    with torch.no_grad():
        rates = {name: rate(job, getattr(torch, name)) for name in job["types"]}
    print(json.dumps(rates))


main()
