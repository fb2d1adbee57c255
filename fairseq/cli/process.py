"""The start of every command that runs a model."""

from __future__ import annotations

from fairseq.cli import allocator, threads


def prepare_to_compute() -> None:
    """Set up memory and threads of this process; best called before torch is loaded."""
    allocator.tune()
    threads.limit()
