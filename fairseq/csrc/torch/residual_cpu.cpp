// fairseq::dropout_add and fairseq::dropout_add_layer_norm on the CPU. Reference implementations: fairseq/ops/residual.py.
//
// Rows are independent of each other, but for the gradients of the norm's weight and bias: those are added up over
// blocks of a fixed number of rows first, so that results do not depend on the number of threads.
//
// Legend: N rows, C columns (the last dimension).
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "checks.h"
#include "residual_rows.h"

namespace fairseq {
namespace {

constexpr int64_t kBlock = 64;  // rows

Dropout dropout_with(double p, const at::Tensor& seed) {
  TORCH_CHECK(p >= 0 && p <= 1, "p must be between 0 and 1");
  TORCH_CHECK(seed.numel() == 1 && seed.scalar_type() == at::kLong && seed.is_cpu(), "seed must be one int64 on the CPU");
  Dropout dropout = dropout_of(p);
  dropout.set_seed(*seed.const_data_ptr<int64_t>());
  return dropout;
}

int64_t columns_of(const at::Tensor& x) { return x.dim() ? x.size(-1) : 1; }

void check_pair(const at::Tensor& x, const at::Tensor& other) {
  TORCH_CHECK(other.sizes() == x.sizes() && other.scalar_type() == x.scalar_type() && other.is_cpu(),
              "x, residual and gradient must be alike");
}

void check_vector(const at::Tensor& x, const at::Tensor& vector) {
  TORCH_CHECK(vector.dim() == 1 && vector.size(0) == columns_of(x) && vector.scalar_type() == x.scalar_type(),
              "weight and bias must be (C,), of the type of x");
}

// f(begin row, end row) for blocks of rows, in parallel.
template <class F>
void blocks_of_rows(int64_t rows, F f) {
  at::parallel_for(0, (rows + kBlock - 1) / kBlock, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) f(block, block * kBlock, std::min(rows, (block + 1) * kBlock));
  });
}

at::Tensor dropout_add(const at::Tensor& x, const std::optional<at::Tensor>& residual, double p, const at::Tensor& seed) {
  if (residual) check_pair(x, *residual);
  const Dropout dropout = dropout_with(p, seed);
  const at::Tensor from = x.contiguous(), base = residual ? residual->contiguous() : at::Tensor();
  const at::Tensor out = at::empty_like(from, at::MemoryFormat::Contiguous);
  const int64_t columns = columns_of(x), rows = columns ? x.numel() / columns : 0;
  for_floating_type(x.scalar_type(), "dropout_add", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* in = from.const_data_ptr<T>();
    const T* add = base.defined() ? base.const_data_ptr<T>() : nullptr;
    T* to = out.mutable_data_ptr<T>();
    blocks_of_rows(rows, [&](int64_t, int64_t begin, int64_t end) {
      std::vector<Wide<T>> factors(dropout.threshold ? columns + 64 : 0);
      for (int64_t row = begin; row < end; ++row) {
        if (dropout.threshold) row_factors(factors.data(), columns, dropout, row);
        add_row<T, T, Wide<T>>(to + row * columns, in + row * columns, add ? add + row * columns : nullptr,
                               dropout.threshold ? factors.data() : nullptr, columns);
      }
    });
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> norm_forward(const at::Tensor& x, const at::Tensor& residual,
                                                            const at::Tensor& weight, const at::Tensor& bias, double eps,
                                                            double p, const at::Tensor& seed) {
  check_pair(x, residual);
  check_vector(x, weight);
  check_vector(x, bias);
  const Dropout dropout = dropout_with(p, seed);
  const at::Tensor from = x.contiguous(), base = residual.contiguous(), scale = weight.contiguous(), shift = bias.contiguous();
  const at::Tensor out = at::empty_like(from, at::MemoryFormat::Contiguous);
  const int64_t columns = columns_of(x), rows = columns ? x.numel() / columns : 0;
  const at::Tensor mean = at::empty({rows}, x.options().dtype(sum_type(x))), rstd = at::empty_like(mean);
  for_floating_type(x.scalar_type(), "dropout_add_layer_norm", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using acc = Wide<T>;
    const T *in = from.const_data_ptr<T>(), *add = base.const_data_ptr<T>();
    T* to = out.mutable_data_ptr<T>();
    acc *means = mean.mutable_data_ptr<acc>(), *rstds = rstd.mutable_data_ptr<acc>();
    blocks_of_rows(rows, [&](int64_t, int64_t begin, int64_t end) {
      std::vector<acc> buffer(2 * columns + 64);
      acc *z = buffer.data(), *factors = dropout.threshold ? z + columns : nullptr;
      for (int64_t row = begin; row < end; ++row) {
        const int64_t at = row * columns;
        if (factors) row_factors(factors, columns, dropout, row);
        add_row<T, acc, acc>(z, in + at, add + at, factors, columns);
        const Moments<acc> moments = norm_row<T, acc>(to + at, z, scale.const_data_ptr<T>(), shift.const_data_ptr<T>(), columns, acc(eps));
        means[row] = moments.mean, rstds[row] = moments.rstd;
      }
    });
  });
  return {out, mean, rstd};
}

// The first result is empty without dropout: the gradient of x is then that of the residual.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> norm_backward(const at::Tensor& grad, const at::Tensor& x,
                                                                         const at::Tensor& residual, const at::Tensor& weight,
                                                                         const at::Tensor& mean, const at::Tensor& rstd,
                                                                         double p, const at::Tensor& seed) {
  check_pair(x, residual);
  check_pair(x, grad);
  check_vector(x, weight);
  const Dropout dropout = dropout_with(p, seed);
  const int64_t columns = columns_of(x), rows = columns ? x.numel() / columns : 0;
  TORCH_CHECK(mean.numel() == rows && rstd.numel() == rows && mean.scalar_type() == sum_type(x) && rstd.scalar_type() == sum_type(x) &&
                  mean.is_contiguous() && rstd.is_contiguous(), "mean and rstd must be those of the forward pass");
  const at::Tensor up = grad.contiguous(), from = x.contiguous(), base = residual.contiguous(), scale = weight.contiguous();
  const at::Tensor dresidual = at::empty_like(from, at::MemoryFormat::Contiguous);
  const at::Tensor dx = dropout.threshold ? at::empty_like(dresidual) : at::empty({0}, x.options());
  const at::Tensor dweight = at::empty({columns}, x.options()), dbias = at::empty({columns}, x.options());
  const at::Tensor parts = at::zeros({(rows + kBlock - 1) / kBlock, 2 * columns}, mean.options());
  for_floating_type(x.scalar_type(), "dropout_add_layer_norm", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using acc = Wide<T>;
    const T *gradient = up.const_data_ptr<T>(), *in = from.const_data_ptr<T>(), *add = base.const_data_ptr<T>();
    T *to = dresidual.mutable_data_ptr<T>(), *dropped = dropout.threshold ? dx.mutable_data_ptr<T>() : nullptr;
    acc* sums = parts.mutable_data_ptr<acc>();
    const acc *means = mean.const_data_ptr<acc>(), *rstds = rstd.const_data_ptr<acc>();
    blocks_of_rows(rows, [&](int64_t block, int64_t begin, int64_t end) {
      std::vector<acc> buffer(2 * columns + 64);
      acc *z = buffer.data(), *factors = dropout.threshold ? z + columns : nullptr, *sum = sums + block * 2 * columns;
      for (int64_t row = begin; row < end; ++row) {
        const int64_t at = row * columns;
        if (factors) row_factors(factors, columns, dropout, row);
        add_row<T, acc, acc>(z, in + at, add + at, factors, columns);
        norm_row_backward<T, acc>(gradient + at, z, scale.const_data_ptr<T>(), factors, {means[row], rstds[row]}, columns,
                                  dropped ? dropped + at : nullptr, to + at, sum, sum + columns);
      }
    });
    for (int64_t c = 0; c < columns; ++c) {
      acc first = 0, second = 0;
      for (int64_t block = 0; block < parts.size(0); ++block)
        first += sums[block * 2 * columns + c], second += sums[block * 2 * columns + columns + c];
      dweight.mutable_data_ptr<T>()[c] = narrow<T>(first);
      dbias.mutable_data_ptr<T>()[c] = narrow<T>(second);
    }
  });
  return {dx, dresidual, dweight, dbias};
}

}  // namespace
}  // namespace fairseq

TORCH_LIBRARY_IMPL(fairseq, CPU, m) {
  m.impl("dropout_add", fairseq::dropout_add);
  m.impl("dropout_add_layer_norm_forward", fairseq::norm_forward);
  m.impl("dropout_add_layer_norm_backward", fairseq::norm_backward);
}
