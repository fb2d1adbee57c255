"""Step 7: which goals the figures meet. A figure that is missing makes a goal "not measured"."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gpu_steps.attention import FLASH
from gpu_steps.setting import Row

Found = dict[str, dict[str, Row]]


def goals(found: Found) -> list[Row]:
    """Name, what is wanted, what was found, and ``met``, ``not met`` or ``not measured``."""
    rows = []
    for dropout in (0.0, 0.1):
        value, best = attention(found, dropout)
        name = f"attention with ALiBi, T 2048, dropout {dropout}: share of the speed of flash without bias"
        rows.append({**goal(name, 0.6, value), "backend": best})
    for tokens in (512, 2048):
        for compiled in (False, True):
            how = "compiled" if compiled else "eager"
            value = ratio(*(speed(found, arch, tokens, compiled) for arch in ("roberta_alibi", "roberta_base")))
            rows.append(goal(f"training with ALiBi, T {tokens}, {how}: share of the plain model's speed", 0.9, value))
    plain = trained(found, "roberta_base", 512, True)
    rows.append(goal("base model, T 512, compiled: share of the product rate", 0.45, plain.get("share")))
    value = ratio(plain.get("tokens/s"), speed(found, "transformers", 512, False))
    rows.append(goal("base model, T 512, compiled: times Transformers", 1.3, value))
    waits = found.get("waits", {}).get("roberta_alibi, bf16", {}).get("waits")
    rows.append(goal("waits of an update, ALiBi, bf16", 1, waits, at_most=True))
    return rows


def goal(name: str, wanted: float, value: float | None, at_most: bool = False) -> Row:
    row: Row = {"goal": name, "wanted": wanted, "found": value}
    if value is None:
        return {**row, "status": "not measured"}
    met = value <= wanted if at_most else value >= wanted
    return {**row, "status": "met" if met else "not met"}


def ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def attention(found: Found, dropout: float) -> tuple[float | None, str | None]:
    """The time of torch's flash kernel through that of the quickest backend, forward and backward; which one it is."""
    wanted = {"tokens": 2048, "dropout": dropout, "backward": True}
    times = {row["backend"]: row["ms"] for row in ok(found, "attention") if wanted.items() <= row.items()}
    flash = times.pop(FLASH, None)
    best = min(times, key=lambda name: times[name], default=None)
    return (None, None) if best is None else (ratio(flash, times[best]), best)


def trained(found: Found, who: str, tokens: int, compiled: bool) -> Row:
    wanted = {"who": who, "tokens": tokens, "compiled": compiled}
    return next((row for row in ok(found, "training") if wanted.items() <= row.items()), {})


def speed(found: Found, who: str, tokens: int, compiled: bool) -> Any:
    return trained(found, who, tokens, compiled).get("tokens/s")


def ok(found: Found, step: str) -> Iterable[Row]:
    return [row for row in found.get(step, {}).values() if row["status"] == "ok"]
