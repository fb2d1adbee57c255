// The CUDA path of fairseq::attention on the CPU, lane after lane, for tests: the same chunks and the same row
// bodies with a host group of lanes. `most_scores` sets the size of a chunk, so that small problems have several.
#include <torch/library.h>

#include "attention_chunks.h"

namespace fairseq {
namespace {

struct Host {
  static at::Tensor product(const at::Tensor& a, const at::Tensor& b) { return at::bmm(a.to(at::kFloat), b.to(at::kFloat)); }

  template <class F>
  static void each(at::ScalarType type, int64_t count, F f) {
    for (int64_t index = 0; index < count; ++index) {
      if (type == at::kFloat) f(static_cast<float*>(nullptr), index);
      else if (type == at::kBFloat16) f(static_cast<at::BFloat16*>(nullptr), index);
      else if (type == at::kHalf) f(static_cast<at::Half*>(nullptr), index);
      else TORCH_CHECK(false, "the row kernels take float32, bfloat16 and float16, but got ", type);
    }
  }
  template <class Term>
  static void forward(at::ScalarType type, const Rows<Term>& rows) {
    each(type, rows.heads * rows.rows,
         [&](auto* p, int64_t index) { forward_row<std::remove_pointer_t<decltype(p)>>(HostGroup(), rows, index); });
  }
  template <class Term>
  static void backward(at::ScalarType type, const Rows<Term>& rows) {
    each(type, rows.heads * rows.rows,
         [&](auto* p, int64_t index) { backward_row<std::remove_pointer_t<decltype(p)>>(HostGroup(), rows, index); });
  }
  template <class Term>
  static void columns(at::ScalarType type, const Rows<Term>& rows) {
    each(type, rows.heads * rows.tokens,
         [&](auto* p, int64_t index) { backward_column<std::remove_pointer_t<decltype(p)>>(rows, index); });
  }
};

}  // namespace
}  // namespace fairseq

TORCH_LIBRARY_FRAGMENT(fairseq_host, m) {
  m.def(
      "attention_rows_forward(Tensor q, Tensor k, Tensor v, str term, Tensor[] parameters, Tensor? key_padding_mask, "
      "float dropout_p, Tensor seed, int most_scores) -> (Tensor, Tensor)",
      fairseq::forward_in_chunks<fairseq::Host>);
  m.def(
      "attention_rows_backward(Tensor grad, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
      "str term, Tensor[] parameters, Tensor? key_padding_mask, float dropout_p, Tensor seed, int most_scores) "
      "-> (Tensor, Tensor, Tensor, Tensor[])",
      fairseq::backward_in_chunks<fairseq::Host>);
  m.def(
      "attention_forward_by_reference(Tensor q, Tensor k, Tensor v, str term, Tensor[] parameters, "
      "Tensor? key_padding_mask, float dropout_p, Tensor seed) -> (Tensor, Tensor)",
      fairseq::forward_by_reference);
  m.def(
      "attention_backward_by_reference(Tensor grad, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, "
      "Tensor lse, str term, Tensor[] parameters, Tensor? key_padding_mask, float dropout_p, Tensor seed) "
      "-> (Tensor, Tensor, Tensor, Tensor[])",
      fairseq::backward_by_reference);
}
