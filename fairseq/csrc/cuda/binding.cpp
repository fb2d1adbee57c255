// fairseq::attention on CUDA: the chunks of csrc/torch/attention_chunks.h with the launchers of attention_rows.cu.
// Compiled only with a CUDA build of torch.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "../torch/attention_chunks.h"
#include "launch.h"

namespace fairseq {
namespace {

Element element(at::ScalarType type) {
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
              "attention on CUDA takes float32, bfloat16 and float16, but got ", type);
  return type == at::kFloat ? Element::Float32 : type == at::kBFloat16 ? Element::BFloat16 : Element::Float16;
}

void check_launch(int error) { TORCH_CHECK(error == 0, "attention could not start on the device: CUDA error ", error); }

struct Cuda {
  static at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
    return a.scalar_type() == at::kFloat ? at::bmm(a, b) : at::bmm(a, b, at::kFloat);
  }
  static void* stream() { return c10::cuda::getCurrentCUDAStream().stream(); }
  template <class Term>
  static void forward(at::ScalarType type, const Rows<Term>& rows) {
    check_launch(launch_forward_rows(element(type), rows, stream()));
  }
  template <class Term>
  static void backward(at::ScalarType type, const Rows<Term>& rows) {
    check_launch(launch_backward_rows(element(type), rows, stream()));
  }
  template <class Term>
  static void columns(at::ScalarType type, const Rows<Term>& rows) {
    check_launch(launch_backward_columns(element(type), rows, stream()));
  }
};

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                           const std::string& term, at::TensorList parameters,
                                           const std::optional<at::Tensor>& padding, double dropout_p, const at::Tensor& seed) {
  const c10::cuda::CUDAGuard guard(q.device());
  if (q.scalar_type() == at::kDouble) return forward_by_reference(q, k, v, term, parameters, padding, dropout_p, seed);
  return forward_in_chunks<Cuda>(q, k, v, term, parameters, padding, dropout_p, seed);
}

Gradients backward(const at::Tensor& grad, const std::optional<at::Tensor>& grad_lse, const at::Tensor& q,
                   const at::Tensor& k, const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                   const std::string& term, at::TensorList parameters, const std::optional<at::Tensor>& padding,
                   double dropout_p, const at::Tensor& seed) {
  const c10::cuda::CUDAGuard guard(q.device());
  if (q.scalar_type() == at::kDouble)
    return backward_by_reference(grad, grad_lse, q, k, v, out, lse, term, parameters, padding, dropout_p, seed);
  return backward_in_chunks<Cuda>(grad, grad_lse, q, k, v, out, lse, term, parameters, padding, dropout_p, seed);
}

}  // namespace
}  // namespace fairseq

TORCH_LIBRARY_IMPL(fairseq, CUDA, m) {
  m.impl("attention_forward", fairseq::forward);
  m.impl("attention_backward", fairseq::backward);
}
