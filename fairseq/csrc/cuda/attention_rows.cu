// The row kernels of attention on a device: a warp takes a row, a block of four warps four rows at a time.
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
};

template <typename T, bool kForward>
__global__ void __launch_bounds__(kWarps* kLanes) row_kernel(const Rows<AlibiTerm<>> rows) {
  const Warp warp{int(threadIdx.x)};
  // All lanes of a warp have one index, so a warp leaves as a whole and its shuffles are complete.
  for (int64_t index = int64_t(blockIdx.x) * kWarps + threadIdx.y; index < rows.heads * rows.rows;
       index += int64_t(gridDim.x) * kWarps) {
    if (kForward) {
      forward_row<T>(warp, rows, index);
    } else {
      backward_row<T>(warp, rows, index);
    }
  }
}

template <bool kForward>
int launch(Element type, const Rows<AlibiTerm<>>& rows, void* stream) {
  const int64_t blocks = (rows.heads * rows.rows + kWarps - 1) / kWarps;
  if (blocks == 0) return 0;
  const dim3 grid(unsigned(blocks < 0x7FFFFFFF ? blocks : 0x7FFFFFFF)), block(kLanes, kWarps);
  const auto on = static_cast<cudaStream_t>(stream);
  switch (type) {
    case Element::Float32: row_kernel<float, kForward><<<grid, block, 0, on>>>(rows); break;
    case Element::BFloat16: row_kernel<__nv_bfloat16, kForward><<<grid, block, 0, on>>>(rows); break;
    case Element::Float16: row_kernel<__half, kForward><<<grid, block, 0, on>>>(rows); break;
  }
  return int(cudaGetLastError());
}

}  // namespace

int launch_forward_rows(Element type, const Rows<AlibiTerm<>>& rows, void* stream) { return launch<true>(type, rows, stream); }

int launch_backward_rows(Element type, const Rows<AlibiTerm<>>& rows, void* stream) { return launch<false>(type, rows, stream); }

}  // namespace fairseq
