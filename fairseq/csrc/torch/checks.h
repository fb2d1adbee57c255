// What the operators on tensors check and prepare on every device. User mistakes are caught in Python with better words;
// these checks keep memory safe when an operator is called directly.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <optional>

namespace fairseq {

struct Extras {
  at::Tensor padding;  // (B, T) bool, dense, or undefined
  double dropout_p;
  at::Tensor seed;     // one int64
};

inline Extras checked(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const std::optional<at::Tensor>& padding, double dropout_p, const at::Tensor& seed) {
  TORCH_CHECK(q.dim() == 4 && q.sizes() == k.sizes() && q.sizes() == v.sizes(), "q, k, v must have one shape (B, H, T, D)");
  TORCH_CHECK(q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(), "q, k, v must have one type");
  TORCH_CHECK(q.device() == k.device() && q.device() == v.device() && q.device() == seed.device() &&
                  (!padding || padding->device() == q.device()),
              "all tensors must be on one device");
  TORCH_CHECK(q.size(2) < (int64_t(1) << 24), "too many tokens");  // offsets are exact in float32
  TORCH_CHECK(!padding || (padding->dim() == 2 && padding->size(0) == q.size(0) && padding->size(1) == q.size(2) &&
                           padding->scalar_type() == at::kBool),
              "key_padding_mask must be bool (B, T)");
  TORCH_CHECK(dropout_p >= 0 && dropout_p <= 1, "dropout_p must be between 0 and 1");
  TORCH_CHECK(seed.numel() == 1 && seed.scalar_type() == at::kLong, "seed must be one int64");
  return {padding ? padding->contiguous() : at::Tensor(), dropout_p, seed};
}

inline at::ScalarType sum_type(const at::Tensor& q) { return q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

inline void check_saved(const at::Tensor& grad, const std::optional<at::Tensor>& grad_lse, const at::Tensor& q,
                        const at::Tensor& out, const at::Tensor& lse) {
  TORCH_CHECK(grad.sizes() == q.sizes() && out.sizes() == q.sizes() && grad.scalar_type() == q.scalar_type() &&
                  out.scalar_type() == q.scalar_type(),
              "the gradient and the output must be like q");
  TORCH_CHECK(lse.dim() == 3 && lse.sizes() == q.sizes().slice(0, 3) && lse.scalar_type() == sum_type(q),
              "lse must be (B, H, T), float32 or that of float64");
  TORCH_CHECK(!grad_lse || (grad_lse->sizes() == lse.sizes() && grad_lse->scalar_type() == lse.scalar_type() &&
                            grad_lse->device() == lse.device()),
              "the gradient of lse must be like lse");
}

// A view or copy whose last dimension is dense; rows of an even number of two-byte numbers begin at whole words.
inline at::Tensor rows_dense(const at::Tensor& x) {
  const auto even = [](int64_t n) { return n % 2 == 0; };
  const bool words = x.element_size() != 2 ||
                     (even(x.storage_offset()) && std::all_of(x.strides().begin(), x.strides().end() - 1, even));
  return words && (x.stride(-1) == 1 || x.size(-1) == 1) ? x : x.contiguous();
}

// (B, H, T, D) laid out as (B, T, H, D): joining the heads is then a view.
inline at::Tensor like_heads(const at::Tensor& q) {
  return at::empty({q.size(0), q.size(2), q.size(1), q.size(3)}, q.options()).transpose(1, 2);
}

}  // namespace fairseq
