// Rows of a block of scores on vector units: plain loops that the compiler vectorizes, once for each instruction set.
//
// `n` is a multiple of 64 throughout: keys beyond the sequence have a padding of -inf, like padded ones.
#pragma once

#include <cmath>
#include <cstring>

#include "../common/score_terms.h"
#include "elements.h"
#include "random_lanes.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FS_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FS_CLONES
#endif

namespace fairseq {

constexpr int64_t kAhead = 12;  // rows

inline double exponential(double x) { return std::exp(x); }

// e^x for x <= 0 (and slightly above) within 2 units in the last place; exactly 0 below -87, so for -inf; NaN for NaN.
FS_HOST_DEVICE float exponential(float x) {
  const float bounded = x < -87.0f ? -87.0f : x;
  const float shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the fraction is rounded away
  const float whole = shifted - 12582912.0f;
  const float r = (bounded - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
  float y = 1.9875691500e-4f;
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const uint32_t power = uint32_t(int32_t(whole) + 127) << 23;
  float two;
  std::memcpy(&two, &power, 4);
  return x <= -87.0f ? 0.0f : y * two;
}

// What the probabilities of keys j0 ... j0 + n of a query are multiplied by; j0 is a multiple of 8.
template <typename acc>
FS_CLONES void dropout_factors(acc* factors, int n, const Dropout& dropout, int64_t head, int64_t i, int j0) {
  const uint32_t threshold = dropout.threshold;
  const acc scale = acc(dropout.scale);
  for (int start = 0; start < n; start += kChunk) {
    Bits bits;
    random_bits(bits, uint32_t((j0 + start) / kHalves), uint32_t(i), uint32_t(head), dropout.key0, dropout.key1);
    const int here = n - start < kChunk ? n - start : kChunk;
    acc* to = factors + start;
#pragma omp simd
    for (int j = 0; j < here; ++j) to[j] = bits[j] >= threshold ? scale : acc(0);
  }
}

// A product with its term, unless `add` has been there.
template <class Term, typename acc>
FS_HOST_DEVICE acc added(acc product, const Term& term, const typename Term::Row& row, int i, int j) {
  if constexpr (Term::kPieces) return product;
  else return product + term(row, i, j);
}

// Turns products into unnormalised probabilities relative to the largest score so far, `top`. Returns what earlier
// sums and outputs of the row are to be multiplied by; `factors` (null: ones) act after the sum.
template <class Term, typename acc>
FS_CLONES acc forward_block_row(acc* x, int n, const Term& term, const typename Term::Row& row, int i, int j0,
                                const acc* padding, const acc* factors, acc& top, acc& sum) {
  acc most = top;
  if constexpr (Term::kPieces) term.add(row, i, j0, n, x);
#pragma omp simd reduction(max : most)
  for (int j = 0; j < n; ++j) {
    const acc score = added<Term>(x[j], term, row, i, j0 + j) + padding[j];
    x[j] = score;
    most = score > most ? score : most;
  }
  const acc shift = most > -INFINITY ? most : acc(0);  // no key so far: everything becomes 0
  acc part = 0;
#pragma omp simd reduction(+ : part)
  for (int j = 0; j < n; ++j) part += x[j] = exponential(x[j] - shift);
  if (factors) {
#pragma omp simd
    for (int j = 0; j < n; ++j) x[j] *= factors[j];
  }
  const acc again = exponential(top - shift);
  sum = sum * again + part;
  top = most;
  return again;
}

// Turns products into dropped-out probabilities, and `dweights` into the gradient of the products.
template <class Term, typename acc>
FS_CLONES void backward_block_row(acc* x, acc* dweights, int n, const Term& term, const typename Term::Row& row, int i,
                                  int j0, const acc* padding, const acc* factors, acc lse, acc delta, acc scale) {
  if constexpr (Term::kPieces) term.add(row, i, j0, n, x);
#pragma omp simd
  for (int j = 0; j < n; ++j) {
    const acc p = exponential(added<Term>(x[j], term, row, i, j0 + j) + padding[j] - lse);
    dweights[j] = p * (dweights[j] * factors[j] - delta) * scale;
    x[j] = p * factors[j];
  }
  if constexpr (Term::kPieces) term.accumulate(row, i, j0, n, dweights);
}

// x times a number.
template <typename acc>
FS_CLONES void multiply_row(acc* x, int64_t n, acc by) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) x[j] *= by;
}

// The inner product of each row of a and b (rows, columns), whose rows are `stride` apart.
template <typename T, typename acc>
FS_CLONES void row_products(const T* a, int64_t stride_a, const T* b, int64_t stride_b, int64_t rows, int64_t columns, acc* out) {
  for (int64_t r = 0; r < rows; ++r) {
    acc total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t c = 0; c < columns; ++c) total += widen(a[r * stride_a + c]) * widen(b[r * stride_b + c]);
    out[r] = total;
  }
}

// x (rows, columns) with each row multiplied by its factor.
template <typename acc>
FS_CLONES void scale_rows(acc* x, int64_t rows, int64_t columns, const acc* factors) {
  for (int64_t r = 0; r < rows; ++r) {
    const acc factor = factors[r];
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) x[r * columns + c] *= factor;
  }
}

// Asks for a row some rows ahead: rows that are far apart are no stream that a processor foresees.
template <typename From>
inline void foresee(const From* row, int64_t columns) {
  for (int64_t c = 0; c < columns; c += int64_t(64 / sizeof(From))) __builtin_prefetch(row + c);
}

// to (rows, columns; dense) = from (n rows that are `stride` apart) times `by`, with zeros below.
template <typename From, typename To>
FS_CLONES void copy_rows(const From* from, int64_t stride, int64_t n, To* to, int64_t rows, int64_t columns, To by) {
  for (int64_t r = 0; r < n; ++r) {
    if (r + kAhead < n) foresee(from + (r + kAhead) * stride, columns);
    for (int64_t c = 0; c < columns; ++c) to[r * columns + c] = To(from[r * stride + c]) * by;
  }
  for (int64_t c = n * columns; c < rows * columns; ++c) to[c] = 0;
}

// A block of 8 x 8, transposed.
template <typename acc>
FS_HOST_DEVICE void turn(const acc* in, int64_t ld_in, acc* out, int64_t ld_out) {
  for (int r = 0; r < 8; ++r)
    for (int c = 0; c < 8; ++c) out[c * ld_out + r] = in[r * ld_in + c];
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
// In registers: pairs of numbers, of pairs and of fours change places.
FS_HOST_DEVICE void turn(const float* in, int64_t ld_in, float* out, int64_t ld_out) {
  typedef float Row __attribute__((vector_size(32)));
  typedef int Order __attribute__((vector_size(32)));
  Row x[8], y[8];
  for (int r = 0; r < 8; ++r) std::memcpy(&x[r], in + r * ld_in, 32);
  for (int r = 0; r < 8; r += 2) {
    y[r] = __builtin_shuffle(x[r], x[r + 1], Order{0, 8, 2, 10, 4, 12, 6, 14});
    y[r + 1] = __builtin_shuffle(x[r], x[r + 1], Order{1, 9, 3, 11, 5, 13, 7, 15});
  }
  for (int r = 0; r < 8; r += r % 4 ? 3 : 1) {
    x[r] = __builtin_shuffle(y[r], y[r + 2], Order{0, 1, 8, 9, 4, 5, 12, 13});
    x[r + 2] = __builtin_shuffle(y[r], y[r + 2], Order{2, 3, 10, 11, 6, 7, 14, 15});
  }
  for (int r = 0; r < 4; ++r) {
    y[r] = __builtin_shuffle(x[r], x[r + 4], Order{0, 1, 2, 3, 8, 9, 10, 11});
    y[r + 4] = __builtin_shuffle(x[r], x[r + 4], Order{4, 5, 6, 7, 12, 13, 14, 15});
  }
  for (int c = 0; c < 8; ++c) std::memcpy(out + c * ld_out, &y[c], 32);
}
FS_HOST_DEVICE void turn(const uint32_t* in, int64_t ld_in, uint32_t* out, int64_t ld_out) {  // nothing looks at the bits
  turn(reinterpret_cast<const float*>(in), ld_in, reinterpret_cast<float*>(out), ld_out);
}
#endif

// to (columns, ld) = from (n rows that are `stride` apart) transposed, times `by`, with zeros up to `rows`, a multiple of 8.
template <typename From, typename To>
FS_CLONES void copy_turned(const From* from, int64_t stride, int64_t n, To* to, int64_t rows, int64_t columns, int64_t ld, To by) {
  const int64_t whole = columns / 8 * 8;
  for (int64_t r0 = 0; r0 < rows; r0 += 8) {
    const int64_t here = n - r0 < 8 ? n - r0 : 8;
    for (int64_t r = r0 + kAhead; r < r0 + kAhead + 8 && r < n; ++r) foresee(from + r * stride, columns);
    for (int64_t c0 = 0; c0 < whole; c0 += 8) {
      To block[64] = {};
      for (int64_t r = 0; r < here; ++r)
        for (int64_t c = 0; c < 8; ++c) block[r * 8 + c] = To(from[(r0 + r) * stride + c0 + c]) * by;
      turn(block, 8, to + c0 * ld + r0, ld);
    }
    for (int64_t c = whole; c < columns; ++c)
      for (int64_t r = 0; r < 8; ++r) to[c * ld + r0 + r] = r < here ? To(from[(r0 + r) * stride + c]) * by : To(0);
  }
}

// out (columns, rows) = in (rows, columns) transposed; both counts multiples of 8.
template <typename acc>
FS_CLONES void transpose(const acc* in, int rows, int columns, int ld_in, acc* out, int ld_out) {
  for (int r = 0; r < rows; r += 8)
    for (int c = 0; c < columns; c += 8) turn(in + int64_t(r) * ld_in + c, ld_in, out + int64_t(c) * ld_out + r, ld_out);
}

}  // namespace fairseq
