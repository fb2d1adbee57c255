// Score terms (csrc/common/score_terms.h) from the name and the tensors that operators are given.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <string>
#include <vector>

#include "../common/score_terms.h"
#include "checks.h"

namespace fairseq {

// A term with the tensors that it points into.
template <class Term>
struct Bound {
  Term term;
  std::vector<at::Tensor> values, gradients;  // in the type that kernels compute in; gradients begin as zeros

  // The gradients for `parameters`, whose scores were products times `scale`; empty tensors where nothing is trained.
  std::vector<at::Tensor> finished(at::TensorList parameters, double scale) const {
    std::vector<at::Tensor> out;
    for (size_t n = 0; n < parameters.size(); ++n)
      out.push_back(Term::kTrained ? gradients[n].mul_(1 / scale).to(parameters[n].scalar_type())
                                   : at::empty({0}, parameters[n].options()));
    return out;
  }
};

template <typename acc>
void check_shapes(const AlibiTerm<acc>&, const at::Tensor& q, at::TensorList parameters) {
  TORCH_CHECK(parameters[0].dim() == 1 && parameters[0].size(0) == q.size(1), "slopes must have one number a head");
}

template <typename acc>
void check_shapes(const BandTerm<acc>&, const at::Tensor& q, at::TensorList parameters) {
  const int64_t batch = q.size(0), heads = q.size(1), tokens = q.size(2);
  const at::Tensor &query = parameters[0], &inside = parameters[1], &ends = parameters[2];
  const auto is_table = [&](const at::Tensor& x, int64_t rows) {
    return x.dim() == 4 && x.size(0) == batch && x.size(1) == heads && x.size(2) == rows;
  };
  const bool has_query = query.dim() > 1, has_keys = inside.dim() > 1;
  TORCH_CHECK(has_query || has_keys, "a band needs a table of queries or one of keys");
  TORCH_CHECK(!has_query || (is_table(query, tokens) && query.size(3) % 2 == 1 && query.size(3) >= 3),
              "the table of queries must be (B, H, T, 2w + 1)");
  TORCH_CHECK(!has_keys || (is_table(inside, tokens) && inside.size(3) % 2 == 1 && is_table(ends, 2) && ends.size(3) == tokens),
              "the tables of keys must be (B, H, T, 2w - 1) and (B, H, 2, T)");
  TORCH_CHECK(!has_query || !has_keys || query.size(3) == inside.size(3) + 2, "tables must have one reach");
}

// Parameters of one dimension that are not (H,) are absent ones: (0,).
template <typename acc, typename Number = std::remove_const_t<acc>>
Table<acc> table(const at::Tensor& x) {
  Table<acc> table;
  if (!x.defined() || x.numel() == 0) return table;
  table.data = x.mutable_data_ptr<Number>();
  table.columns = x.dim() == 4 ? x.size(3) : 1;
  for (int64_t dim = 0; dim < 3 && x.dim() == 4; ++dim) table.strides[dim] = x.stride(dim);
  if (x.dim() == 1) table.strides[1] = x.stride(0);
  return table;
}

template <typename acc, template <typename> class Term>
Bound<Term<acc>> bound(Term<acc> term, const at::Tensor& q, at::TensorList parameters, bool backward) {
  constexpr int kCount = Term<acc>::kParameters;
  TORCH_CHECK(parameters.size() == size_t(kCount), "this term takes ", kCount, " parameters, but got ", parameters.size());
  for (const at::Tensor& x : parameters)
    TORCH_CHECK(x.is_floating_point() && x.device() == q.device(), "parameters must be floating-point, where q is");
  check_shapes(term, q, parameters);
  Bound<Term<acc>> made{term, {}, {}};
  std::array<Table<const acc>, kCount> values;
  std::array<Table<acc>, kCount> gradients;
  for (int n = 0; n < kCount; ++n) {
    made.values.push_back(rows_dense(parameters[n].to(sum_type(q))));
    values[n] = table<const acc>(made.values[n]);
    if (!backward || !Term<acc>::kTrained) continue;
    made.gradients.push_back(at::zeros(parameters[n].sizes(), made.values[n].options()));
    gradients[n] = table<acc>(made.gradients[n]);
  }
  made.term.take(values.data(), gradients.data(), q.size(2));
  return made;
}

// f(bound term) for the term of that name.
template <typename acc, class F>
void with_term(const std::string& name, const at::Tensor& q, at::TensorList parameters, bool backward, F f) {
  const bool known = for_term<acc>(name, [&](auto term) { f(bound(term, q, parameters, backward)); });
  TORCH_CHECK(known, "there is no score term \"", name, "\"");
}

}  // namespace fairseq
