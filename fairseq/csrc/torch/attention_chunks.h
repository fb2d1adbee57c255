// fairseq::alibi_attention as products of the library around row kernels (csrc/common/attention_rows.h): what runs on
// CUDA, and in the host test with another `Device`.
//
// A device's tensor cores do the products best by its own library; everything between them is one pass over the scores.
// Scores exist for a chunk at a time: at most kScores numbers, whatever B, H and T are (as long as a row fits). So memory
// beyond inputs, outputs and the row sums is constant: 128 MiB of float32 scores and half as much of probabilities in
// half precision, twice that in backward; and a chunk is large enough to fill a device.
//
// `Device` provides `product(a, b)` (batched, float32 result), `forward(type, rows)` and `backward(type, rows)`.
//
// Legend: B sequences, H heads, T tokens, D head width, N heads and R query rows of a chunk.
#pragma once

#include <ATen/ATen.h>

#include <tuple>

#include "../common/attention_rows.h"
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

inline Rows<AlibiTerm<>> rows_of(const at::Tensor& q, const Extras& extras, const at::Tensor& lse) {
  Rows<AlibiTerm<>> rows{};
  rows.tokens = q.size(2);
  rows.heads_per_sequence = q.size(1);
  rows.term = {extras.slopes.const_data_ptr<float>(), extras.asymmetrical};
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

template <class Device>
std::tuple<at::Tensor, at::Tensor> chunked_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                   const Extras& extras, int64_t most_scores = kScores) {
  const int64_t heads = q.size(0) * q.size(1), tokens = q.size(2);
  const at::Tensor out = like_heads(q), lse = at::empty({q.size(0), q.size(1), tokens}, q.options().dtype(at::kFloat));
  if (q.numel() == 0) return {out, lse};
  const at::Tensor qs = merged(q), ks = merged(k), vs = merged(v), result = at::empty_like(qs);
  const Chunks chunks = chunks_of(heads, tokens, most_scores);
  Rows<AlibiTerm<>> rows = rows_of(q, extras, lse);
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

template <class Device>
std::tuple<at::Tensor, at::Tensor, at::Tensor> chunked_backward(const at::Tensor& grad, const at::Tensor& q,
                                                                const at::Tensor& k, const at::Tensor& v,
                                                                const at::Tensor& out, const at::Tensor& lse,
                                                                const Extras& extras, int64_t most_scores = kScores) {
  const int64_t heads = q.size(0) * q.size(1), tokens = q.size(2);
  const at::Tensor dq = like_heads(q), dk = like_heads(q), dv = like_heads(q);
  if (q.numel() == 0) return {dq, dk, dv};
  const at::Tensor qs = merged(q), ks = merged(k), vs = merged(v), up = merged(grad);
  const at::Tensor delta = (merged(out).to(at::kFloat) * up.to(at::kFloat)).sum(-1), sums = lse.contiguous();
  const auto wide = q.options().dtype(at::kFloat);  // rows of several chunks add up in float32
  const at::Tensor dqs = at::empty(qs.sizes(), wide), dks = at::zeros(qs.sizes(), wide), dvs = at::zeros(qs.sizes(), wide);
  const Chunks chunks = chunks_of(heads, tokens, most_scores);
  Rows<AlibiTerm<>> rows = rows_of(q, extras, sums);
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
    here(dqs).copy_(Device::product(dscores, cut(ks, head, chunks)));
    cut(dks, head, chunks).add_(Device::product(dscores.transpose(1, 2), queries));
    cut(dvs, head, chunks).add_(Device::product(weights.transpose(1, 2), upstream));
  });
  dq.copy_(dqs.view(q.sizes()));
  dk.copy_(dks.view(q.sizes()));
  dv.copy_(dvs.view(q.sizes()));
  return {dq, dk, dv};
}

}  // namespace fairseq
