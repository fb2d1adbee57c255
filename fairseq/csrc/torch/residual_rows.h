// residual + dropout(x), and its layer norm, a row at a time on vector units.
//
// The dropout mask of element (row, column) is that of key `column` of query `row` in csrc/common/philox.h, so a counter
// decides about 8 columns; its third word is the high half of the row's number. The mask depends on the place alone.
#pragma once

#include "elements.h"
#include "vector_rows.h"

namespace fairseq {

// The factors of a row of n elements; the buffer has room for n rounded up to 64.
template <typename acc>
inline void row_factors(acc* factors, int64_t n, const Dropout& dropout, int64_t row) {
  dropout_factors<acc>(factors, int((n + 63) / 64 * 64), dropout, row >> 32, row & 0xFFFFFFFF, 0);
}

// to = residual + x * factors; a null pointer stands for zeros and for ones.
template <typename T, typename To, typename acc>
FS_CLONES void add_row(To* to, const T* x, const T* residual, const acc* factors, int64_t n) {
  if (factors && residual) {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) to[c] = narrow<To>(widen(residual[c]) + widen(x[c]) * factors[c]);
  } else if (factors) {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) to[c] = narrow<To>(widen(x[c]) * factors[c]);
  } else if (residual) {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) to[c] = narrow<To>(widen(residual[c]) + widen(x[c]));
  } else {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) to[c] = narrow<To>(widen(x[c]));
  }
}

template <typename acc>
struct Moments {
  acc mean, rstd;
};

// out = (z - mean) / sqrt(variance + eps) * weight + bias
template <typename T, typename acc>
FS_CLONES Moments<acc> norm_row(T* out, const acc* z, const T* weight, const T* bias, int64_t n, acc eps) {
  acc total = 0, square = 0;
#pragma omp simd reduction(+ : total)
  for (int64_t c = 0; c < n; ++c) total += z[c];
  const acc mean = total / acc(n);
#pragma omp simd reduction(+ : square)
  for (int64_t c = 0; c < n; ++c) square += (z[c] - mean) * (z[c] - mean);
  const acc rstd = 1 / std::sqrt(square / acc(n) + eps);
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) out[c] = narrow<T>((z[c] - mean) * rstd * widen(weight[c]) + widen(bias[c]));
  return {mean, rstd};
}

// The gradient of z, times the factors (null: ones) in `dx` and as it is in `dresidual` (null: not wanted); sums for
// the gradients of weight and bias grow in `dweight` and `dbias`. z becomes the normalized row.
template <typename T, typename acc>
FS_CLONES void norm_row_backward(const T* grad, acc* z, const T* weight, const acc* factors, Moments<acc> moments,
                                 int64_t n, T* dx, T* dresidual, acc* dweight, acc* dbias) {
  acc first = 0, second = 0;
  const acc mean = moments.mean, rstd = moments.rstd;
#pragma omp simd reduction(+ : first, second)
  for (int64_t c = 0; c < n; ++c) {
    const acc up = widen(grad[c]), normal = (z[c] - mean) * rstd, inner = up * widen(weight[c]);
    z[c] = normal;
    dweight[c] += up * normal;
    dbias[c] += up;
    first += inner;
    second += inner * normal;
  }
  first /= acc(n), second /= acc(n);
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) {
    const acc dz = (widen(grad[c]) * widen(weight[c]) - first - z[c] * second) * rstd;
    dresidual[c] = narrow<T>(dz);
    z[c] = dz;
  }
  if (factors) {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) dx[c] = narrow<T>(z[c] * factors[c]);
  }
}

}  // namespace fairseq
