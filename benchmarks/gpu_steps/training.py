"""Step 6: training of the base model, plain and with ALiBi, eager and compiled, beside Transformers with SDPA; bf16.

16,384 tokens an update, without padding, dropout 0.1. Ours is what ``fairseq-train`` runs with ``--bf16``; Transformers a plain
loop with autocast, clipping and fused AdamW, as its own Trainer does it. The share is of the product rate of step 1.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

from gpu_steps.runs import Size, base_size, make_trainer
from gpu_steps.setting import Case, Row, Setting

WARM_UP, UPDATES = 3, 12


def cases(setting: Setting) -> list[Case]:
    found = []
    for tokens in (16, 32) if setting.tiny else (512, 2048):
        for compiled in (False, True):
            for arch in ("roberta_base", "roberta_alibi"):
                name = f"{arch}, T {tokens}, {'compiled' if compiled else 'eager'}"
                run = functools.partial(ours, setting, arch, tokens, compiled)
                found.append(Case(name, run, least=20 if compiled else 10, limit=120 if compiled else 60))
            if not compiled:
                run = functools.partial(theirs, setting, tokens)
                found.append(Case(f"transformers, T {tokens}, sdpa", run, least=10))
    return found


def ours(setting: Setting, arch: str, tokens: int, compiled: bool) -> Row:
    size = base_size(setting, tokens)
    updates = WARM_UP + setting.size(UPDATES, 1)
    torch.compiler.reset()  # what was compiled for another model does not count against the limit of this one
    trainer, batches = make_trainer(setting, arch, size, updates, "--bf16", *["--compile"] * compiled)
    row = timed(setting, size, [functools.partial(trainer.train_step, [batch]) for batch in batches])
    return {"who": arch, "tokens": tokens, "compiled": compiled, **row}


def theirs(setting: Setting, tokens: int) -> Row:
    size = base_size(setting, tokens)
    step = transformers_step(setting, size)
    row = timed(setting, size, [step] * (WARM_UP + setting.size(UPDATES, 1)))
    return {"who": "transformers", "tokens": tokens, "compiled": False, **row}


def transformers_step(setting: Setting, size: Size) -> Callable[[], object]:
    """One update of ``RobertaForMaskedLM``."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    config = RobertaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.width,
        max_position_embeddings=size.tokens + 2,
        type_vocab_size=1,
        pad_token_id=1,
        attn_implementation="sdpa",
    )
    model = RobertaForMaskedLM(config).to(setting.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    shape = (size.per_update // size.tokens, size.tokens)
    ids = torch.randint(4, size.vocabulary - 1, shape, device=setting.device)
    labels = torch.where(torch.rand(shape, device=setting.device) < 0.15, ids, -100)

    def step() -> None:
        with torch.autocast(setting.device, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(setting: Setting, size: Size, steps: list[Callable[[], object]]) -> Row:
    """Tokens a second over the updates after the first ones; what waits for the device within them does so here too."""
    start = time.perf_counter()
    for step in steps[:WARM_UP]:
        step()
    setting.synchronize()
    warm_up = time.perf_counter() - start
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for step in steps[WARM_UP:]:
        step()
    setting.synchronize()
    rate = size.per_update * len(steps[WARM_UP:]) / (time.perf_counter() - start)
    row: Row = {"tokens/s": rate, "TFLOP/s": rate * size.flop_per_token * 1e-12, "warm-up s": round(warm_up, 2)}
    ceiling = setting.found.get("machine", {}).get("product", {}).get("TFLOP/s")
    row["share"] = row["TFLOP/s"] / ceiling if ceiling else None
    row["MiB"] = round(torch.cuda.max_memory_allocated() / 2**20) if setting.device == "cuda" else None
    return row
