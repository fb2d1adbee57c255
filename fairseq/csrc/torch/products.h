// What kernels made of small matrix products share: the product, memory for its operands, and quick denormal numbers.
#pragma once

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace fairseq {

inline int64_t rounded_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// C (m, n; leading dimension ldc) = A (m, k; leading dimension lda) B (k, n; leading dimension ldb), added to C if `add`.
inline void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                    int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, /*is_vnni=*/false);
}

inline void product(int64_t m, int64_t n, int64_t k, const at::BFloat16* a, int64_t lda, const at::BFloat16* b, int64_t ldb,
                    float* c, int64_t ldc, bool add) {  // rows of B in pairs: (k / 2, n, 2)
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, /*is_vnni=*/true);
}

inline void product(int64_t m, int64_t n, int64_t k, const double* a, int64_t lda, const double* b, int64_t ldb, double* c,
                    int64_t ldc, bool add) {
  for (int64_t i = 0; i < m; ++i) {
    if (!add) std::fill(c + i * ldc, c + i * ldc + n, 0.0);
    for (int64_t l = 0; l < k; ++l)
      for (int64_t j = 0; j < n; ++j) c[i * ldc + j] += a[i * lda + l] * b[l * ldb + j];
  }
}

// Decaying numbers end near the smallest one, and their products below it; processors take a hundred times as long for
// those. While this lives, its thread takes them for zero.
struct FlushDenormals {
#if defined(__SSE2__)
  const unsigned before = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(before | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before); }
#endif
};

template <typename acc>
struct Buffer {  // uninitialised, aligned
  explicit Buffer(int64_t count)
      : data(static_cast<acc*>(std::aligned_alloc(64, rounded_up(std::max<int64_t>(count, 1) * sizeof(acc), 64)))) {
    TORCH_CHECK(data, "out of memory");
  }
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator acc*() const { return data; }
  acc* data;
};

}  // namespace fairseq
