// The row kernels of attention on a device: a warp takes a row, a block of four warps four rows at a time; and a thread
// a column, so that a warp reads neighbouring numbers of each row.
// Compiles without torch; the bodies are in csrc/common/attention_rows.h and tested on the host.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "launch.h"

namespace fairseq {

template <>
struct Narrow<__half> {
  static __device__ __half of(float value) { return __float2half_rn(value); }
};
template <>
struct Narrow<__nv_bfloat16> {
  static __device__ __nv_bfloat16 of(float value) { return __float2bfloat16_rn(value); }
};
template <>
struct Widen<__half> {
  static __device__ float of(__half value) { return __half2float(value); }
};
template <>
struct Widen<__nv_bfloat16> {
  static __device__ float of(__nv_bfloat16 value) { return __bfloat162float(value); }
};

namespace {

constexpr int kWarps = 4;

struct Shared {
  uint32_t mine;

  __device__ __forceinline__ uint32_t operator()(int lane) const { return __shfl_sync(0xFFFFFFFFu, mine, lane); }
};

struct Warp {
  int lane;

  template <class F>
  __device__ __forceinline__ void each(F f) const {
    f(lane);
  }
  template <class F>
  __device__ __forceinline__ float max(F f) const {
    float value = f(lane);
    for (int distance = kLanes / 2; distance > 0; distance /= 2)
      value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, distance));
    return value;
  }
  template <class F>
  __device__ __forceinline__ float sum(F f) const {
    float value = f(lane);
    for (int distance = kLanes / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, distance);
    return value;
  }
  template <class F>
  __device__ __forceinline__ Shared share(int own, F f) const {
    return {f(own)};
  }
  template <int N, class F>
  __device__ __forceinline__ Sums<N> sums(F f) const {
    Sums<N> total = f(lane);
    for (int n = 0; n < N; ++n) total.at[n] = sum([&](int) { return total.at[n]; });
    return total;
  }
};

enum class Kernel { ForwardRows, BackwardRows, BackwardColumns };

template <typename T, Kernel kKernel, class Term>
__global__ void __launch_bounds__(kWarps* kLanes) kernel(const Rows<Term> rows) {
  const int64_t step = int64_t(gridDim.x) * kWarps;
  int64_t index = int64_t(blockIdx.x) * kWarps + threadIdx.y;
  if (kKernel == Kernel::BackwardColumns) {
    for (index = index * kLanes + threadIdx.x; index < rows.heads * rows.tokens; index += step * kLanes)
      backward_column<T>(rows, index);
    return;
  }
  const Warp warp{int(threadIdx.x)};
  // All lanes of a warp have one index, so a warp leaves as a whole and its shuffles are complete.
  for (; index < rows.heads * rows.rows; index += step) {
    if (kKernel == Kernel::ForwardRows) {
      forward_row<T>(warp, rows, index);
    } else {
      backward_row<T>(warp, rows, index);
    }
  }
}

template <Kernel kKernel, class Term>
int launch(Element type, const Rows<Term>& rows, void* stream) {
  const int64_t warps = kKernel == Kernel::BackwardColumns ? (rows.heads * rows.tokens + kLanes - 1) / kLanes
                                                           : rows.heads * rows.rows;
  const int64_t blocks = (warps + kWarps - 1) / kWarps;
  if (blocks == 0) return 0;
  const dim3 grid(unsigned(blocks < 0x7FFFFFFF ? blocks : 0x7FFFFFFF)), block(kLanes, kWarps);
  const auto on = static_cast<cudaStream_t>(stream);
  switch (type) {
    case Element::Float32: kernel<float, kKernel><<<grid, block, 0, on>>>(rows); break;
    case Element::BFloat16: kernel<__nv_bfloat16, kKernel><<<grid, block, 0, on>>>(rows); break;
    case Element::Float16: kernel<__half, kKernel><<<grid, block, 0, on>>>(rows); break;
  }
  return int(cudaGetLastError());
}

}  // namespace

template <class Term>
int launch_forward_rows(Element type, const Rows<Term>& rows, void* stream) {
  return launch<Kernel::ForwardRows>(type, rows, stream);
}
template <class Term>
int launch_backward_rows(Element type, const Rows<Term>& rows, void* stream) {
  return launch<Kernel::BackwardRows>(type, rows, stream);
}
template <class Term>
int launch_backward_columns(Element type, const Rows<Term>& rows, void* stream) {
  return Term::kColumns ? launch<Kernel::BackwardColumns>(type, rows, stream) : 0;
}

#define FS_LAUNCHERS(Term)                                                       \
  template int launch_forward_rows(Element, const Rows<Term<float>>&, void*);    \
  template int launch_backward_rows(Element, const Rows<Term<float>>&, void*);   \
  template int launch_backward_columns(Element, const Rows<Term<float>>&, void*);
FS_SCORE_TERMS(FS_LAUNCHERS)

}  // namespace fairseq
