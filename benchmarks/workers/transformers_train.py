"""Trains Transformers' RobertaForMaskedLM in a plain PyTorch loop on a data-bin and reports when each update ended.

    python transformers_train.py REPORT.json SETTINGS.json

Masking, labels of -100 elsewhere, gradient clipping and AdamW are what Transformers' own Trainer does by default
(fused AdamW included); the loop around them is the smallest possible, which favours this contestant.
REPORT.json as in fairseq_train.py. Shapes: B batch, T tokens of a sample, bos included.
"""

import contextlib
import json
import sys
import time

import numpy as np
import torch
from transformers import RobertaConfig, RobertaForMaskedLM


def batches(settings, generator):
    """Yield (ids, labels), both (B, T): 15 % of the positions are targets, of them 80 % mask, 10 % random."""
    stream = torch.from_numpy(np.fromfile(settings["stream"], dtype=np.uint16).astype(np.int64))
    batch, tokens, vocabulary = settings["batch"], settings["tokens"], settings["vocabulary"]
    step = batch * (tokens - 1)
    for start in range(0, len(stream) - step, step):
        text = stream[start : start + step].view(batch, tokens - 1)
        ids = torch.cat([torch.zeros(batch, 1, dtype=torch.long), text], dim=1)
        chosen = torch.rand(batch, tokens, generator=generator) < settings["mask_prob"]
        labels = torch.where(chosen, ids, -100)
        draw = torch.rand(batch, tokens, generator=generator)
        ids = torch.where(chosen & (draw < 0.8), vocabulary - 1, ids)
        noise = torch.randint(4, vocabulary - 1, (batch, tokens), generator=generator)
        yield torch.where(chosen & (draw > 0.9), noise, ids), labels


def main():
    report = sys.argv[1]
    with open(sys.argv[2]) as file:
        settings = json.load(file)
    torch.manual_seed(1)
    model = RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=settings["vocabulary"],
            hidden_size=settings["width"],
            num_hidden_layers=settings["layers"],
            num_attention_heads=settings["heads"],
            intermediate_size=settings["ffn"],
            max_position_embeddings=settings["tokens"] + 2,
            hidden_dropout_prob=settings["dropout"],
            attention_probs_dropout_prob=settings["dropout"],
            type_vocab_size=1,
            pad_token_id=1,
        )
    )
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.01, fused=True
    )
    generator = torch.Generator().manual_seed(1)
    bf16 = settings["bf16"]
    starts, ends, cpu = [], [], []
    for (ids, labels), _ in zip(batches(settings, generator), range(settings["updates"])):  # noqa: B905
        starts.append(time.time())
        with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else contextlib.nullcontext():
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        ends.append(time.time())
        cpu.append(time.process_time())
    with open(report, "w") as file:
        facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), "loss": loss.item()}
        facts["attention"] = model.config._attn_implementation
        json.dump({"starts": starts, "ends": ends, "cpu": cpu, **facts}, file)


if __name__ == "__main__":
    main()
