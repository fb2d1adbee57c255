"""Kernels of flash-style attention: tiles of scores live in registers, nothing of (T, T) is in memory.

Forward: one program per tile of query rows walks over tiles of keys with a running softmax. Backward: the same walk
gives the gradient of q, and the row sums that the second kernel needs; that one takes a tile of keys and walks over
rows. Nothing is added by several programs to one place, so results are the same every time.

The bias is -slope |j - i - c|, c = 0 or, for the asymmetrical form, 1/4: what lies ahead is then nearer by a half than
what lies behind, and the 1/4 left over is the same in a whole row, where the softmax does not see it; the logarithm of
the row's sum does, and is put right by slope c. Scores are in units of log 2 (``exp2`` is what devices have).

A table has a row of 2 REACH + 1 numbers for every query or for every key, its owner: numbers of offsets up to REACH either
way, the outermost ones for all that is further away. Tiles that the band of nearer offsets does not touch need these
ends alone. Within the band an offset of an owner is one score, so one program stores its gradient; those of the ends
are sums of a program that meets all partners of its owners.

Legend: i query row, j key, both from the start of their own sequence; z place in the batch dimension of tensors, which
is 0 for packed sequences; D head width, WIDE the power of two that it is padded to; ROWS, KEYS sizes of a tile.
"""

# mypy: disallow-untyped-defs = False
# Triton reads the source of these functions: types other than its own are no part of it.

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
FAR = tl.constexpr(1 << 30)  # tokens: reaches everything
ZERO = tl.constexpr(152.0)  # 2^-150 is zero in float32 and every narrower type; 2 more for the rounding of a score
SLACK = tl.constexpr(1.02)  # a product of TensorFloat-32 numbers may exceed that of the norms by 2^-9 of it
GROUP = tl.constexpr(8)  # neighboring keys whose dropout one counter decides

# Numbers that change from batch to batch: no kernel is compiled again for a new one.
VARYING = ["batch", "tokens", "tiles", "far_tiles", "threshold"]
ANYWHERE = ["COUNTS", "STARTS", "SEED"]  # these may lie within other tensors


@triton.jit
def _place(STARTS, COUNTS, slot, z, batch, tokens, BLOCK: tl.constexpr, PACKED: tl.constexpr, COUNTED: tl.constexpr):
    """Where the tile ``slot`` lies: number of its sequence, first token of that, its rows, its keys, start of the tile.

    Packed, the slots of sequence b begin at starts[b] // BLOCK + b: these are at least as many as it has tiles, and
    their number is known without looking at lengths; those left over begin behind its end.
    """
    if PACKED:
        low = 0
        high = batch
        while high - low > 1:
            middle = (low + high) // 2
            before = tl.load(STARTS + middle) // BLOCK + middle <= slot
            low = tl.where(before, middle, low)
            high = tl.where(before, high, middle)
        first = tl.load(STARTS + low)
        rows = tl.load(STARTS + low + 1) - first
        return low, first, rows, rows, (slot - first // BLOCK - low) * BLOCK
    keys = tokens
    if COUNTED:
        keys = tl.load(COUNTS + z)
    return z, 0, tokens, keys, slot * BLOCK


@triton.jit
def _reach(NORMS, head, slope, scale, far_tiles, ALIBI: tl.constexpr):
    """Tokens beyond which the probability of a key is exactly zero, whatever the row.

    By Cauchy and Schwarz no product of a query and a key exceeds that of the largest norms, so the score of a key at
    distance d is at most 2 |q| |k| scale - slope d above that of the row's nearest key. Norms that are not finite and
    slopes that do not fall off reach everything.
    """
    reach = FAR
    if ALIBI:
        q = tl.load(NORMS + 2 * head, mask=far_tiles != 0, other=float("inf"))
        k = tl.load(NORMS + 2 * head + 1, mask=far_tiles != 0, other=float("inf"))
        tokens = (ZERO + 2 * SLACK * scale * tl.sqrt(q) * tl.sqrt(k)) / tl.maximum(slope, 1e-30) + 1
        reach = tl.where(tokens < FAR, tokens, FAR).to(tl.int32)
    return reach


@triton.jit
def _tile(P, at, stride, limit, D: tl.constexpr, WIDE: tl.constexpr):
    """Rows ``at`` of a matrix as (len(at), WIDE), zeros beyond ``limit`` and D."""
    column = tl.arange(0, WIDE)
    inside = (at < limit)[:, None]
    if D != WIDE:
        inside = inside & (column < D)[None, :]
    return tl.load(P + at[:, None] * stride + column[None, :], mask=inside, other=0.0)


@triton.jit
def _put(P, at, stride, limit, x, D: tl.constexpr, WIDE: tl.constexpr):
    column = tl.arange(0, WIDE)
    inside = (at < limit)[:, None]
    if D != WIDE:
        inside = inside & (column < D)[None, :]
    tl.store(P + at[:, None] * stride + column[None, :], x.to(P.dtype.element_ty), mask=inside)


@triton.jit
def _scores(a, b, distance, slope, scale, ALIBI: tl.constexpr, PRECISION: tl.constexpr):
    """a b' scale - slope |distance|"""
    s = tl.dot(a, tl.trans(b), input_precision=PRECISION) * scale
    if ALIBI:
        s -= slope * tl.abs(distance)
    return s


@triton.jit
def _number(TABLE, own, limit, offset, REACH: tl.constexpr):
    """Of the owners ``own``: the numbers of one offset, which is at most REACH either way."""
    number = tl.load(TABLE + own * (2 * REACH + 1) + offset + REACH, mask=own < limit, other=0.0)
    return number.to(tl.float32) * LOG2E


@triton.jit
def _ends(TABLE, own, limit, REACH: tl.constexpr, THERE: tl.constexpr):
    """Of the owners ``own``: the numbers of all that is at least REACH behind, and ahead; zeros without a table."""
    behind = tl.zeros(own.shape, tl.float32)
    ahead = tl.zeros(own.shape, tl.float32)
    if THERE:
        behind = _number(TABLE, own, limit, -REACH, REACH)
        ahead = _number(TABLE, own, limit, REACH, REACH)
    return behind, ahead


@triton.jit
def _band(i0, j0, ROWS: tl.constexpr, KEYS: tl.constexpr, REACH: tl.constexpr):
    """The offsets j - i nearer than REACH that a tile has: from the first, up to the second."""
    return tl.maximum(1 - REACH, j0 - i0 - ROWS + 1), tl.minimum(REACH, j0 + KEYS - i0)


@triton.jit
def _with_tables(
    s, BY_I, BY_J, i_behind, i_ahead, j_behind, j_ahead, i, j, rows, keys, i0, j0, REACH: tl.constexpr,
    HAS_I: tl.constexpr, HAS_J: tl.constexpr,
):  # fmt: skip
    """Scores with the numbers of tables, that of the first dimension's tokens ``i`` and that of the second's."""
    offset = j[None, :] - i[:, None]
    far = tl.zeros_like(s)
    if HAS_I:
        far += tl.where(offset > 0, i_ahead[:, None], i_behind[:, None])
    if HAS_J:
        far += tl.where(offset > 0, j_behind[None, :], j_ahead[None, :])
    s += tl.where(tl.abs(offset) < REACH, 0.0, far)
    low, high = _band(i0, j0, i.shape[0], j.shape[0], REACH)
    if low < high:
        for o in range(low, high):
            # What both tables have is added to one number first, as the reference implementation does.
            number = tl.zeros_like(s)
            if HAS_I:
                number += _number(BY_I, i, rows, o, REACH)[:, None]
            if HAS_J:
                number += _number(BY_J, j, keys, -o, REACH)[None, :]
            s = tl.where(offset == o, s + number, s)
    return s


@triton.jit
def _give_back(DTABLE, ds, own, other, limit, own0, other0, REACH: tl.constexpr):
    """Store gradients of the band for the owners, the first dimension; returns what the tile adds to those of the ends."""
    offset = other[None, :] - own[:, None]
    low, high = _band(own0, other0, own.shape[0], other.shape[0], REACH)
    if low < high:
        for o in range(low, high):
            partner = own + o - other0
            here = (own < limit) & (partner >= 0) & (partner < other.shape[0])
            found = tl.sum(tl.where(offset == o, ds, 0.0), 1)  # one number and zeros
            tl.store(DTABLE + own * (2 * REACH + 1) + o + REACH, found.to(DTABLE.dtype.element_ty), mask=here)
    behind = tl.sum(tl.where(offset <= -REACH, ds, 0.0), 1)
    ahead = tl.sum(tl.where(offset >= REACH, ds, 0.0), 1)
    return behind, ahead


@triton.jit
def _put_ends(DTABLE, behind, ahead, own, limit, REACH: tl.constexpr):
    row = DTABLE + own * (2 * REACH + 1)
    tl.store(row, behind.to(DTABLE.dtype.element_ty), mask=own < limit)
    tl.store(row + 2 * REACH, ahead.to(DTABLE.dtype.element_ty), mask=own < limit)


@triton.jit
def _kept(SEED, i, j0, head, threshold, KEYS: tl.constexpr, KEYS_FIRST: tl.constexpr):
    """Which probabilities dropout keeps: (len(i), KEYS), or (KEYS, len(i)); bits as in `dropout_factors`."""
    group = j0 // GROUP + tl.arange(0, KEYS // GROUP)
    bar = threshold.to(tl.uint32)
    if KEYS_FIRST:
        a, b, c, d = tl.philox(tl.load(SEED), group[:, None], i[None, :], head, 0)
    else:
        a, b, c, d = tl.philox(tl.load(SEED), group[None, :], i[:, None], head, 0)
    # Half t of the four words decides about key 8 * group + t: the new last dimensions are the bits of t.
    low = tl.join(tl.join((a & 0xFFFF) >= bar, (c & 0xFFFF) >= bar), tl.join((b & 0xFFFF) >= bar, (d & 0xFFFF) >= bar))
    high = tl.join(tl.join((a >> 16) >= bar, (c >> 16) >= bar), tl.join((b >> 16) >= bar, (d >> 16) >= bar))
    kept = tl.join(low, high)
    if KEYS_FIRST:
        kept = tl.reshape(tl.permute(kept, (0, 2, 3, 4, 1)), (KEYS, i.shape[0]))
    else:
        kept = tl.reshape(kept, (i.shape[0], KEYS))
    return kept


@triton.jit(do_not_specialize=["tokens", "chunks"])
def largest_norms(
    Q,
    K,
    OUT,
    q_z,
    q_h,
    q_t,
    k_z,
    k_h,
    k_t,
    heads,
    tokens,
    chunks,
    D: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The largest squared norms of q and of k in each chunk of ROWS tokens: OUT (Z, H, chunks, 2)."""
    chunk = tl.program_id(0) % chunks
    head = tl.program_id(0) // chunks
    z = (head // heads).to(tl.int64)
    h = head % heads
    at = chunk * ROWS + tl.arange(0, ROWS)
    q = _tile(Q + z * q_z + h * q_h, at, q_t, tokens, D, WIDE).to(tl.float32)
    k = _tile(K + z * k_z + h * k_h, at, k_t, tokens, D, WIDE).to(tl.float32)
    to = OUT + 2 * tl.program_id(0).to(tl.int64)
    tl.store(to, tl.max(tl.sum(q * q, 1), 0))
    tl.store(to + 1, tl.max(tl.sum(k * k, 1), 0))


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=ANYWHERE)
def forward(
    Q, K, V, SLOPES, NORMS, COUNTS, STARTS, SEED, QUERY_TABLE, KEY_TABLE, OUT, LSE,
    q_z, q_h, q_t, k_z, k_h, k_t, v_z, v_h, v_t,
    batch, heads, tokens, tiles, far_tiles, threshold, scale, kept_scale, center,
    D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    ALIBI: tl.constexpr, PACKED: tl.constexpr, COUNTED: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    REACH: tl.constexpr, BY_QUERY: tl.constexpr, BY_KEY: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) // tiles
    z = head // heads
    h = head % heads
    sequence, first, rows, keys, i0 = _place(
        STARTS, COUNTS, tl.program_id(0) % tiles, z, batch, tokens, ROWS, PACKED, COUNTED
    )
    if i0 >= rows:
        return
    first = tl.cast(first, tl.int64)
    z = tl.cast(z, tl.int64)
    K += z * k_z + h * k_h + first * k_t
    V += z * v_z + h * v_h + first * v_t
    slope = 0.0
    if ALIBI:
        slope = tl.load(SLOPES + h) * LOG2E
    reach = _reach(NORMS, head, slope, scale, far_tiles, ALIBI)
    table = (head.to(tl.int64) * tokens + first) * (2 * REACH + 1)
    QUERY_TABLE += table
    KEY_TABLE += table
    i = i0 + tl.arange(0, ROWS)
    query_behind, query_ahead = _ends(QUERY_TABLE, i, rows, REACH, BY_QUERY)
    q = _tile(Q + z * q_z + h * q_h + first * q_t, i, q_t, rows, D, WIDE)
    at = i.to(tl.float32) + center
    highest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDE], tl.float32)
    start = tl.maximum(tl.minimum(i0, keys - 1) - reach, 0) // KEYS * KEYS
    for j0 in range(start, tl.minimum(keys, i0 + ROWS + reach), KEYS):
        j = j0 + tl.arange(0, KEYS)
        k = _tile(K, j, k_t, keys, D, WIDE)
        s = _scores(q, k, j.to(tl.float32)[None, :] - at[:, None], slope, scale, ALIBI, PRECISION)
        if REACH:
            key_behind, key_ahead = _ends(KEY_TABLE, j, keys, REACH, BY_KEY)
            s = _with_tables(
                s, QUERY_TABLE, KEY_TABLE, query_behind, query_ahead, key_behind, key_ahead, i, j, rows, keys, i0, j0,
                REACH, BY_QUERY, BY_KEY,
            )  # fmt: skip
        s = tl.where((j < keys)[None, :], s, -float("inf"))
        higher = tl.maximum(highest, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(p, 1)
        if DROPOUT:
            p = tl.where(_kept(SEED, i, j0, sequence * heads + h, threshold, KEYS, False), p, 0.0)
        v = _tile(V, j, v_t, keys, D, WIDE)
        mixed = tl.dot(p.to(v.dtype), v, mixed * shrink[:, None], input_precision=PRECISION)
        highest = higher
    found = total != 0  # NaN is passed on
    total = tl.where(found, total, 1.0)
    mixed = mixed * tl.where(found, kept_scale / total, 0.0)[:, None]
    _put(OUT + ((z * tokens + first) * heads + h) * D, i, heads * D, rows, mixed, D, WIDE)
    sums = tl.where(found, (highest + tl.log2(total) + slope * center) / LOG2E, float("inf"))
    tl.store(LSE + head.to(tl.int64) * tokens + first + i, sums, mask=i < rows)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=ANYWHERE)
def backward_queries(
    DOUT, Q, K, V, OUT, LSE, SLOPES, NORMS, COUNTS, STARTS, SEED, QUERY_TABLE, KEY_TABLE,
    DQ, DELTA, DTABLE,
    q_z, q_h, q_t, k_z, k_h, k_t, v_z, v_h, v_t,
    batch, heads, tokens, tiles, far_tiles, threshold, scale, kept_scale, center,
    D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    ALIBI: tl.constexpr, PACKED: tl.constexpr, COUNTED: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    REACH: tl.constexpr, BY_QUERY: tl.constexpr, BY_KEY: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) // tiles
    z = head // heads
    h = head % heads
    sequence, first, rows, keys, i0 = _place(
        STARTS, COUNTS, tl.program_id(0) % tiles, z, batch, tokens, ROWS, PACKED, COUNTED
    )
    if i0 >= rows:
        return
    first = tl.cast(first, tl.int64)
    z = tl.cast(z, tl.int64)
    K += z * k_z + h * k_h + first * k_t
    V += z * v_z + h * v_h + first * v_t
    out = ((z * tokens + first) * heads + h) * D
    sums = head.to(tl.int64) * tokens + first
    slope = 0.0
    if ALIBI:
        slope = tl.load(SLOPES + h) * LOG2E
    reach = _reach(NORMS, head, slope, scale, far_tiles, ALIBI)
    table = (head.to(tl.int64) * tokens + first) * (2 * REACH + 1)
    QUERY_TABLE += table
    KEY_TABLE += table
    i = i0 + tl.arange(0, ROWS)
    query_behind, query_ahead = _ends(QUERY_TABLE, i, rows, REACH, BY_QUERY)
    behind = tl.zeros([ROWS], tl.float32)
    ahead = tl.zeros([ROWS], tl.float32)
    q = _tile(Q + z * q_z + h * q_h + first * q_t, i, q_t, rows, D, WIDE)
    up = _tile(DOUT + out, i, heads * D, rows, D, WIDE)
    delta = tl.sum(up.to(tl.float32) * _tile(OUT + out, i, heads * D, rows, D, WIDE).to(tl.float32), 1)
    tl.store(DELTA + sums + i, delta, mask=i < rows)
    lse = tl.load(LSE + sums + i, mask=i < rows, other=float("inf")) * LOG2E - slope * center
    at = i.to(tl.float32) + center
    dq = tl.zeros([ROWS, WIDE], tl.float32)
    start = tl.maximum(tl.minimum(i0, keys - 1) - reach, 0) // KEYS * KEYS
    for j0 in range(start, tl.minimum(keys, i0 + ROWS + reach), KEYS):
        j = j0 + tl.arange(0, KEYS)
        k = _tile(K, j, k_t, keys, D, WIDE)
        v = _tile(V, j, v_t, keys, D, WIDE)
        s = _scores(q, k, j.to(tl.float32)[None, :] - at[:, None], slope, scale, ALIBI, PRECISION)
        if REACH:
            key_behind, key_ahead = _ends(KEY_TABLE, j, keys, REACH, BY_KEY)
            s = _with_tables(
                s, QUERY_TABLE, KEY_TABLE, query_behind, query_ahead, key_behind, key_ahead, i, j, rows, keys, i0, j0,
                REACH, BY_QUERY, BY_KEY,
            )  # fmt: skip
        p = tl.exp2(tl.where((j < keys)[None, :], s, -float("inf")) - lse[:, None])
        dp = tl.dot(up, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            dp = tl.where(_kept(SEED, i, j0, sequence * heads + h, threshold, KEYS, False), dp * kept_scale, 0.0)
        ds = p * (dp - delta[:, None])
        if BY_QUERY:
            more_behind, more_ahead = _give_back(DTABLE + table, ds, i, j, rows, i0, j0, REACH)
            behind += more_behind
            ahead += more_ahead
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    _put(DQ + out, i, heads * D, rows, dq * (scale / LOG2E), D, WIDE)
    if BY_QUERY:
        _put_ends(DTABLE + table, behind, ahead, i, rows, REACH)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=ANYWHERE)
def backward_keys(
    DOUT, Q, K, V, DELTA, LSE, SLOPES, NORMS, COUNTS, STARTS, SEED, QUERY_TABLE, KEY_TABLE,
    DK, DV, DTABLE,
    q_z, q_h, q_t, k_z, k_h, k_t, v_z, v_h, v_t,
    batch, heads, tokens, tiles, far_tiles, threshold, scale, kept_scale, center,
    D: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    ALIBI: tl.constexpr, PACKED: tl.constexpr, COUNTED: tl.constexpr, DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
    REACH: tl.constexpr, BY_QUERY: tl.constexpr, BY_KEY: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) // tiles
    z = head // heads
    h = head % heads
    sequence, first, rows, keys, j0 = _place(
        STARTS, COUNTS, tl.program_id(0) % tiles, z, batch, tokens, KEYS, PACKED, COUNTED
    )
    if j0 >= rows:
        return
    first = tl.cast(first, tl.int64)
    z = tl.cast(z, tl.int64)
    Q += z * q_z + h * q_h + first * q_t
    out = ((z * tokens + first) * heads + h) * D
    sums = head.to(tl.int64) * tokens + first
    slope = 0.0
    if ALIBI:
        slope = tl.load(SLOPES + h) * LOG2E
    reach = _reach(NORMS, head, slope, scale, far_tiles, ALIBI)
    table = (head.to(tl.int64) * tokens + first) * (2 * REACH + 1)
    QUERY_TABLE += table
    KEY_TABLE += table
    j = j0 + tl.arange(0, KEYS)
    key_behind, key_ahead = _ends(KEY_TABLE, j, keys, REACH, BY_KEY)
    behind = tl.zeros([KEYS], tl.float32)
    ahead = tl.zeros([KEYS], tl.float32)
    k = _tile(K + z * k_z + h * k_h + first * k_t, j, k_t, keys, D, WIDE)
    v = _tile(V + z * v_z + h * v_h + first * v_t, j, v_t, keys, D, WIDE)
    dk = tl.zeros([KEYS, WIDE], tl.float32)
    dv = tl.zeros([KEYS, WIDE], tl.float32)
    # Rows of padding have no key of their own and look at the last ones: those that they reach, all of them reach.
    end = tl.where(j0 + KEYS + reach >= keys, rows, j0 + KEYS + reach)
    end = tl.where(j0 < keys, end, 0)
    for i0 in range(tl.maximum(j0 - reach, 0) // ROWS * ROWS, end, ROWS):
        i = i0 + tl.arange(0, ROWS)
        q = _tile(Q, i, q_t, rows, D, WIDE)
        up = _tile(DOUT + out, i, heads * D, rows, D, WIDE)
        lse = tl.load(LSE + sums + i, mask=i < rows, other=float("inf")) * LOG2E - slope * center
        delta = tl.load(DELTA + sums + i, mask=i < rows, other=0.0)
        distance = j.to(tl.float32)[:, None] - (i.to(tl.float32) + center)[None, :]
        s = _scores(k, q, distance, slope, scale, ALIBI, PRECISION)
        if REACH:
            query_behind, query_ahead = _ends(QUERY_TABLE, i, rows, REACH, BY_QUERY)
            s = _with_tables(
                s, KEY_TABLE, QUERY_TABLE, key_behind, key_ahead, query_behind, query_ahead, j, i, keys, rows, j0, i0,
                REACH, BY_KEY, BY_QUERY,
            )  # fmt: skip
        p = tl.exp2(tl.where((j < keys)[:, None], s, -float("inf")) - lse[None, :])  # (KEYS, ROWS)
        dp = tl.dot(v, tl.trans(up), input_precision=PRECISION)
        dropped = p
        if DROPOUT:
            kept = _kept(SEED, i, j0, sequence * heads + h, threshold, KEYS, True)
            dropped = tl.where(kept, p, 0.0)
            dp = tl.where(kept, dp * kept_scale, 0.0)
        dv = tl.dot(dropped.to(up.dtype), up, dv, input_precision=PRECISION)
        ds = p * (dp - delta[None, :])
        if BY_KEY:
            more_behind, more_ahead = _give_back(DTABLE + table, ds, j, i, keys, j0, i0, REACH)
            behind += more_behind
            ahead += more_ahead
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    _put(DK + out, j, heads * D, rows, dk * (scale / LOG2E), D, WIDE)
    _put(DV + out, j, heads * D, rows, dv * kept_scale, D, WIDE)
    if BY_KEY:
        _put_ends(DTABLE + table, behind, ahead, j, keys, REACH)
