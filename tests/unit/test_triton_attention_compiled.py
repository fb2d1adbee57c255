"""The kernels of flash-style attention compiled for devices, without one: what they multiply with, and that registers are enough."""

from __future__ import annotations

import pytest
import torch

from fairseq.ops import flash_attention as flash
from tests.triton_tools import DEVICES, compile_for, needs_triton


def arguments(kernel, blocks, dtype, width, dropout, alibi, packed, tables):
    """Those of a launch, as `compile_for` takes them."""
    numbers = dict.fromkeys(("LSE", "DELTA", "SLOPES", "NORMS"), torch.float32)
    numbers |= {"COUNTS": torch.int32, "STARTS": torch.int32, "SEED": torch.int64}
    numbers |= {"heads": 12, "scale": 0.125, "kept_scale": 1.25, "center": 0.25}
    numbers |= {"D": width, "WIDE": flash._padded(width), "ROWS": blocks.rows, "KEYS": blocks.keys}
    numbers |= {"ALIBI": alibi, "PACKED": packed, "COUNTED": not packed, "DROPOUT": dropout, "PRECISION": "ieee"}
    numbers |= {"REACH": 8 * tables, "BY_QUERY": tables, "BY_KEY": tables}
    # Strides are multiples of 16; of what changes from batch to batch nothing is known.
    others = {name: dtype if name.isupper() else 768 if "_" in name[:2] else 1001 for name in kernel.arg_names}
    return others | {name: value for name, value in numbers.items() if name in others}


def check_compiled(name, device, dtype, width, folder, dropout, alibi=True, packed=False, tables=False):
    from fairseq.ops.triton import attention_kernels

    kernel = getattr(attention_kernels, name)
    blocks = flash.blocks(name, width, dtype.itemsize, device // 10, tables)
    given = arguments(kernel, blocks, dtype, width, dropout, alibi, packed, tables)
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages, "enable_fp_fusion": True}
    compiled = compile_for(device, kernel, given, folder, **options)
    if dtype.itemsize == 2:
        assert ("wgmma.mma_async" if device >= 90 else "mma.sync") in compiled.ptx
        assert (
            compiled.spilled <= 64
        )  # bytes of a thread; the newest compilers need none, older ones some outside of loops
        assert "cp.async" in compiled.ptx  # tiles are on their way while others are multiplied
    # Ten rounds of two high products for 8 keys, less what the first rounds share: no thread draws what another does.
    counters = blocks.rows * blocks.keys // 8 // (32 * blocks.warps)
    high = compiled.ptx.count("mul.hi.u32")
    assert high <= (20 * counters if dropout else 4)
    assert not dropout or high >= 10 * counters


@needs_triton
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["forward", "backward_queries", "backward_keys"])
@pytest.mark.parametrize("tables", [False, True])
def test_kernels_compile_for_devices(name, device, tables, tmp_path):
    check_compiled(name, device, torch.bfloat16, 64, tmp_path, dropout=True, tables=tables)


@needs_triton
@pytest.mark.parametrize("name", ["forward", "backward_queries", "backward_keys"])
def test_new_lengths_compile_nothing(name):
    """Numbers that change from batch to batch are not looked at when a compiled kernel is chosen."""
    from fairseq.ops.triton import attention_kernels

    looked_at = {
        p.name for p in getattr(attention_kernels, name).params if not p.do_not_specialize and not p.is_constexpr
    }
    varying = {"batch", "tokens", "tiles", "far_tiles", "threshold"}
    assert not looked_at & varying and "q_t" in looked_at


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["forward", "backward_queries", "backward_keys"])
@pytest.mark.parametrize("width", [32, 40, 64, 96, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dropout, alibi, packed", [(True, True, False), (False, True, True), (True, False, True)])
@pytest.mark.parametrize("tables", [False, True])
def test_all_kernels_compile_for_devices(name, device, dtype, width, dropout, alibi, packed, tables, tmp_path):
    check_compiled(name, device, dtype, width, tmp_path, dropout, alibi, packed, tables)
