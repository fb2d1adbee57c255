// fairseq::ssm_chunks on the CPU. Reference implementation and formulas: fairseq/ops/ssm.py.
//
// Work is split into blocks of 64 channels of a sequence; each goes through its chunks in order, and keeps the state in
// the cache. Inputs are read and outputs written where they lie. The gradients of the matrices are added up over a fixed
// number of groups of blocks first, so that results do not depend on the number of threads. Scratch memory of the
// backward pass: the states of one block of channels for each thread.
//
// Legend: B sequences, L positions, C channels, N modes, S = 2N numbers of a state, Q positions of a chunk, M chunks,
// W channels of a block.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "elements.h"
#include "products.h"
#include "vector_rows.h"

namespace fairseq {
namespace {

constexpr int64_t kColumns = 64, kGroups = 32;

// state = turn * state + added, as complex numbers; all (S, W).
template <typename acc>
FS_CLONES void advance(acc* state, const acc* added, const acc* turn, int64_t modes, int64_t columns) {
  for (int64_t n = 0; n < modes; ++n) {
    const acc by_re = turn[n], by_im = turn[modes + n];
    acc *re = state + n * columns, *im = re + modes * columns;
    const acc *more_re = added + n * columns, *more_im = more_re + modes * columns;
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) {
      const acc a = re[c], b = im[c];
      re[c] = by_re * a - by_im * b + more_re[c];
      im[c] = by_re * b + by_im * a + more_im[c];
    }
  }
}

// dturn += the gradient of the factor between `before`, the state before it, and what `up` is the gradient of.
template <typename acc>
FS_CLONES void turn_gradient(const acc* up, const acc* before, int64_t modes, int64_t columns, acc* dturn) {
  for (int64_t n = 0; n < modes; ++n) {
    const acc *p = up + n * columns, *q = p + modes * columns, *a = before + n * columns, *b = a + modes * columns;
    acc re = 0, im = 0;
#pragma omp simd reduction(+ : re, im)
    for (int64_t c = 0; c < columns; ++c) {
      re += p[c] * a[c] + q[c] * b[c];
      im += q[c] * a[c] - p[c] * b[c];
    }
    dturn[n] += re;
    dturn[modes + n] += im;
  }
}

template <typename acc>
struct Matrices {  // dense, row after row
  const acc *within, *into, *out, *turn;
};

// The chunks of a block of channels of one sequence.
template <typename T, typename acc>
struct Block {
  int64_t length, channels, size, modes, first, columns;  // size: Q; first: its first channel
  bool reverse;

  int64_t chunks() const { return (length + size - 1) / size; }
  int64_t at(int64_t step) const { return reverse ? chunks() - 1 - step : step; }
  int64_t rows(int64_t chunk) const { return std::min(size, length - chunk * size); }
  int64_t offset(int64_t chunk) const { return chunk * size * channels + first; }

  // Rows of a chunk as numbers to compute with: where they are, if they are such numbers, or in `scratch` (Q, W).
  std::pair<const acc*, int64_t> read(const T* from, int64_t chunk, acc* scratch) const {
    if constexpr (std::is_same_v<T, acc>) {
      return {from + offset(chunk), channels};
    } else {
      const T* source = from + offset(chunk);
      for (int64_t r = 0; r < rows(chunk); ++r)
        for (int64_t c = 0; c < columns; ++c) scratch[r * columns + c] = widen(source[r * channels + c]);
      return {scratch, columns};
    }
  }
  std::pair<acc*, int64_t> target(T* to, int64_t chunk, acc* scratch) const {
    if constexpr (std::is_same_v<T, acc>) {
      return {to + offset(chunk), channels};
    } else {
      return {scratch, columns};
    }
  }
  void write(const acc* scratch, T* to, int64_t chunk) const {
    if constexpr (!std::is_same_v<T, acc>) {
      T* target = to + offset(chunk);
      for (int64_t r = 0; r < rows(chunk); ++r)
        for (int64_t c = 0; c < columns; ++c) target[r * channels + c] = narrow<T>(scratch[r * columns + c]);
    }
  }
};

template <typename T, typename acc>
void forward_block(const Block<T, acc>& block, const Matrices<acc>& by, const T* u, T* y) {
  const int64_t states = 2 * block.modes, columns = block.columns, size = block.size, last = block.chunks() - 1;
  Buffer<acc> state(states * columns), added(states * columns), inputs(size * columns), outputs(size * columns);
  std::fill(state.data, state + states * columns, acc(0));
  for (int64_t step = 0; step <= last; ++step) {
    const int64_t chunk = block.at(step), rows = block.rows(chunk);
    const auto [x, ld] = block.read(u, chunk, inputs);
    const auto [out, ld_out] = block.target(y, chunk, outputs);
    product(rows, columns, rows, by.within, size, x, ld, out, ld_out, false);
    if (step > 0) product(rows, columns, states, by.out, states, state, columns, out, ld_out, true);
    block.write(out, y, chunk);
    if (step == last) break;
    product(states, columns, rows, by.into, size, x, ld, added, columns, false);
    advance<acc>(state, added, by.turn, block.modes, columns);
  }
}

// Sums over blocks: gradients of the matrices, the one of `out` transposed.
template <typename acc>
struct Gradients {
  acc *within, *into, *out, *turn;
};

// `back` holds the matrices' transposes, and the conjugate of the factor.
template <typename T, typename acc>
void backward_block(const Block<T, acc>& block, const Matrices<acc>& by, const Matrices<acc>& back, const T* grad, const T* u,
                    T* du, const Gradients<acc>& sums) {
  const int64_t modes = block.modes, states = 2 * modes, columns = block.columns, size = block.size;
  const int64_t last = block.chunks() - 1, area = states * columns, padded = (size + 7) / 8 * 8;
  Buffer<acc> before(area * (last + 1)), added(area), inputs(size * columns), upstream(size * columns),
      outputs(size * columns), xt(padded * columns), gt(padded * columns);
  std::fill(before.data, before + area, acc(0));
  for (int64_t step = 0; step < last; ++step) {  // the states before each chunk, again
    const int64_t chunk = block.at(step);
    const auto [x, ld] = block.read(u, chunk, inputs);
    product(states, columns, block.rows(chunk), by.into, size, x, ld, added, columns, false);
    acc* next = before + area * (step + 1);
    std::copy_n(before + area * step, area, next);
    advance<acc>(next, added, by.turn, modes, columns);
  }
  Buffer<acc> carried(area);  // gradient of the state after a chunk
  for (int64_t step = last; step >= 0; --step) {
    const int64_t chunk = block.at(step), rows = block.rows(chunk);
    const acc* state = before + area * step;
    const auto [x, ld] = block.read(u, chunk, inputs);
    const auto [up, ld_up] = block.read(grad, chunk, upstream);
    const auto [out, ld_out] = block.target(du, chunk, outputs);
    product(rows, columns, rows, back.within, size, up, ld_up, out, ld_out, false);
    copy_turned<acc, acc>(x, ld, rows, xt, padded, columns, padded, acc(1));
    product(rows, rows, columns, up, ld_up, xt, padded, sums.within, size, true);
    if (step < last) {
      product(rows, columns, states, back.into, states, carried, columns, out, ld_out, true);
      product(states, rows, columns, carried, columns, xt, padded, sums.into, size, true);
    }
    block.write(out, du, chunk);
    if (step == 0) break;
    copy_turned<acc, acc>(up, ld_up, rows, gt, padded, columns, padded, acc(1));
    product(states, rows, columns, state, columns, gt, padded, sums.out, size, true);
    product(states, columns, rows, back.out, size, up, ld_up, added, columns, false);
    if (step == last) {
      std::copy_n(added.data, area, carried.data);
    } else {
      turn_gradient<acc>(carried, state, modes, columns, sums.turn);
      advance<acc>(carried, added, back.turn, modes, columns);
    }
  }
}

void check(const at::Tensor& u, const at::Tensor& within, const at::Tensor& into, const at::Tensor& out, const at::Tensor& turn) {
  const auto type = u.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const int64_t size = within.size(0), states = into.size(0);
  TORCH_CHECK(u.dim() == 3, "u must be (B, L, C)");
  TORCH_CHECK(within.sizes() == at::IntArrayRef({size, size}) && into.sizes() == at::IntArrayRef({states, size}) &&
                  out.sizes() == at::IntArrayRef({size, states}) && turn.sizes() == at::IntArrayRef({2, states / 2}),
              "the matrices must be (Q, Q), (2N, Q), (Q, 2N) and (2, N)");
  for (const at::Tensor& x : {within, into, out, turn})
    TORCH_CHECK(x.scalar_type() == type && x.is_cpu(), "the matrices must be of the type that u is computed in");
}

// f(block, offset of its sequence) for the blocks of each of `groups` groups; f is given the group's number, too.
template <typename T, typename acc, class F>
void for_blocks(const at::Tensor& u, int64_t size, int64_t modes, bool reverse, int64_t groups, F f) {
  const int64_t length = u.size(1), channels = u.size(2), across = (channels + kColumns - 1) / kColumns;
  const int64_t blocks = u.size(0) * across;
  at::parallel_for(0, groups, 1, [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    for (int64_t group = begin; group < end; ++group)
      for (int64_t i = blocks * group / groups; i < blocks * (group + 1) / groups; ++i) {
        const int64_t first = i % across * kColumns;
        f(Block<T, acc>{length, channels, size, modes, first, std::min(kColumns, channels - first), reverse},
          i / across * length * channels, group);
      }
  });
}

int64_t groups_of(const at::Tensor& u, int64_t most) {
  return std::min(most, u.size(0) * ((u.size(2) + kColumns - 1) / kColumns));
}

template <typename acc>
Matrices<acc> pointers(const at::Tensor& within, const at::Tensor& into, const at::Tensor& out, const at::Tensor& turn) {
  return {within.const_data_ptr<acc>(), into.const_data_ptr<acc>(), out.const_data_ptr<acc>(), turn.const_data_ptr<acc>()};
}

at::Tensor ssm_chunks(const at::Tensor& u, const at::Tensor& within, const at::Tensor& into, const at::Tensor& out,
                      const at::Tensor& turn, bool reverse) {
  check(u, within, into, out, turn);
  const at::Tensor x = u.contiguous(), w = within.contiguous(), i = into.contiguous(), o = out.contiguous(), t = turn.contiguous();
  const at::Tensor y = at::empty_like(x, at::MemoryFormat::Contiguous);
  for_floating_type(u.scalar_type(), "ssm_chunks", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using acc = Wide<T>;
    const Matrices<acc> by = pointers<acc>(w, i, o, t);
    const T* from = x.const_data_ptr<T>();
    T* to = y.mutable_data_ptr<T>();
    for_blocks<T, acc>(x, w.size(0), t.size(1), reverse, groups_of(x, INT64_MAX), [&](const auto& block, int64_t start, int64_t) {
      forward_block<T, acc>(block, by, from + start, to + start);
    });
  });
  return y;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> ssm_chunks_backward(
    const at::Tensor& grad, const at::Tensor& u, const at::Tensor& within, const at::Tensor& into, const at::Tensor& out,
    const at::Tensor& turn, bool reverse) {
  check(u, within, into, out, turn);
  TORCH_CHECK(grad.sizes() == u.sizes() && grad.scalar_type() == u.scalar_type(), "the gradient must be like u");
  const at::Tensor g = grad.contiguous(), x = u.contiguous(), w = within.contiguous(), i = into.contiguous(),
                   o = out.contiguous(), t = turn.contiguous();
  const at::Tensor wt = w.t().contiguous(), it = i.t().contiguous(), ot = o.t().contiguous(), tc = t.clone();
  tc.select(0, 1).neg_();
  const at::Tensor du = at::empty_like(x, at::MemoryFormat::Contiguous);
  const int64_t size = w.size(0), modes = t.size(1), groups = groups_of(x, kGroups);
  const at::Tensor dw = at::zeros({groups, size, size}, w.options()), di = at::zeros({groups, 2 * modes, size}, w.options()),
                   dot = at::zeros({groups, 2 * modes, size}, w.options()), dt = at::zeros({groups, 2, modes}, w.options());
  for_floating_type(u.scalar_type(), "ssm_chunks_backward", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using acc = Wide<T>;
    const Matrices<acc> by = pointers<acc>(w, i, o, t), back = pointers<acc>(wt, it, ot, tc);
    const T *up = g.const_data_ptr<T>(), *from = x.const_data_ptr<T>();
    T* to = du.mutable_data_ptr<T>();
    acc *sw = dw.mutable_data_ptr<acc>(), *si = di.mutable_data_ptr<acc>(), *so = dot.mutable_data_ptr<acc>(),
        *st = dt.mutable_data_ptr<acc>();
    for_blocks<T, acc>(x, size, modes, reverse, groups, [&](const auto& block, int64_t start, int64_t group) {
      const int64_t area = 2 * modes * size;
      backward_block<T, acc>(block, by, back, up + start, from + start, to + start,
                             {sw + group * size * size, si + group * area, so + group * area, st + group * 2 * modes});
    });
  });
  return {du, dw.sum(0), di.sum(0), dot.sum(0).t().contiguous(), dt.sum(0)};
}

}  // namespace
}  // namespace fairseq

TORCH_LIBRARY_IMPL(fairseq, CPU, m) {
  m.impl("ssm_chunks", fairseq::ssm_chunks);
  m.impl("ssm_chunks_backward", fairseq::ssm_chunks_backward);
}
