// fairseq::low_precision_adam_ and fairseq::block_norms on the CPU: what the update of a bfloat16 or float16 model does with
// its gradients, in one pass over memory each. Reference implementations: fairseq/ops/adam.py.
//
// A thread takes a piece that fits its core's cache through all of its steps. The steps themselves are torch's kernels
// (its conversions, its AdamW, its norm): the results are to the last bit those of the reference implementations, and do not depend on the number
// of threads, because pieces are independent and every piece but a tensor's last is a multiple of any vector width.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/_fused_adamw_cpu_dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

namespace fairseq {
namespace {

constexpr int64_t kPiece = 1 << 15;  // values: with weight, moments and gradient about 600 KB

struct Piece {
  size_t tensor;
  int64_t begin, size;
};

std::vector<Piece> cut(at::TensorList tensors, int64_t size) {
  std::vector<Piece> pieces;
  for (size_t i = 0; i < tensors.size(); ++i)
    for (int64_t begin = 0; begin < tensors[i].numel(); begin += size)
      pieces.push_back({i, begin, std::min(size, tensors[i].numel() - begin)});
  return pieces;
}

// A one-dimensional view that autograd knows nothing of.
at::Tensor part(const at::Tensor& whole, const Piece& piece) {
  char* start = static_cast<char*>(whole.data_ptr()) + piece.begin * whole.element_size();
  return at::from_blob(start, {piece.size}, whole.options().requires_grad(false));
}

// f(piece, float32 memory for kPiece values) for all pieces, in parallel.
template <class F>
void for_pieces(const std::vector<Piece>& pieces, int64_t size, F f) {
  at::parallel_for(0, pieces.size(), 1, [&](int64_t begin, int64_t end) {
    at::AutoDispatchBelowADInplaceOrView plain;
    const at::Tensor memory = at::empty({size}, at::kFloat);
    for (int64_t i = begin; i < end; ++i) f(i, memory.narrow(0, 0, pieces[i].size));
  });
}

void check_dense(at::TensorList tensors, bool float32) {
  for (const at::Tensor& tensor : tensors)
    TORCH_CHECK(tensor.is_cpu() && tensor.is_contiguous() && (!float32 || tensor.scalar_type() == at::kFloat),
                "masters and moments must be dense float32 tensors, gradients and low-precision parameters dense ones, on the CPU");
}

void low_precision_adam(at::TensorList params, at::TensorList grads, at::TensorList exp_avgs, at::TensorList exp_avg_sqs,
                       at::TensorList low_params, double step, double lr, double beta1, double beta2, double weight_decay,
                       double eps, const std::optional<at::Tensor>& factor) {
  for (at::TensorList list : {params, exp_avgs, exp_avg_sqs}) check_dense(list, true);
  for (at::TensorList list : {grads, low_params}) check_dense(list, false);
  for (at::TensorList list : {grads, exp_avgs, exp_avg_sqs, low_params}) {
    TORCH_CHECK(list.size() == params.size(), "all lists must have one length");
    for (size_t i = 0; i < params.size(); ++i)
      TORCH_CHECK(list[i].numel() == params[i].numel(), "tensors of one parameter must have one size");
  }
  const at::Tensor steps = at::full({}, step, at::kFloat);
  std::optional<at::Tensor> scale;
  if (factor) scale = at::full({}, 1.0 / factor->item<double>(), at::kFloat);  // torch divides by it
  const std::vector<Piece> pieces = cut(params, kPiece);
  for_pieces(pieces, kPiece, [&](int64_t i, const at::Tensor& grad) {
    const Piece& piece = pieces[i];
    const size_t n = piece.tensor;
    const at::Tensor param = part(params[n], piece);
    grad.copy_(part(grads[n], piece));
    at::cpu::_fused_adamw_({param}, {grad}, {part(exp_avgs[n], piece)}, {part(exp_avg_sqs[n], piece)}, {}, {steps}, lr,
                           beta1, beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false, scale, {});
    part(low_params[n], piece).copy_(param);
  });
  for (at::TensorList list : {params, exp_avgs, exp_avg_sqs, low_params})
    for (const at::Tensor& tensor : list)
      if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

at::Tensor block_norms(at::TensorList tensors, int64_t block) {
  TORCH_CHECK(block > 0, "block must be positive");
  check_dense(tensors, false);
  const int64_t size = std::max<int64_t>(kPiece / block, 1) * block;
  const std::vector<Piece> pieces = cut(tensors, size);
  std::vector<int64_t> starts;
  int64_t count = 0;
  for (const Piece& piece : pieces) starts.push_back(count), count += (piece.size + block - 1) / block;
  at::Tensor norms = at::empty({count}, at::kFloat);
  for_pieces(pieces, size, [&](int64_t i, const at::Tensor& values) {
    values.copy_(part(tensors[pieces[i].tensor], pieces[i]));
    const int64_t whole = values.numel() / block;
    if (whole > 0) {
      at::Tensor out = norms.narrow(0, starts[i], whole);
      at::linalg_vector_norm_out(out, values.narrow(0, 0, whole * block).view({whole, block}), 2, at::IntArrayRef{1});
    }
    if (whole * block < values.numel())
      norms[starts[i] + whole].copy_(at::linalg_vector_norm(values.narrow(0, whole * block, values.numel() - whole * block)));
  });
  return norms;
}

}  // namespace
}  // namespace fairseq

TORCH_LIBRARY_IMPL(fairseq, CPU, m) {
  m.impl("low_precision_adam_", fairseq::low_precision_adam);
  m.impl("block_norms", fairseq::block_norms);
}
