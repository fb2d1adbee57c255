// fairseq::cross_entropy_rows_ on the CPU: the softmax loss of rows of logits, and its gradient in their place.
// A row stays in the cache from the first pass over it to the last. Reference implementation: fairseq/ops/linear_cross_entropy.py.
//
// Legend: N rows, V columns.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <vector>

#include "checks.h"
#include "elements.h"
#include "vector_rows.h"

namespace fairseq {
namespace {

// The logarithm of the sum of exponentials of row + bias; `e` gets the exponentials divided by their sum.
template <typename T, typename acc>
FS_CLONES acc softmax_row(const T* row, const T* bias, acc* e, int64_t n, acc scale) {
  acc most = -INFINITY, sum = 0;
  if (bias) {
#pragma omp simd reduction(max : most)
    for (int64_t c = 0; c < n; ++c) {
      const acc x = widen(row[c]) * scale + widen(bias[c]);
      e[c] = x;
      most = x > most ? x : most;
    }
  } else {
#pragma omp simd reduction(max : most)
    for (int64_t c = 0; c < n; ++c) {
      const acc x = widen(row[c]) * scale;
      e[c] = x;
      most = x > most ? x : most;
    }
  }
#pragma omp simd reduction(+ : sum)
  for (int64_t c = 0; c < n; ++c) sum += e[c] = exponential(e[c] - most);
  const acc inverse = 1 / sum;
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) e[c] *= inverse;
  return most + std::log(sum);
}

template <typename T, typename acc>
FS_CLONES void store_row(T* to, const acc* from, int64_t n) {
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) to[c] = narrow<T>(from[c]);
}

at::Tensor cross_entropy_rows(at::Tensor& logits, const std::optional<at::Tensor>& bias, const at::Tensor& targets,
                              int64_t ignore_index, const std::optional<at::Tensor>& scale, bool with_gradient) {
  TORCH_CHECK(logits.dim() == 2 && logits.is_contiguous(), "logits must be dense (N, V)");
  const int64_t rows = logits.size(0), columns = logits.size(1);
  TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == columns && bias->scalar_type() == logits.scalar_type() &&
                        bias->is_contiguous() && bias->is_cpu()),
              "bias must be dense (V,), of the type of the logits");
  TORCH_CHECK(!scale || (scale->numel() == 1 && scale->scalar_type() == sum_type(logits) && scale->is_cpu()),
              "scale must be one number, float32 or that of float64");
  TORCH_CHECK(targets.dim() == 1 && targets.size(0) == rows && targets.scalar_type() == at::kLong && targets.is_cpu(),
              "targets must be int64 (N,)");
  const at::Tensor classes = targets.contiguous(), losses = at::empty({rows}, logits.options().dtype(sum_type(logits)));
  const int64_t* wanted = classes.const_data_ptr<int64_t>();
  for (int64_t row = 0; row < rows; ++row)
    TORCH_CHECK_INDEX(wanted[row] == ignore_index || (wanted[row] >= 0 && wanted[row] < columns), "target ", wanted[row],
                      " is no column of ", columns);
  for_floating_type(logits.scalar_type(), "cross_entropy_rows_", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using acc = Wide<T>;
    T* data = logits.mutable_data_ptr<T>();
    const T* shift = bias ? bias->const_data_ptr<T>() : nullptr;
    const acc factor = scale ? *scale->const_data_ptr<acc>() : acc(1);
    acc* loss = losses.mutable_data_ptr<acc>();
    at::parallel_for(0, rows, 1, [&](int64_t begin, int64_t end) {
      std::vector<acc> e(columns);
      for (int64_t row = begin; row < end; ++row) {
        T* here = data + row * columns;
        const int64_t target = wanted[row];
        loss[row] = 0;
        if (target == ignore_index) {
          if (with_gradient) std::fill(here, here + columns, T(0));
          continue;
        }
        const acc score = widen(here[target]) * factor + (shift ? widen(shift[target]) : acc(0));
        loss[row] = softmax_row<T, acc>(here, shift, e.data(), columns, factor) - score;
        if (with_gradient) {
          e[target] -= 1;
          store_row<T, acc>(here, e.data(), columns);
        }
      }
    });
  });
  return losses;
}

}  // namespace
}  // namespace fairseq

TORCH_LIBRARY_IMPL(fairseq, CPU, m) { m.impl("cross_entropy_rows_", fairseq::cross_entropy_rows); }
