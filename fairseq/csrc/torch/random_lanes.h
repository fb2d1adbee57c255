// The random words of a chunk of keys (csrc/common/philox.h), all lanes at once.
#pragma once

#include "../common/philox.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define FS_AVX512_LANES 1
#endif

namespace fairseq {

using Words = uint32_t[kHalves / 2][kLanes];

// words[w][lane] of the counters (first + lane, row, head, 0).
FS_HOST_DEVICE void random_lanes(Words& words, uint32_t first, uint32_t row, uint32_t head, uint32_t key0, uint32_t key1) {
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t a = first + uint32_t(lane), b = row, c = head, d = 0;
    philox(a, b, c, d, key0, key1);
    words[0][lane] = a, words[1][lane] = b, words[2][lane] = c, words[3][lane] = d;
  }
}

#ifdef FS_AVX512_LANES

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // of registers that GCC's own header leaves open

// Compilers multiply 64-bit lanes for the products of 32-bit ones, in three times the time.
struct WideProduct {
  __m512i high, low;

  __attribute__((target("avx512f"), always_inline)) inline WideProduct(__m512i x, __m512i by) {
    const __m512i even = _mm512_mul_epu32(x, by), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), by);
    high = _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd);
    low = _mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32));
  }
};

__attribute__((target("avx512f"))) inline void random_lanes_avx512(Words& words, uint32_t first, uint32_t row, uint32_t head,
                                                                    uint32_t key0, uint32_t key1) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i one = _mm512_set1_epi32(int(0xD2511F53u)), two = _mm512_set1_epi32(int(0xCD9E8D57u));
  constexpr int kParts = kLanes / 16;
  __m512i a[kParts], b[kParts], c[kParts], d[kParts];
  for (int p = 0; p < kParts; ++p) {
    a[p] = _mm512_add_epi32(lanes, _mm512_set1_epi32(int(first) + 16 * p));
    b[p] = _mm512_set1_epi32(int(row)), c[p] = _mm512_set1_epi32(int(head)), d[p] = _mm512_setzero_si512();
  }
  for (int round = 0; round < 10; ++round) {
    const __m512i k0 = _mm512_set1_epi32(int(key0)), k1 = _mm512_set1_epi32(int(key1));
    for (int p = 0; p < kParts; ++p) {
      const WideProduct left(a[p], one), right(c[p], two);
      a[p] = _mm512_ternarylogic_epi32(right.high, b[p], k0, 0x96);  // the exclusive or of three
      b[p] = right.low;
      c[p] = _mm512_ternarylogic_epi32(left.high, d[p], k1, 0x96);
      d[p] = left.low;
    }
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  for (int p = 0; p < kParts; ++p) {
    _mm512_storeu_si512(words[0] + 16 * p, a[p]), _mm512_storeu_si512(words[1] + 16 * p, b[p]);
    _mm512_storeu_si512(words[2] + 16 * p, c[p]), _mm512_storeu_si512(words[3] + 16 * p, d[p]);
  }
}

#pragma GCC diagnostic pop

inline const bool kHasAvx512 = __builtin_cpu_supports("avx512f");

#endif

}  // namespace fairseq
