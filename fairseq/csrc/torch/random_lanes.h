// The random bits of a chunk of keys (csrc/common/philox.h), many counters at once.
//
// The words of a counter, as they lie in memory, are the numbers of its 8 keys in order. The forms for vector units take
// a counter a 64-bit lane: one instruction multiplies the low halves of such lanes, and what is in the high halves never
// matters. So a product is the next b or d as it is, and shifted the next c or a. At the end neighbouring lanes of two
// vectors change places, for which their counters are numbered so that results come out in order.
#pragma once

#include "../common/philox.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define FS_X86 1
#endif

namespace fairseq {

using Bits = uint16_t[kChunk];

// bits[8 * lane + t] = half t of the counter (first + lane, row, head, 0).
inline void random_bits_plain(Bits& bits, uint32_t first, uint32_t row, uint32_t head, uint32_t key0, uint32_t key1) {
  uint32_t words[4][kLanes];
#pragma omp simd
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t a = first + uint32_t(lane), b = row, c = head, d = 0;
    philox(a, b, c, d, key0, key1);
    words[0][lane] = a, words[1][lane] = b, words[2][lane] = c, words[3][lane] = d;
  }
  for (int lane = 0; lane < kLanes; ++lane)
    for (int half = 0; half < kHalves; ++half) bits[lane * kHalves + half] = uint16_t(words[half / 2][lane] >> (16 * (half % 2)));
}

#ifdef FS_X86

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // of registers that GCC's own header leaves open

__attribute__((target("avx2"))) inline void random_bits_avx2(Bits& bits, uint32_t first, uint32_t row, uint32_t head,
                                                             uint32_t key0, uint32_t key1) {
  const __m256i one = _mm256_set1_epi64x(0xD2511F53), two = _mm256_set1_epi64x(0xCD9E8D57);
  const __m256i step0 = _mm256_set1_epi64x(0x9E3779B9), step1 = _mm256_set1_epi64x(0xBB67AE85);
  constexpr int kVectors = 2, kAtOnce = 4 * kVectors;  // two vectors of 4 counters: what 16 registers hold
  for (int start = 0; start < kLanes; start += kAtOnce) {
    __m256i a[kVectors], b[kVectors], c[kVectors], d[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      a[v] = _mm256_add_epi32(_mm256_setr_epi64x(0, 2, 1, 3), _mm256_set1_epi64x(first + 4 * v + start));
      b[v] = _mm256_set1_epi64x(row), c[v] = _mm256_set1_epi64x(head), d[v] = _mm256_setzero_si256();
    }
    __m256i keys0 = _mm256_set1_epi64x(key0), keys1 = _mm256_set1_epi64x(key1);
    for (int round = 0; round < 10; ++round) {
      for (int v = 0; v < kVectors; ++v) {
        const __m256i left = _mm256_mul_epu32(a[v], one), right = _mm256_mul_epu32(c[v], two);
        a[v] = _mm256_xor_si256(_mm256_srli_epi64(right, 32), _mm256_xor_si256(b[v], keys0));
        c[v] = _mm256_xor_si256(_mm256_srli_epi64(left, 32), _mm256_xor_si256(d[v], keys1));
        b[v] = right, d[v] = left;
      }
      keys0 = _mm256_add_epi32(keys0, step0), keys1 = _mm256_add_epi32(keys1, step1);
    }
    for (int v = 0; v < kVectors; ++v) {
      const __m256i ab = _mm256_blend_epi32(a[v], _mm256_slli_epi64(b[v], 32), 0xAA);
      const __m256i cd = _mm256_blend_epi32(c[v], _mm256_slli_epi64(d[v], 32), 0xAA);
      auto* to = reinterpret_cast<__m256i*>(bits + kHalves * (start + 4 * v));
      _mm256_storeu_si256(to, _mm256_unpacklo_epi64(ab, cd));
      _mm256_storeu_si256(to + 1, _mm256_unpackhi_epi64(ab, cd));
    }
  }
}

__attribute__((target("avx512f"))) inline void random_bits_avx512(Bits& bits, uint32_t first, uint32_t row, uint32_t head,
                                                                  uint32_t key0, uint32_t key1) {
  const __m512i one = _mm512_set1_epi64(0xD2511F53), two = _mm512_set1_epi64(0xCD9E8D57);
  const __m512i step0 = _mm512_set1_epi64(0x9E3779B9), step1 = _mm512_set1_epi64(0xBB67AE85);
  constexpr int kVectors = kLanes / 8;
  __m512i a[kVectors], b[kVectors], c[kVectors], d[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    a[v] = _mm512_add_epi32(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), _mm512_set1_epi64(first + 8 * v));
    b[v] = _mm512_set1_epi64(row), c[v] = _mm512_set1_epi64(head), d[v] = _mm512_setzero_si512();
  }
  __m512i keys0 = _mm512_set1_epi64(key0), keys1 = _mm512_set1_epi64(key1);
  for (int round = 0; round < 10; ++round) {
    for (int v = 0; v < kVectors; ++v) {
      const __m512i left = _mm512_mul_epu32(a[v], one), right = _mm512_mul_epu32(c[v], two);
      a[v] = _mm512_ternarylogic_epi32(_mm512_srli_epi64(right, 32), b[v], keys0, 0x96);  // exclusive or of three
      c[v] = _mm512_ternarylogic_epi32(_mm512_srli_epi64(left, 32), d[v], keys1, 0x96);
      b[v] = right, d[v] = left;
    }
    keys0 = _mm512_add_epi32(keys0, step0), keys1 = _mm512_add_epi32(keys1, step1);
  }
  for (int v = 0; v < kVectors; ++v) {
    const __m512i ab = _mm512_mask_mov_epi32(a[v], 0xAAAA, _mm512_slli_epi64(b[v], 32));
    const __m512i cd = _mm512_mask_mov_epi32(c[v], 0xAAAA, _mm512_slli_epi64(d[v], 32));
    _mm512_storeu_si512(bits + kHalves * 8 * v, _mm512_unpacklo_epi64(ab, cd));
    _mm512_storeu_si512(bits + kHalves * (8 * v + 4), _mm512_unpackhi_epi64(ab, cd));
  }
}

#pragma GCC diagnostic pop

#endif

// The forms that this processor has, best first.
struct RandomForm {
  const char* name;
  void (*bits)(Bits&, uint32_t first, uint32_t row, uint32_t head, uint32_t key0, uint32_t key1);
  bool here;
};
inline const RandomForm kRandomForms[] = {
#ifdef FS_X86
    {"avx512", random_bits_avx512, __builtin_cpu_supports("avx512f") != 0},
    {"avx2", random_bits_avx2, __builtin_cpu_supports("avx2") != 0},
#endif
    {"plain", random_bits_plain, true},
};

inline const auto random_bits = [] {
  const RandomForm* form = kRandomForms;
  while (!form->here) ++form;
  return form->bits;
}();

}  // namespace fairseq
