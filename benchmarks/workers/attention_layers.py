"""One training step after another of a stack of attention layers with ALiBi; prints seconds, of processors too, and MiB as JSON.

    python attention_layers.py '{"path": "fused", "tokens": 2048, ...}'

Paths: a backend of ours, or `fork`: the ALiBi fork's way, `F.multi_head_attention_forward` with a bias repeated to
(B * H, T, T) for every forward. All have the same projections. MiB are above what the process held before the steps.
"""

import json
import sys
import time

import torch
import torch.nn.functional as F

from fairseq.modules.attention import MultiheadSelfAttention
from fairseq.modules.attention_backends import attend
from fairseq.modules.attention_bias import ALiBi
from fairseq.ops import library


def resident(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))


def fork_layer(layer, x, bias):
    """x (T, B, C), bias (B * H, T, T)."""
    return F.multi_head_attention_forward(
        x,
        x,
        x,
        layer.embed_dim,
        layer.num_heads,
        torch.empty(0),
        torch.cat((layer.q_proj.bias, layer.k_proj.bias, layer.v_proj.bias)),
        None,
        None,
        False,
        layer.dropout,
        layer.out_proj.weight,
        layer.out_proj.bias,
        True,
        need_weights=False,
        attn_mask=bias,
        use_separate_proj_weight=True,
        q_proj_weight=layer.q_proj.weight,
        k_proj_weight=layer.k_proj.weight,
        v_proj_weight=layer.v_proj.weight,
    )[0]


def our_layer(layer, x, alibi, cache, backend):
    """x (B, T, C)."""
    batch, tokens, channels = x.shape
    heads = (batch, tokens, layer.num_heads, -1)
    q, k, v = (f(x).view(heads).transpose(1, 2) for f in (layer.q_proj, layer.k_proj, layer.v_proj))
    mixed = attend(q, k, v, bias=alibi, dropout=layer.dropout, backend=backend, cache=cache)
    return layer.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, channels))


def main():
    job = json.loads(sys.argv[1])
    batch, tokens, width, heads = job["batch"], job["tokens"], job["width"], job["heads"]
    dtype = getattr(torch, job["dtype"])
    torch.manual_seed(1)
    layers = [MultiheadSelfAttention(width, heads, dropout=job["dropout"]).to(dtype) for _ in range(job["layers"])]
    alibi = ALiBi(heads)
    if job["path"] == "fork":
        table = alibi.dense(tokens, dtype=dtype)
    elif job["path"] == "fused" and not library.load():
        raise SystemExit(f"the compiled operators are missing: {library.why_unavailable()}")

    def step(tokens):
        x = torch.randn(batch, tokens, width, dtype=dtype)
        if job["path"] == "fork":
            x, bias = x.transpose(0, 1), table[:, :tokens, :tokens].repeat(batch, 1, 1)
            for layer in layers:
                x = x + fork_layer(layer, x, bias)
        else:
            cache = {}
            for layer in layers:
                x = x + our_layer(layer, x, alibi, cache, job["path"])
        x.float().square().mean().backward()
        for layer in layers:
            layer.zero_grad()

    step(64)  # libraries load and threads start
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts again from here
    seconds, cpu = [], []
    for _ in range(job["steps"]):
        start, used = time.perf_counter(), time.process_time()
        step(tokens)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    print(json.dumps({"seconds": min(seconds), "cpu": min(cpu), "mib": resident("VmHWM") - before}))


main()
