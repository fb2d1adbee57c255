"""Launch, process group, gathering and reductions of data-parallel training."""

from __future__ import annotations

from fairseq.lazy import exporter

__getattr__, __dir__, __all__ = exporter(
    __name__,
    {
        "utils": "",
        "group": "",
        **dict.fromkeys(
            (
                "all_gather_list",
                "all_reduce_dict",
                "broadcast_object",
                "call_main",
                "distributed_init",
                "is_master",
                "get_global_rank",
                "get_global_world_size",
                "get_data_parallel_group",
                "get_data_parallel_rank",
                "get_data_parallel_world_size",
                "get_global_group",
            ),
            "utils",
        ),
    },
)
