// The CUDA path of fairseq::alibi_attention on the CPU, lane after lane, for tests: the same chunks and the same row
// bodies with a host group of lanes. `most_scores` sets the size of a chunk, so that small problems have several.
#include <torch/library.h>

#include "attention_chunks.h"

namespace fairseq {
namespace {

struct Host {
  static at::Tensor product(const at::Tensor& a, const at::Tensor& b) { return at::bmm(a.to(at::kFloat), b.to(at::kFloat)); }

  template <class F>
  static void each_row(at::ScalarType type, const Rows<AlibiTerm<>>& rows, F f) {
    for (int64_t index = 0; index < rows.heads * rows.rows; ++index) {
      if (type == at::kFloat) f(static_cast<float*>(nullptr), index);
      else if (type == at::kBFloat16) f(static_cast<at::BFloat16*>(nullptr), index);
      else if (type == at::kHalf) f(static_cast<at::Half*>(nullptr), index);
      else TORCH_CHECK(false, "the row kernels take float32, bfloat16 and float16, but got ", type);
    }
  }
  static void forward(at::ScalarType type, const Rows<AlibiTerm<>>& rows) {
    each_row(type, rows, [&](auto* p, int64_t index) { forward_row<std::remove_pointer_t<decltype(p)>>(HostGroup(), rows, index); });
  }
  static void backward(at::ScalarType type, const Rows<AlibiTerm<>>& rows) {
    each_row(type, rows, [&](auto* p, int64_t index) { backward_row<std::remove_pointer_t<decltype(p)>>(HostGroup(), rows, index); });
  }
};

std::tuple<at::Tensor, at::Tensor> rows_forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                const at::Tensor& slopes, bool asymmetrical,
                                                const std::optional<at::Tensor>& padding, double dropout_p,
                                                const at::Tensor& seed, int64_t most_scores) {
  return chunked_forward<Host>(q, k, v, checked(q, k, v, slopes, asymmetrical, padding, dropout_p, seed), most_scores);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> rows_backward(const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k,
                                                             const at::Tensor& v, const at::Tensor& out, const at::Tensor& lse,
                                                             const at::Tensor& slopes, bool asymmetrical,
                                                             const std::optional<at::Tensor>& padding, double dropout_p,
                                                             const at::Tensor& seed, int64_t most_scores) {
  const Extras extras = checked(q, k, v, slopes, asymmetrical, padding, dropout_p, seed);
  check_saved(grad, q, out, lse);
  return chunked_backward<Host>(grad, q, k, v, out, lse, extras, most_scores);
}

}  // namespace
}  // namespace fairseq

TORCH_LIBRARY_FRAGMENT(fairseq_host, m) {
  m.def("attention_rows_forward", fairseq::rows_forward);
  m.def("attention_rows_backward", fairseq::rows_backward);
}
