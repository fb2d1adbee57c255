"""One training step after another of a stack of token mixers; prints seconds, of processors too, and MiB as JSON.

    python conv_layers.py '{"mixer": "conv_attention", "options": {"kernel": "qk_convq 8"}, "tokens": 2048, ...}'

MiB are above what the process held before the steps.
"""

import json
import sys
import time

import torch

from fairseq.modules.initialization import init_bert_params
from fairseq.modules.slots import EncoderContext, EncoderShape
from fairseq.registry import TOKEN_MIXERS


def resident(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))


def main():
    job = json.loads(sys.argv[1])
    torch.manual_seed(1)
    shape = EncoderShape(
        dim=job["width"],
        heads=job["heads"],
        ffn_dim=4 * job["width"],
        layers=job["layers"],
        max_positions=job["tokens"],
        padding_idx=1,
        attention_dropout=job["dropout"],
    )
    make = TOKEN_MIXERS.get(job["mixer"])
    layers = torch.nn.ModuleList([make(shape, **job["options"]) for _ in range(job["layers"])])
    layers.apply(init_bert_params)

    def step(tokens):
        x, context = torch.randn(job["batch"], tokens, job["width"]), EncoderContext()
        for layer in layers:
            x = x + layer(x, context)
        x.square().mean().backward()
        layers.zero_grad()

    step(64)  # libraries load and threads start
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts again from here
    seconds, cpu = [], []
    for _ in range(job["steps"]):
        start, used = time.perf_counter(), time.process_time()
        step(job["tokens"])
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    print(json.dumps({"seconds": min(seconds), "cpu": min(cpu), "mib": resident("VmHWM") - before}))


main()
