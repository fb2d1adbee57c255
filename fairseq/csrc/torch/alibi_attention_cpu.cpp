// fairseq::alibi_attention on the CPU: blocks of scores that stay in the cache, products by the library.
//
// Forward: (sequence and head, 64 queries) in parallel; scores of 512 keys at a time with a running maximum and sum.
// Backward: (sequence and head) in parallel; every block of scores is computed again from q, k and the saved logarithm
// of the row sum. Scratch memory is linear in T. Everything inside is float32 (float64 for float64).
// The reference implementation is fairseq/ops/alibi_attention.py.
//
// Legend: B sequences, H heads, T tokens, D head width.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <tuple>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "checks.h"
#include "vector_rows.h"

namespace fairseq {
namespace {

constexpr int64_t kRows = 64, kKeys = 512;
static_assert(kKeys % kHalves == 0, "a block begins with a counter of its own");

int64_t rounded_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// C (m, n; leading dimension ldc) = A (m, k; dense) B (k, n; leading dimension ldb), added to C if `add`.
void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
             int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, /*is_vnni=*/false);
}

void product(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b, int64_t ldb, double* c,
             int64_t ldc, bool add) {
  for (int64_t i = 0; i < m; ++i) {
    if (!add) std::fill(c + i * ldc, c + i * ldc + n, 0.0);
    for (int64_t l = 0; l < k; ++l)
      for (int64_t j = 0; j < n; ++j) c[i * ldc + j] += a[i * lda + l] * b[l * ldb + j];
  }
}

// Far from the diagonal ALiBi leaves probabilities near the smallest number, and their products with gradients below
// it; processors take a hundred times as long for those. While this lives, its thread takes them for zero.
struct FlushDenormals {
#if defined(__SSE2__)
  const unsigned before = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(before | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before); }
#endif
};

template <typename acc>
struct Buffer {  // uninitialised, aligned
  explicit Buffer(int64_t count)
      : data(static_cast<acc*>(std::aligned_alloc(64, rounded_up(std::max<int64_t>(count, 1) * sizeof(acc), 64)))) {
    TORCH_CHECK(data, "out of memory");
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator acc*() const { return data; }
  acc* data;
};

// Everything about one call that both directions share. `term` makes the score term of a head.
template <typename T, typename acc, class Term>
struct Problem {
  int64_t heads, tokens, width;
  typename Term::Parameters term;
  const bool* padding;
  Dropout dropout;
  acc scale;

  static int64_t offset(const at::Tensor& x, int64_t at, int64_t start) {  // of row `start` of a (sequence, head)
    return at / x.size(1) * x.stride(0) + at % x.size(1) * x.stride(1) + start * x.stride(2);
  }

  // `n` rows from `start` on of (sequence, head) `at` of a (B, H, T, D) tensor as (rows, D), with zeros below.
  void load(const at::Tensor& from, int64_t at, int64_t start, int64_t n, int64_t rows, acc* to) const {
    copy_rows<T, acc>(from.const_data_ptr<T>() + offset(from, at, start), from.stride(2), n, to, rows, width, 1);
  }

  // All rows, transposed, times `by`, in blocks of kKeys columns: block b is (D, kKeys) at b * D * kKeys, and column t
  // begins at turned_offset(t).
  void load_transposed(const at::Tensor& from, int64_t at, acc by, acc* to) const {
    for (int64_t t = 0; t < tokens; t += kKeys, to += width * kKeys) {
      const int64_t size = std::min(kKeys, rounded_up(tokens - t, 64));
      copy_turned<T, acc>(from.const_data_ptr<T>() + offset(from, at, t), from.stride(2), std::min(size, tokens - t), to,
                          size, width, kKeys, by);
    }
  }

  // `n` rows, `ld` apart, to those from `start` on.
  void store(const acc* from, int64_t ld, const at::Tensor& to, int64_t at, int64_t start, int64_t n) const {
    T* base = to.mutable_data_ptr<T>() + offset(to, at, start);
    for (int64_t r = 0; r < n; ++r)
      std::transform(from + r * ld, from + r * ld + width, base + r * to.stride(2), [](acc x) { return T(x); });
  }

  // As above, from the transpose of the rows: (D rounded up to 16, kKeys). `scratch` is as large.
  void store_turned(const acc* from, const at::Tensor& to, int64_t at, int64_t start, int64_t n, acc* scratch) const {
    const int64_t columns = rounded_up(width, 16);
    transpose<acc>(from, columns, rounded_up(n, 16), kKeys, scratch, columns);
    store(scratch, columns, to, at, start, n);
  }

  // What is added to the scores of each key: -inf for padding and beyond the sequence.
  void load_padding(int64_t at, acc* to) const {
    const bool* mask = padding ? padding + at / heads * tokens : nullptr;
    for (int64_t t = 0; t < rounded_up(tokens, 64); ++t) to[t] = t >= tokens || (mask && mask[t]) ? -INFINITY : 0;
  }

  int64_t transposed_size() const { return rounded_up(tokens, kKeys) * width; }
  int64_t turned_offset(int64_t t) const { return t / kKeys * kKeys * width + t % kKeys; }
  int64_t transposed_block_size() const { return rounded_up(width, 16) * kKeys; }
};

template <typename T, typename acc, class Term>
void forward(const Problem<T, acc, Term>& problem, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
             const at::Tensor& out, acc* lse) {
  const int64_t tokens = problem.tokens, width = problem.width, blocks = (tokens + kRows - 1) / kRows;
  at::parallel_for(0, q.size(0) * problem.heads * blocks, 1, [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    const int64_t keys = rounded_up(tokens, 64);
    Buffer<acc> kt(problem.transposed_size()), values(keys * width), padding(keys), rows(kRows * width),
        scores(kRows * kKeys), output(kRows * width), factors(kKeys);
    int64_t loaded = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t at = item / blocks, i0 = item % blocks * kRows, n = std::min(kRows, tokens - i0), m = rounded_up(n, 16);
      if (at != loaded) {
        problem.load_transposed(k, at, problem.scale, kt);
        problem.load(v, at, 0, tokens, keys, values);
        problem.load_padding(at, padding);
        loaded = at;
      }
      const Term term = Term::of(problem.term, at % problem.heads);
      problem.load(q, at, i0, n, m, rows);
      std::fill(output.data, output + m * width, acc(0));
      acc top[kRows], sum[kRows], again[kRows];
      std::fill(top, top + kRows, acc(-INFINITY));
      std::fill(sum, sum + kRows, acc(0));
      for (int64_t j0 = 0; j0 < tokens; j0 += kKeys) {
        const int64_t size = std::min(kKeys, keys - j0);
        product(m, size, width, rows, width, kt + j0 * width, kKeys, scores, size, false);
        for (int64_t r = 0; r < n; ++r) {
          if (problem.dropout.threshold) dropout_factors<acc>(factors, size, problem.dropout, at, i0 + r, j0);
          again[r] = forward_block_row<Term, acc>(scores + r * size, size, term, i0 + r, j0, padding + j0,
                                                         problem.dropout.threshold ? factors.data : nullptr, top[r], sum[r]);
        }
        scale_rows<acc>(output, n, width, again);
        product(m, width, size, scores, size, values + j0 * width, width, output, width, true);
      }
      for (int64_t r = 0; r < n; ++r) {
        again[r] = sum[r] > 0 ? 1 / sum[r] : 0;
        lse[at * tokens + i0 + r] = sum[r] > 0 ? top[r] + std::log(sum[r]) : INFINITY;
      }
      scale_rows<acc>(output, n, width, again);
      problem.store(output, width, out, at, i0, n);
    }
  });
}

template <typename T, typename acc, class Term>
void backward(const Problem<T, acc, Term>& problem, const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k,
              const at::Tensor& v, const at::Tensor& out, const acc* lse, const at::Tensor& dq, const at::Tensor& dk,
              const at::Tensor& dv) {
  const int64_t tokens = problem.tokens, width = problem.width, padded = rounded_up(tokens, 64);
  at::parallel_for(0, q.size(0) * problem.heads, 1, [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    Buffer<acc> kt(problem.transposed_size()), vt(problem.transposed_size()), qt(problem.transposed_size()),
        gt(problem.transposed_size()), padding(padded), queries(padded * width), upstream(padded * width), delta(padded),
        logs(padded), dqueries(padded * width), keys(kKeys * width), dkt(problem.transposed_block_size()),
        dvt(problem.transposed_block_size()), turned(problem.transposed_block_size()), scores(kRows * kKeys),
        dweights(kRows * kKeys), factors(kKeys);
    for (acc* beyond : {dkt + width * kKeys, dvt + width * kKeys})
      std::fill(beyond, beyond + problem.transposed_block_size() - width * kKeys, acc(0));
    std::fill(factors.data, factors + kKeys, acc(1));
    for (int64_t at = begin; at < end; ++at) {
      const Term term = Term::of(problem.term, at % problem.heads);
      problem.load_transposed(k, at, problem.scale, kt);
      problem.load_transposed(v, at, 1, vt);
      problem.load_transposed(q, at, 1, qt);
      problem.load_transposed(grad, at, 1, gt);
      problem.load_padding(at, padding);
      problem.load(q, at, 0, tokens, padded, queries);
      problem.load(grad, at, 0, tokens, padded, upstream);
      problem.load(out, at, 0, tokens, padded, dqueries);  // the output, until its product with the gradient is known
      row_products<acc>(dqueries, upstream, padded, width, delta);
      for (int64_t i = 0; i < padded; ++i) logs[i] = i < tokens ? lse[at * tokens + i] : INFINITY;  // beyond, all become 0
      std::fill(dqueries.data, dqueries + padded * width, acc(0));
      for (int64_t j0 = 0; j0 < tokens; j0 += kKeys) {
        const int64_t size = std::min(kKeys, padded - j0), here = std::min(kKeys, tokens - j0);
        problem.load(k, at, j0, here, size, keys);
        for (int64_t i0 = 0; i0 < tokens; i0 += kRows) {
          const int64_t m = std::min(kRows, rounded_up(tokens - i0, 16));
          product(m, size, width, queries + i0 * width, width, kt + j0 * width, kKeys, scores, size, false);
          product(m, size, width, upstream + i0 * width, width, vt + j0 * width, kKeys, dweights, size, false);
          for (int64_t r = 0; r < m; ++r) {
            if (problem.dropout.threshold) dropout_factors<acc>(factors, size, problem.dropout, at, i0 + r, j0);
            backward_block_row<Term, acc>(scores + r * size, dweights + r * size, size, term, i0 + r, j0, padding + j0,
                                          factors, logs[i0 + r], delta[i0 + r], problem.scale);
          }
          product(m, width, size, dweights, size, keys, width, dqueries + i0 * width, width, true);
          // The transposes of these gradients: they want those of queries and upstream, not that of the wide scores.
          product(width, size, m, gt + problem.turned_offset(i0), kKeys, scores, size, dvt, kKeys, i0 > 0);
          product(width, size, m, qt + problem.turned_offset(i0), kKeys, dweights, size, dkt, kKeys, i0 > 0);
        }
        problem.store_turned(dkt, dk, at, j0, here, turned);
        problem.store_turned(dvt, dv, at, j0, here, turned);
      }
      problem.store(dqueries, width, dq, at, 0, tokens);
    }
  });
}

// Calls f with a null pointer of the tensor's type and one of the type to compute in.
template <class F>
void for_type(at::ScalarType type, F f) {
  switch (type) {
    case at::kFloat: return f(static_cast<float*>(nullptr), static_cast<float*>(nullptr));
    case at::kDouble: return f(static_cast<double*>(nullptr), static_cast<double*>(nullptr));
    case at::kBFloat16: return f(static_cast<at::BFloat16*>(nullptr), static_cast<float*>(nullptr));
    case at::kHalf: return f(static_cast<at::Half*>(nullptr), static_cast<float*>(nullptr));
    default: TORCH_CHECK(false, "alibi_attention takes floating-point tensors, but got ", type);
  }
}

template <typename T, typename acc>
Problem<T, acc, AlibiTerm<acc>> problem_of(const at::Tensor& q, const Extras& extras) {
  Dropout dropout = dropout_of(extras.dropout_p);
  dropout.set_seed(*extras.seed.const_data_ptr<int64_t>());
  return {q.size(1),
          q.size(2),
          q.size(3),
          {extras.slopes.const_data_ptr<float>(), extras.asymmetrical},
          extras.padding.defined() ? extras.padding.const_data_ptr<bool>() : nullptr,
          dropout,
          acc(1 / std::sqrt(double(q.size(3))))};
}

std::tuple<at::Tensor, at::Tensor> alibi_attention_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                           const at::Tensor& slopes, bool asymmetrical,
                                                           const std::optional<at::Tensor>& padding, double dropout_p,
                                                           const at::Tensor& seed) {
  const Extras extras = checked(q, k, v, slopes, asymmetrical, padding, dropout_p, seed);
  const at::Tensor qs = rows_dense(q), ks = rows_dense(k), vs = rows_dense(v), out = like_heads(q);
  const at::Tensor lse = at::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(sum_type(q)));
  for_type(q.scalar_type(), [&](auto* type, auto* wide) {
    using T = std::remove_pointer_t<decltype(type)>;
    using acc = std::remove_pointer_t<decltype(wide)>;
    forward(problem_of<T, acc>(q, extras), qs, ks, vs, out, lse.mutable_data_ptr<acc>());
  });
  return {out, lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> alibi_attention_backward(
    const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
    const at::Tensor& lse, const at::Tensor& slopes, bool asymmetrical, const std::optional<at::Tensor>& padding,
    double dropout_p, const at::Tensor& seed) {
  const Extras extras = checked(q, k, v, slopes, asymmetrical, padding, dropout_p, seed);
  check_saved(grad, q, out, lse);
  const at::Tensor dq = like_heads(q), dk = like_heads(q), dv = like_heads(q), sums = lse.contiguous();
  const at::Tensor qs = rows_dense(q), ks = rows_dense(k), vs = rows_dense(v), outs = rows_dense(out), up = rows_dense(grad);
  for_type(q.scalar_type(), [&](auto* type, auto* wide) {
    using T = std::remove_pointer_t<decltype(type)>;
    using acc = std::remove_pointer_t<decltype(wide)>;
    backward(problem_of<T, acc>(q, extras), up, qs, ks, vs, outs, sums.const_data_ptr<acc>(), dq, dk, dv);
  });
  return {dq, dk, dv};
}

}  // namespace
}  // namespace fairseq

TORCH_LIBRARY_IMPL(fairseq, CPU, m) {
  m.impl("alibi_attention_forward", fairseq::alibi_attention_forward);
  m.impl("alibi_attention_backward", fairseq::alibi_attention_backward);
}
