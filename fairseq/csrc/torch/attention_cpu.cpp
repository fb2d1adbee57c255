// fairseq::attention on the CPU: blocks of scores that stay in the cache, products by the library.
//
// Forward: (sequence and head, 64 queries) in parallel; scores of 512 keys at a time with a running maximum and sum.
// Backward: (sequence and head) in parallel; every block of scores is computed again from q, k and the saved logarithm
// of the row sum. Scratch memory is linear in T. Sums and everything between products are float32 (float64 for float64);
// what is multiplied (type E below) too, or bfloat16 where the processor multiplies that (operands.h).
// The reference implementation is fairseq/ops/attention.py; score terms are csrc/common/score_terms.h.
//
// Legend: B sequences, H heads, T tokens, D head width.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>

#include "attention_terms.h"
#include "checks.h"
#include "elements.h"
#include "operands.h"
#include "vector_rows.h"

namespace fairseq {
namespace {

constexpr int64_t kRows = 64, kKeys = 512;
static_assert(kKeys % kHalves == 0, "a block begins with a counter of its own");

// Everything about one call that both directions share.
template <typename T, typename acc, class Term>
struct Problem {
  int64_t heads, tokens, width;
  Term term;
  const bool* padding;
  Dropout dropout;
  acc scale;

  typename Term::Row term_row(int64_t at, int64_t i) const { return term.row(at / heads, at % heads, i); }

  static int64_t offset(const at::Tensor& x, int64_t at, int64_t start) {  // of row `start` of a (sequence, head)
    return at / x.size(1) * x.stride(0) + at % x.size(1) * x.stride(1) + start * x.stride(2);
  }

  // `n` rows from `start` on of (sequence, head) `at` of a (B, H, T, D) tensor as a left operand (rows, D) ...
  template <typename E>
  void load(const at::Tensor& from, int64_t at, int64_t start, int64_t n, int64_t rows, E* to) const {
    Operands<E, T>::left(from.const_data_ptr<T>() + offset(from, at, start), from.stride(2), n, to, rows, width);
  }

  // ... and as a right one.
  template <typename E>
  void load_right(const at::Tensor& from, int64_t at, int64_t start, int64_t n, int64_t rows, E* to) const {
    Operands<E, T>::right(from.const_data_ptr<T>() + offset(from, at, start), from.stride(2), n, to, rows, width);
  }

  // f(first of them, how many, how many with zeros, where they belong) for all rows that are to be transposed, in blocks
  // of kKeys columns: block b is (D, kKeys) at b * D * kKeys, and column t begins at turned_offset(t).
  template <typename E, class F>
  void each_turned(const at::Tensor& from, int64_t at, E* to, F f) const {
    for (int64_t t = 0; t < tokens; t += kKeys, to += width * kKeys) {
      const int64_t size = std::min(kKeys, rounded_up(tokens - t, 64));
      f(from.const_data_ptr<T>() + offset(from, at, t), std::min(size, tokens - t), size, to);
    }
  }

  // All rows, transposed, as left operands, and as right ones times `by`.
  template <typename E>
  void load_turned(const at::Tensor& from, int64_t at, E* to) const {
    each_turned(from, at, to, [&](const T* rows, int64_t n, int64_t size, E* block) {
      Operands<E, T>::left_turned(rows, from.stride(2), n, block, size, width, kKeys);
    });
  }
  template <typename E>
  void load_turned_right(const at::Tensor& from, int64_t at, acc by, E* to) const {
    each_turned(from, at, to, [&](const T* rows, int64_t n, int64_t size, E* block) {
      Operands<E, T>::right_turned(rows, from.stride(2), n, block, size, width, kKeys, by);
    });
  }

  // The inner products of rows of a and b, with zeros for rows beyond.
  void row_products(const at::Tensor& a, const at::Tensor& b, int64_t at, int64_t rows, acc* to) const {
    fairseq::row_products<T, acc>(a.const_data_ptr<T>() + offset(a, at, 0), a.stride(2), b.const_data_ptr<T>() + offset(b, at, 0),
                                  b.stride(2), tokens, width, to);
    std::fill(to + tokens, to + rows, acc(0));
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

template <typename E, typename T, typename acc, class Term>
void forward(const Problem<T, acc, Term>& problem, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
             const at::Tensor& out, acc* lse) {
  const int64_t tokens = problem.tokens, width = problem.width, blocks = (tokens + kRows - 1) / kRows;
  at::parallel_for(0, q.size(0) * problem.heads * blocks, 1, [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    const Release<E> release;
    constexpr bool narrows = Operands<E, T>::kNarrow;
    const int64_t keys = rounded_up(tokens, 64);
    Buffer<E> kt(problem.transposed_size()), values(keys * width), rows(kRows * width);
    Buffer<acc> padding(keys), scores(kRows * kKeys), output(kRows * width), factors(kKeys);
    Buffer<E> weights(narrows ? kRows * kKeys : 0);
    if (narrows) std::fill(weights.data, weights + kRows * kKeys, E(0));
    int64_t loaded = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t at = item / blocks, i0 = item % blocks * kRows, n = std::min(kRows, tokens - i0), m = rounded_up(n, 16);
      if (at != loaded) {
        problem.load_turned_right(k, at, problem.scale, kt.data);
        problem.load_right(v, at, 0, tokens, keys, values.data);
        problem.load_padding(at, padding);
        loaded = at;
      }
      problem.load(q, at, i0, n, m, rows.data);
      std::fill(output.data, output + m * width, acc(0));
      acc top[kRows], sum[kRows], again[kRows];
      std::fill(top, top + kRows, acc(-INFINITY));
      std::fill(sum, sum + kRows, acc(0));
      for (int64_t j0 = 0; j0 < tokens; j0 += kKeys) {
        const int64_t size = std::min(kKeys, keys - j0);
        product(m, size, width, rows, width, kt + j0 * width, kKeys, scores, size, false);
        for (int64_t r = 0; r < n; ++r) {
          if constexpr (narrows) multiply_row<acc>(scores + r * size, size, problem.scale);
          if (problem.dropout.threshold) dropout_factors<acc>(factors, size, problem.dropout, at, i0 + r, j0);
          again[r] = forward_block_row<Term, acc>(scores + r * size, size, problem.term, problem.term_row(at, i0 + r), i0 + r,
                                                  j0, padding + j0, problem.dropout.threshold ? factors.data : nullptr,
                                                  top[r], sum[r]);
          if constexpr (narrows) narrow_row(scores + r * size, size, weights + r * size);
        }
        scale_rows<acc>(output, n, width, again);
        product(m, width, size, operand<E>(scores.data, weights), size, values + j0 * width, width, output, width, true);
      }
      for (int64_t r = 0; r < n; ++r) {
        again[r] = sum[r] == 0 ? 0 : 1 / sum[r];  // NaN stays NaN
        lse[at * tokens + i0 + r] = sum[r] == 0 ? INFINITY : top[r] + std::log(sum[r]);
      }
      scale_rows<acc>(output, n, width, again);
      problem.store(output, width, out, at, i0, n);
    }
  });
}

template <typename E, typename T, typename acc, class Term>
void backward(const Problem<T, acc, Term>& problem, const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k,
              const at::Tensor& v, const at::Tensor& out, const acc* lse, const acc* dlse, const at::Tensor& dq,
              const at::Tensor& dk, const at::Tensor& dv) {
  const int64_t tokens = problem.tokens, width = problem.width, padded = rounded_up(tokens, 64);
  at::parallel_for(0, q.size(0) * problem.heads, 1, [&](int64_t begin, int64_t end) {
    const FlushDenormals flush;
    const Release<E> release;
    constexpr bool narrows = Operands<E, T>::kNarrow;
    const int64_t block = narrows ? kRows * kKeys : 0;
    Buffer<E> kt(problem.transposed_size()), vt(problem.transposed_size()), qt(problem.transposed_size()),
        gt(problem.transposed_size()), queries(padded * width), upstream(padded * width), keys(kKeys * width),
        right_weights(block), left_dscores(block), right_dscores(block);
    Buffer<acc> padding(padded), delta(padded), logs(padded), dqueries(padded * width), dkt(problem.transposed_block_size()),
        dvt(problem.transposed_block_size()), turned(problem.transposed_block_size()), scores(kRows * kKeys),
        dweights(kRows * kKeys), factors(kKeys);
    for (acc* beyond : {dkt + width * kKeys, dvt + width * kKeys})
      std::fill(beyond, beyond + problem.transposed_block_size() - width * kKeys, acc(0));
    std::fill(factors.data, factors + kKeys, acc(1));
    for (int64_t at = begin; at < end; ++at) {
      problem.load_turned_right(k, at, problem.scale, kt.data);
      problem.load_turned_right(v, at, 1, vt.data);
      problem.load_turned(q, at, qt.data);
      problem.load_turned(grad, at, gt.data);
      problem.load_padding(at, padding);
      problem.load(q, at, 0, tokens, padded, queries.data);
      problem.load(grad, at, 0, tokens, padded, upstream.data);
      problem.row_products(out, grad, at, padded, delta);
      for (int64_t i = 0; dlse && i < tokens; ++i) delta[i] -= dlse[at * tokens + i];
      for (int64_t i = 0; i < padded; ++i) logs[i] = i < tokens ? lse[at * tokens + i] : INFINITY;  // beyond, all become 0
      std::fill(dqueries.data, dqueries + padded * width, acc(0));
      for (int64_t j0 = 0; j0 < tokens; j0 += kKeys) {
        const int64_t size = std::min(kKeys, padded - j0), here = std::min(kKeys, tokens - j0);
        problem.load_right(k, at, j0, here, size, keys.data);
        for (int64_t i0 = 0; i0 < tokens; i0 += kRows) {
          const int64_t m = std::min(kRows, rounded_up(tokens - i0, 16));
          product(m, size, width, queries + i0 * width, width, kt + j0 * width, kKeys, scores, size, false);
          product(m, size, width, upstream + i0 * width, width, vt + j0 * width, kKeys, dweights, size, false);
          for (int64_t r = 0; r < m; ++r) {
            if constexpr (narrows) multiply_row<acc>(scores + r * size, size, problem.scale);
            if (problem.dropout.threshold) dropout_factors<acc>(factors, size, problem.dropout, at, i0 + r, j0);
            const int64_t i = std::min(i0 + r, tokens - 1);  // beyond the last row there is nothing but zeros
            backward_block_row<Term, acc>(scores + r * size, dweights + r * size, size, problem.term,
                                          problem.term_row(at, i), i, j0, padding + j0, factors, logs[i0 + r],
                                          delta[i0 + r], problem.scale);
            if constexpr (narrows) {
              narrow_row(dweights + r * size, size, left_dscores + r * size);
              if (r % 2 == 0) continue;
              const int64_t pair = (r - 1) * size;
              narrow_pair(scores + pair, scores + pair + size, size, right_weights + pair);
              narrow_pair(dweights + pair, dweights + pair + size, size, right_dscores + pair);
            }
          }
          const E *weights = operand<E>(scores.data, right_weights), *dscores = operand<E>(dweights.data, right_dscores);
          product(m, width, size, operand<E>(dweights.data, left_dscores), size, keys, width, dqueries + i0 * width, width,
                  true);
          // The transposes of these gradients: they want those of queries and upstream, not that of the wide scores.
          product(width, size, m, gt + problem.turned_offset(i0), kKeys, weights, size, dvt, kKeys, i0 > 0);
          product(width, size, m, qt + problem.turned_offset(i0), kKeys, dscores, size, dkt, kKeys, i0 > 0);
        }
        problem.store_turned(dkt, dk, at, j0, here, turned);
        problem.store_turned(dvt, dv, at, j0, here, turned);
      }
      problem.store(dqueries, width, dq, at, 0, tokens);
    }
  });
}

template <typename T, typename acc, class Term>
Problem<T, acc, Term> problem_of(const at::Tensor& q, const Extras& extras, const Term& term) {
  Dropout dropout = dropout_of(extras.dropout_p);
  dropout.set_seed(*extras.seed.const_data_ptr<int64_t>());
  return {q.size(1),
          q.size(2),
          q.size(3),
          term,
          extras.padding.defined() ? extras.padding.const_data_ptr<bool>() : nullptr,
          dropout,
          acc(1 / std::sqrt(double(q.size(3))))};
}

std::tuple<at::Tensor, at::Tensor> attention_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                     const std::string& term, at::TensorList parameters,
                                                     const std::optional<at::Tensor>& padding, double dropout_p,
                                                     const at::Tensor& seed) {
  const Extras extras = checked(q, k, v, padding, dropout_p, seed);
  const at::Tensor qs = rows_dense(q), ks = rows_dense(k), vs = rows_dense(v), out = like_heads(q);
  const at::Tensor lse = at::empty({q.size(0), q.size(1), q.size(2)}, q.options().dtype(sum_type(q)));
  for_floating_type(q.scalar_type(), "attention", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using acc = Wide<T>;
    with_term<acc>(term, q, parameters, false, [&](const auto& bound) {
      with_operands<T>(q.size(3), [&](auto* operand) {
        using E = std::remove_pointer_t<decltype(operand)>;
        forward<E>(problem_of<T, acc>(q, extras, bound.term), qs, ks, vs, out, lse.mutable_data_ptr<acc>());
      });
    });
  });
  return {out, lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>> attention_backward(
    const at::Tensor& grad, const std::optional<at::Tensor>& grad_lse, const at::Tensor& q, const at::Tensor& k,
    const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse, const std::string& term, at::TensorList parameters,
    const std::optional<at::Tensor>& padding, double dropout_p, const at::Tensor& seed) {
  const Extras extras = checked(q, k, v, padding, dropout_p, seed);
  check_saved(grad, grad_lse, q, out, lse);
  const at::Tensor dq = like_heads(q), dk = like_heads(q), dv = like_heads(q), sums = lse.contiguous();
  const at::Tensor dsums = grad_lse ? grad_lse->contiguous() : at::Tensor();
  const at::Tensor qs = rows_dense(q), ks = rows_dense(k), vs = rows_dense(v), outs = rows_dense(out), up = rows_dense(grad);
  std::vector<at::Tensor> dparameters;
  for_floating_type(q.scalar_type(), "attention", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using acc = Wide<T>;
    with_term<acc>(term, q, parameters, true, [&](const auto& bound) {
      const auto problem = problem_of<T, acc>(q, extras, bound.term);
      with_operands<T>(q.size(3), [&](auto* operand) {
        using E = std::remove_pointer_t<decltype(operand)>;
        backward<E>(problem, up, qs, ks, vs, outs, sums.const_data_ptr<acc>(),
                    dsums.defined() ? dsums.const_data_ptr<acc>() : nullptr, dq, dk, dv);
      });
      dparameters = bound.finished(parameters, problem.scale);
    });
  });
  return {dq, dk, dv, dparameters};
}

}  // namespace
}  // namespace fairseq

TORCH_LIBRARY_FRAGMENT(fairseq_host, m) {  // for tests
  m.def("has_bfloat16_products() -> bool", fairseq::has_bfloat16_products);
  m.def("want_bfloat16_products(bool on) -> ()", [](bool on) { fairseq::want_bfloat16_products = on; });
}

TORCH_LIBRARY_IMPL(fairseq, CPU, m) {
  m.impl("attention_forward", fairseq::attention_forward);
  m.impl("attention_backward", fairseq::attention_backward);
}
