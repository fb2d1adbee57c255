// fairseq::attention as products of the library around row kernels (csrc/common/attention_rows.h): what runs on
// CUDA, and in the host test with another `Device`.
//
// A device's tensor cores do the products best by its own library; everything between them is one pass over the scores.
// Scores exist for a chunk at a time: at most kScores numbers, whatever B, H and T are (as long as a row fits). So memory
// beyond inputs, outputs and the row sums is constant: 128 MiB of float32 scores and half as much of probabilities in
// half precision, twice that in backward; and a chunk is large enough to fill a device.
//
// `Device` provides `product(a, b)` (batched, float32 result), and `forward(type, rows)`, `backward(type, rows)` and
// `columns(type, rows)` for the rows of any term. Types are as given whatever autocast would make of them.
//
// Legend: B sequences, H heads, T tokens, D head width, N heads and R query rows of a chunk.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <tuple>

#include "../common/attention_rows.h"
#include "attention_terms.h"
#include "checks.h"

namespace fairseq {

struct Chunks {
  int64_t heads, rows;
};

inline Chunks chunks_of(int64_t all_heads, int64_t tokens, int64_t most_scores) {
  const int64_t rows = std::max<int64_t>(1, std::min(tokens, most_scores / std::max<int64_t>(tokens, 1)));
  const int64_t heads = std::max<int64_t>(1, std::min(all_heads, most_scores / std::max<int64_t>(rows * tokens, 1)));
  return {heads, rows};
}

template <class Term>
Rows<Term> rows_of(const at::Tensor& q, const Extras& extras, const Term& term, const at::Tensor& lse) {
  Rows<Term> rows{};
  rows.tokens = q.size(2);
  rows.heads_per_sequence = q.size(1);
  rows.term = term;
  rows.padding = extras.padding.defined() ? extras.padding.const_data_ptr<bool>() : nullptr;
  rows.seed = extras.seed.const_data_ptr<int64_t>();
  rows.dropout = dropout_of(extras.dropout_p);
  rows.scale = float(1 / std::sqrt(double(q.size(3))));
  rows.lse = lse.mutable_data_ptr<float>();
  return rows;
}

inline at::Tensor merged(const at::Tensor& x) { return x.reshape({-1, x.size(2), x.size(3)}); }  // (B * H, T, D)
inline at::Tensor cut(const at::Tensor& x, int64_t head, const Chunks& n) {
  return x.slice(0, head, std::min(head + n.heads, x.size(0)));
}

// f(first head, first row) for every chunk.
template <class F>
void each_chunk(int64_t heads, int64_t tokens, const Chunks& chunks, F f) {
  for (int64_t head = 0; head < heads; head += chunks.heads)
    for (int64_t row = 0; row < tokens; row += chunks.rows) f(head, row);
}

constexpr int64_t kScores = int64_t(1) << 25;

template <class Device, class Term>
std::tuple<at::Tensor, at::Tensor> chunked_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                   const Extras& extras, const Term& term, int64_t most_scores) {
  const int64_t heads = q.size(0) * q.size(1), tokens = q.size(2);
  const at::Tensor out = like_heads(q), lse = at::empty({q.size(0), q.size(1), tokens}, q.options().dtype(at::kFloat));
  if (q.numel() == 0) return {out, lse};
  const at::Tensor qs = merged(q), ks = merged(k), vs = merged(v), result = at::empty_like(qs);
  const Chunks chunks = chunks_of(heads, tokens, most_scores);
  Rows<Term> rows = rows_of(q, extras, term, lse);
  each_chunk(heads, tokens, chunks, [&](int64_t head, int64_t row) {
    const at::Tensor part = cut(qs, head, chunks).slice(1, row, std::min(row + chunks.rows, tokens));
    const at::Tensor scores = Device::product(part, cut(ks, head, chunks).transpose(1, 2));
    const at::Tensor weights = at::empty(scores.sizes(), q.options());
    rows.first_head = head, rows.heads = part.size(0), rows.first_row = row, rows.rows = part.size(1);
    rows.scores = scores.const_data_ptr<float>(), rows.weights = weights.mutable_data_ptr();
    Device::forward(q.scalar_type(), rows);
    cut(result, head, chunks).slice(1, row, row + part.size(1)).copy_(at::bmm(weights, cut(vs, head, chunks)));
  });
  out.copy_(result.view(q.sizes()));
  return {out, lse};
}

template <class Device, class Term>
std::tuple<at::Tensor, at::Tensor, at::Tensor> chunked_backward(const at::Tensor& grad,
                                                                const std::optional<at::Tensor>& grad_lse,
                                                                const at::Tensor& q, const at::Tensor& k,
                                                                const at::Tensor& v, const at::Tensor& out,
                                                                const at::Tensor& lse, const Extras& extras,
                                                                const Term& term, int64_t most_scores) {
  const int64_t heads = q.size(0) * q.size(1), tokens = q.size(2);
  const at::Tensor dq = like_heads(q), dk = like_heads(q), dv = like_heads(q);
  if (q.numel() == 0) return {dq, dk, dv};
  const at::Tensor qs = merged(q), ks = merged(k), vs = merged(v), up = merged(grad);
  at::Tensor delta = (merged(out).to(at::kFloat) * up.to(at::kFloat)).sum(-1), sums = lse.contiguous();
  if (grad_lse) delta = delta - grad_lse->reshape({-1, tokens});
  const auto wide = q.options().dtype(at::kFloat);  // rows of several chunks add up in float32
  const at::Tensor dqs = at::empty(qs.sizes(), wide), dks = at::zeros(qs.sizes(), wide), dvs = at::zeros(qs.sizes(), wide);
  const Chunks chunks = chunks_of(heads, tokens, most_scores);
  Rows<Term> rows = rows_of(q, extras, term, sums);
  rows.delta = delta.const_data_ptr<float>();
  each_chunk(heads, tokens, chunks, [&](int64_t head, int64_t row) {
    const auto here = [&](const at::Tensor& x) { return cut(x, head, chunks).slice(1, row, std::min(row + chunks.rows, tokens)); };
    const at::Tensor queries = here(qs), upstream = here(up);
    const at::Tensor scores = Device::product(queries, cut(ks, head, chunks).transpose(1, 2));
    const at::Tensor dweights = Device::product(upstream, cut(vs, head, chunks).transpose(1, 2));
    const at::Tensor weights = at::empty(scores.sizes(), q.options()), dscores = at::empty(scores.sizes(), q.options());
    rows.first_head = head, rows.heads = queries.size(0), rows.first_row = row, rows.rows = queries.size(1);
    rows.scores = scores.const_data_ptr<float>(), rows.dweights = dweights.const_data_ptr<float>();
    rows.weights = weights.mutable_data_ptr(), rows.dscores = dscores.mutable_data_ptr();
    Device::backward(q.scalar_type(), rows);
    if (Term::kColumns) Device::columns(q.scalar_type(), rows);
    here(dqs).copy_(Device::product(dscores, cut(ks, head, chunks)));
    cut(dks, head, chunks).add_(Device::product(dscores.transpose(1, 2), queries));
    cut(dvs, head, chunks).add_(Device::product(weights.transpose(1, 2), upstream));
  });
  dq.copy_(dqs.view(q.sizes()));
  dk.copy_(dks.view(q.sizes()));
  dv.copy_(dvs.view(q.sizes()));
  return {dq, dk, dv};
}

// Both directions for a term by its name.
template <class Device>
std::tuple<at::Tensor, at::Tensor> forward_in_chunks(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                     const std::string& term, at::TensorList parameters,
                                                     const std::optional<at::Tensor>& padding, double dropout_p,
                                                     const at::Tensor& seed, int64_t most_scores = kScores) {
  const c10::impl::ExcludeDispatchKeyGuard as_given(c10::autocast_dispatch_keyset);
  const Extras extras = checked(q, k, v, padding, dropout_p, seed);
  std::tuple<at::Tensor, at::Tensor> result;
  with_term<float>(term, q, parameters, false, [&](const auto& bound) {
    result = chunked_forward<Device>(q, k, v, extras, bound.term, most_scores);
  });
  return result;
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>>;

template <class Device>
Gradients backward_in_chunks(const at::Tensor& grad, const std::optional<at::Tensor>& grad_lse, const at::Tensor& q,
                             const at::Tensor& k, const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                             const std::string& term, at::TensorList parameters, const std::optional<at::Tensor>& padding,
                             double dropout_p, const at::Tensor& seed, int64_t most_scores = kScores) {
  const c10::impl::ExcludeDispatchKeyGuard as_given(c10::autocast_dispatch_keyset);
  const Extras extras = checked(q, k, v, padding, dropout_p, seed);
  check_saved(grad, grad_lse, q, out, lse);
  Gradients result;
  with_term<float>(term, q, parameters, true, [&](const auto& bound) {
    const auto [dq, dk, dv] = chunked_backward<Device>(grad, grad_lse, q, k, v, out, lse, extras, bound.term, most_scores);
    result = {dq, dk, dv, bound.finished(parameters, 1 / std::sqrt(double(q.size(3))))};
  });
  return result;
}

// The reference implementation, which takes every type: operators that have no other kernel (fairseq/ops/attention.py).
inline std::tuple<at::Tensor, at::Tensor> forward_by_reference(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                               const std::string& term, at::TensorList parameters,
                                                               const std::optional<at::Tensor>& padding, double dropout_p,
                                                               const at::Tensor& seed) {
  using Function = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                      c10::string_view, at::TensorList, const std::optional<at::Tensor>&,
                                                      double, const at::Tensor&);
  static const auto reference =
      c10::Dispatcher::singleton().findSchemaOrThrow("fairseq::attention_forward_reference", "").typed<Function>();
  return reference.call(q, k, v, term, parameters, padding, dropout_p, seed);
}

inline Gradients backward_by_reference(const at::Tensor& grad, const std::optional<at::Tensor>& grad_lse,
                                       const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
                                       const at::Tensor& lse, const std::string& term, at::TensorList parameters,
                                       const std::optional<at::Tensor>& padding, double dropout_p, const at::Tensor& seed) {
  using Function = Gradients(const at::Tensor&, const std::optional<at::Tensor>&, const at::Tensor&, const at::Tensor&,
                             const at::Tensor&, const at::Tensor&, const at::Tensor&, c10::string_view, at::TensorList,
                             const std::optional<at::Tensor>&, double, const at::Tensor&);
  static const auto reference =
      c10::Dispatcher::singleton().findSchemaOrThrow("fairseq::attention_backward_reference", "").typed<Function>();
  return reference.call(grad, grad_lse, q, k, v, out, lse, term, parameters, padding, dropout_p, seed);
}

}  // namespace fairseq
