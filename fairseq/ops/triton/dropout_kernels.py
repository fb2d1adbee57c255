"""The dropout decisions that ``fairseq/csrc/common/philox.h`` defines, for kernels in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

GROUP = tl.constexpr(8)  # neighboring columns that one counter decides about


@triton.jit
def kept(seed, row, threshold, WIDTH: tl.constexpr):
    """(len(row), WIDTH): whether dropout keeps the columns 0 to WIDTH - 1 of the rows ``row`` (int32)."""
    group = tl.arange(0, WIDTH // GROUP)
    a, b, c, d = tl.philox(seed, group[None, :], row[:, None], 0, 0)
    bar = threshold.to(tl.uint32)
    # Half t of the four words decides about column 8 * group + t: the new last dimensions are the bits of t.
    low = tl.join(tl.join((a & 0xFFFF) >= bar, (c & 0xFFFF) >= bar), tl.join((b & 0xFFFF) >= bar, (d & 0xFFFF) >= bar))
    high = tl.join(tl.join((a >> 16) >= bar, (c >> 16) >= bar), tl.join((b >> 16) >= bar, (d >> 16) >= bar))
    return tl.reshape(tl.join(low, high), (row.shape[0], WIDTH))
