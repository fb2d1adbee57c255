"""Process group, reductions and wrapping for data-parallel training."""

from __future__ import annotations

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "utils": "",
        **dict.fromkeys(
            (
                "call_main",
                "is_master",
                "get_global_rank",
                "get_global_world_size",
                "get_data_parallel_rank",
                "get_data_parallel_world_size",
            ),
            "utils",
        ),
    },
)
