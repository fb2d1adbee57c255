// fairseq::alibi_attention on CUDA: the chunks of csrc/torch/attention_chunks.h with the launchers of attention_rows.cu.
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
              "alibi_attention on CUDA takes float32, bfloat16 and float16, but got ", type);
  return type == at::kFloat ? Element::Float32 : type == at::kBFloat16 ? Element::BFloat16 : Element::Float16;
}

void check_launch(int error) { TORCH_CHECK(error == 0, "alibi_attention could not start on the device: CUDA error ", error); }

struct Cuda {
  static at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
    return a.scalar_type() == at::kFloat ? at::bmm(a, b) : at::bmm(a, b, at::kFloat);
  }
  static void* stream() { return c10::cuda::getCurrentCUDAStream().stream(); }
  static void forward(at::ScalarType type, const Rows<AlibiTerm<>>& rows) {
    check_launch(launch_forward_rows(element(type), rows, stream()));
  }
  static void backward(at::ScalarType type, const Rows<AlibiTerm<>>& rows) {
    check_launch(launch_backward_rows(element(type), rows, stream()));
  }
};

std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                           const at::Tensor& slopes, bool asymmetrical,
                                           const std::optional<at::Tensor>& padding, double dropout_p, const at::Tensor& seed) {
  const c10::cuda::CUDAGuard guard(q.device());
  return chunked_forward<Cuda>(q, k, v, checked(q, k, v, slopes, asymmetrical, padding, dropout_p, seed));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k,
                                                        const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                                                        const at::Tensor& slopes, bool asymmetrical,
                                                        const std::optional<at::Tensor>& padding, double dropout_p,
                                                        const at::Tensor& seed) {
  const c10::cuda::CUDAGuard guard(q.device());
  const Extras extras = checked(q, k, v, slopes, asymmetrical, padding, dropout_p, seed);
  check_saved(grad, q, out, lse);
  return chunked_backward<Cuda>(grad, q, k, v, out, lse, extras);
}

}  // namespace
}  // namespace fairseq

TORCH_LIBRARY_IMPL(fairseq, CUDA, m) {
  m.impl("alibi_attention_forward", fairseq::forward);
  m.impl("alibi_attention_backward", fairseq::backward);
}
