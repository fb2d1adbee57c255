"""Training of a whole masked-LM encoder with ALiBi, ours or the fork's way; prints seconds, of processors too, and MiB as JSON.

    python alibi_model.py '{"path": "ours", "dtype": "float32", "tokens": 2048, ...}'

Paths: `ours` is what `fairseq-train` runs (model, criterion, optimizer, precision); `fork` a plain implementation of the
ALiBi fork's encoder, (T, B, C), with `F.multi_head_attention_forward` and a bias repeated to (B * H, T, T) for every
forward. Both project the masked tokens alone and step AdamW. MiB are above weights, gradients and optimizer state.
"""

import json
import sys
import time
from argparse import Namespace
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from fairseq.criterions import build_criterion
from fairseq.data.dictionary import Dictionary
from fairseq.models import build_model
from fairseq.modules.attention_bias import ALiBi
from fairseq.optim import precision
from fairseq.optim.configs import FairseqAdamConfig


def resident(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(field))


class ForkLayer(nn.Module):
    def __init__(self, width, heads, ffn, attention_dropout, dropout):
        super().__init__()
        self.heads, self.attention_dropout, self.dropout = heads, attention_dropout, dropout
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x, bias):
        """x (T, B, C), bias (B * H, T, T)."""
        mixed = F.multi_head_attention_forward(
            x,
            x,
            x,
            x.size(-1),
            self.heads,
            torch.empty(0),
            torch.cat((self.q.bias, self.k.bias, self.v.bias)),
            None,
            None,
            False,
            self.attention_dropout,
            self.out.weight,
            self.out.bias,
            True,
            need_weights=False,
            attn_mask=bias,
            use_separate_proj_weight=True,
            q_proj_weight=self.q.weight,
            k_proj_weight=self.k.weight,
            v_proj_weight=self.v.weight,
        )[0]
        x = self.norm1(x + F.dropout(mixed, self.dropout))
        return self.norm2(x + F.dropout(self.fc2(F.gelu(self.fc1(x))), self.dropout))


class ForkModel(nn.Module):
    def __init__(self, job, vocabulary):
        super().__init__()
        width, heads = job["width"], job["heads"]
        self.embed, self.norm = nn.Embedding(vocabulary, width), nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            ForkLayer(width, heads, 4 * width, job["attention_dropout"], job["dropout"]) for _ in range(job["layers"])
        )
        self.dense, self.head_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        self.table = ALiBi(heads).dense(job["tokens"], dtype=torch.float32)
        self.dropout = job["dropout"]

    def loss(self, sample):
        tokens, target = sample["net_input"]["src_tokens"], sample["target"]
        x = F.dropout(self.norm(self.embed(tokens)), self.dropout).transpose(0, 1)
        length = tokens.size(1)
        bias = self.table[:, :length, :length].repeat(tokens.size(0), 1, 1)
        for layer in self.layers:
            x = layer(x, bias)
        masked = target.ne(1)
        x = self.head_norm(F.gelu(self.dense(x.transpose(0, 1)[masked])))
        return F.cross_entropy(F.linear(x, self.embed.weight, self.bias), target[masked], reduction="sum")


def fork(job, vocabulary):
    model = ForkModel(job, vocabulary)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(sample):
        model.loss(sample).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(job, vocabulary):
    dictionary = Dictionary()
    for number in range(vocabulary - len(dictionary)):
        dictionary.add_symbol(str(number))
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary, max_positions=lambda: None)
    args = Namespace(
        arch="roberta_alibi",
        encoder_layers=job["layers"],
        encoder_embed_dim=job["width"],
        encoder_ffn_embed_dim=4 * job["width"],
        encoder_attention_heads=job["heads"],
        dropout=job["dropout"],
        attention_dropout=job["attention_dropout"],
        max_positions=job["tokens"],
    )
    mode = "bf16" if job["dtype"] == "bfloat16" else "fp32"
    model = precision.cast_model(build_model(args, task), mode).train()
    criterion = build_criterion(SimpleNamespace(_name="masked_lm", tpu=False), task)
    cfg = SimpleNamespace(
        common=SimpleNamespace(bf16=mode == "bf16", fp16=False, memory_efficient_bf16=False),
        optimizer=FairseqAdamConfig(_name="adam", lr=[1e-4]),
        optimization=SimpleNamespace(lr=[1e-4]),
    )
    optimizer = precision.build(mode, cfg, model.named_parameters())

    def step(sample):
        loss, size, _ = criterion(model, sample)
        optimizer.backward(loss)
        optimizer.multiply_grads(1.0 / float(size))
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def batch(job, vocabulary, tokens):
    source = torch.randint(4, vocabulary, (job["batch"], tokens))
    masked = torch.rand(source.shape) < 0.15
    return {
        "net_input": {"src_tokens": source, "src_lengths": torch.full((job["batch"],), tokens)},
        "target": torch.where(masked, source, 1),
        "ntokens": source.numel(),
        "nsentences": job["batch"],
    }


def main():
    job = json.loads(sys.argv[1])
    vocabulary = job["vocabulary"]
    torch.manual_seed(1)
    step = {"fork": fork, "ours": ours}[job["path"]](job, vocabulary)
    for _ in range(2):
        step(batch(job, vocabulary, 32))  # libraries load, threads start, gradients and optimizer state come to be
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts again from here
    seconds, cpu = [], []
    for _ in range(job["steps"]):
        sample = batch(job, vocabulary, job["tokens"])
        start, used = time.perf_counter(), time.process_time()
        step(sample)
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    print(json.dumps({"seconds": min(seconds), "cpu": min(cpu), "mib": resident("VmHWM") - before}))


if __name__ == "__main__":
    main()
