// How the attention kernels lay out what they multiply. A product takes a left operand (rows, inner) and a right one
// (inner, columns) of one type and gives acc; both are made of rows as they lie in tensors, or of rows transposed.
//
// The types are that of sums for most tensors: operands are then plain copies in it. Where the processor multiplies
// bfloat16, tensors of that type stay in it: a right operand then has its rows in pairs, number beside number
// (inner / 2, columns, 2), as such instructions read them; and blocks of scores are narrowed between two products.
#pragma once

#include <ATen/Context.h>

#include <atomic>
#include <vector>

#include "elements.h"
#include "products.h"
#include "vector_rows.h"

namespace fairseq {

// Operands of type E made of `n` rows of T, `stride` apart, of `width` columns, with zeros for rows beyond up to `rows`.
template <typename E, typename T>
struct Operands {
  static constexpr bool kNarrow = false;
  static void left(const T* from, int64_t stride, int64_t n, E* to, int64_t rows, int64_t width) {
    copy_rows<T, E>(from, stride, n, to, rows, width, 1);
  }
  static void right(const T* from, int64_t stride, int64_t n, E* to, int64_t rows, int64_t width) {
    left(from, stride, n, to, rows, width);
  }
  // Transposed, times `by`: columns are `ld` apart.
  static void right_turned(const T* from, int64_t stride, int64_t n, E* to, int64_t rows, int64_t width, int64_t ld, E by) {
    copy_turned<T, E>(from, stride, n, to, rows, width, ld, by);
  }
  static void left_turned(const T* from, int64_t stride, int64_t n, E* to, int64_t rows, int64_t width, int64_t ld) {
    right_turned(from, stride, n, to, rows, width, ld, 1);
  }
};

#ifdef FS_X86

// to (rows / 2, width, 2) = from (n rows that are `stride` apart), with zeros beyond.
FS_CLONES inline void pair_rows(const uint16_t* from, int64_t stride, int64_t n, uint32_t* to, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; r += 2, from += 2 * stride, to += width) {
    if (r + kAhead + 1 < n) foresee(from + kAhead * stride, width), foresee(from + (kAhead + 1) * stride, width);
    if (r + 1 < n)
      for (int64_t c = 0; c < width; ++c) to[c] = from[c] | uint32_t(from[stride + c]) << 16;
    else
      for (int64_t c = 0; c < width; ++c) to[c] = r < n ? from[c] : 0;
  }
}

// Rows of pairs (columns, n, 2) as twice as many rows (2 * columns, n); both are `ld` columns apart.
FS_CLONES inline void part_pairs(const uint32_t* from, int64_t columns, int64_t n, int64_t ld, uint16_t* to) {
  for (int64_t c = 0; c < columns; ++c, from += ld, to += 2 * ld)
    for (int64_t t = 0; t < n; ++t) to[t] = uint16_t(from[t]), to[ld + t] = uint16_t(from[t] >> 16);
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // of registers that GCC's own header leaves open

// x as bfloat16; n is a multiple of 32.
__attribute__((target("avx512f,avx512bw,avx512bf16"))) inline void narrow_row(const float* x, int64_t n, at::BFloat16* to) {
  for (int64_t j = 0; j < n; j += 32)
    _mm512_storeu_si512(to + j, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + j + 16), _mm512_loadu_ps(x + j)));
}

// Two rows as a row of pairs (n, 2); n is a multiple of 16.
__attribute__((target("avx512f,avx512bw,avx512bf16"))) inline void narrow_pair(const float* x, const float* y, int64_t n,
                                                                              at::BFloat16* to) {
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i order = _mm512_or_si512(first, _mm512_slli_epi32(_mm512_add_epi32(first, _mm512_set1_epi32(16)), 16));
  for (int64_t j = 0; j < n; j += 16) {
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(y + j), _mm512_loadu_ps(x + j));
    _mm512_storeu_si512(to + 2 * j, _mm512_permutexvar_epi16(order, both));
  }
}

#pragma GCC diagnostic pop

template <>
struct Operands<at::BFloat16, at::BFloat16> {
  using E = at::BFloat16;
  static constexpr bool kNarrow = true;
  static void left(const E* from, int64_t stride, int64_t n, E* to, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < n; ++r) std::memcpy(to + r * width, from + r * stride, width * sizeof(E));
    std::memset(static_cast<void*>(to + n * width), 0, (rows - n) * width * sizeof(E));
  }
  static void right(const E* from, int64_t stride, int64_t n, E* to, int64_t rows, int64_t width) {
    pair_rows(reinterpret_cast<const uint16_t*>(from), stride, n, reinterpret_cast<uint32_t*>(to), rows, width);
  }
  // Numbers that are pairs in a right operand lie beside each other in the rows, so pairs change places as a whole.
  static void right_turned(const E* from, int64_t stride, int64_t n, E* to, int64_t rows, int64_t width, int64_t ld, float) {
    copy_turned<uint32_t, uint32_t>(reinterpret_cast<const uint32_t*>(from), stride / 2, n, reinterpret_cast<uint32_t*>(to),
                                    rows, width / 2, ld, 1);
  }
  static void left_turned(const E* from, int64_t stride, int64_t n, E* to, int64_t rows, int64_t width, int64_t ld) {
    std::vector<E> pairs(width * ld);
    right_turned(from, stride, n, pairs.data(), rows, width, ld, 1);
    part_pairs(reinterpret_cast<const uint32_t*>(pairs.data()), width / 2, rows, ld, reinterpret_cast<uint16_t*>(to));
  }
};

// Whether the library multiplies bfloat16 in that layout, on a processor with instructions for it.
inline bool has_bfloat16_products() {
  static const bool found = [] {
    if (!__builtin_cpu_supports("avx512bf16")) return false;
    const std::vector<at::BFloat16> ones(16 * 16, at::BFloat16(1.0f));
    std::vector<float> sums(16 * 16);
    try {
      product(16, 16, 16, ones.data(), 16, ones.data(), 16, sums.data(), 16, false);
      at::native::cpublas::brgemm_release();
    } catch (const c10::Error&) {
      return false;
    }
    return sums.front() == 16;
  }();
  return found && at::globalContext().userEnabledMkldnn();
}

#else

inline bool has_bfloat16_products() { return false; }

#endif

inline std::atomic<bool> want_bfloat16_products{true};  // tests take it back

// Calls f with a null pointer of the type of operands for tensors of T with rows of `width`.
template <typename T, class F>
void with_operands(int64_t width, F f) {
#ifdef FS_X86
  if constexpr (std::is_same_v<T, at::BFloat16>)
    if (width % 16 == 0 && want_bfloat16_products && has_bfloat16_products()) return f(static_cast<T*>(nullptr));
#endif
  f(static_cast<Wide<T>*>(nullptr));
}

// A block of scores as an operand of E: itself, or its narrow form.
template <typename E, typename acc>
const E* operand(const acc* scores, const E* narrowed) {
  if constexpr (std::is_same_v<E, acc>) return scores;
  else return narrowed;
}

// Gives back, where a thread's products of E end, what they hold of the processor.
template <typename E>
struct Release {
  ~Release() {
    if constexpr (std::is_same_v<E, at::BFloat16>) at::native::cpublas::brgemm_release();
  }
};

}  // namespace fairseq
