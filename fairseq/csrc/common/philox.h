// Random bits that can be computed again: Philox4x32-10 (Salmon et al., SC 2011) for host, vector units and devices.
//
// Dropout of attention. The key of the generator is the seed (low word, high word). Keys (columns) are taken in chunks
// of 256, a chunk by 32 lanes of 8: the counter (32 * chunk + lane, query i, sequence * heads + head, 0) gives 4 words,
// and half t (0 to 7; low half first) decides about key 256 * chunk + 32 * t + lane. That key is kept when
// its 16 bits are not below round(p * 65536). The bits depend on the place alone, never on the blocks of a kernel.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FS_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace fairseq {

constexpr int kLanes = 32;
constexpr int kHalves = 8;  // decisions a counter gives
constexpr int kChunk = kLanes * kHalves;

FS_HOST_DEVICE void philox(uint32_t& a, uint32_t& b, uint32_t& c, uint32_t& d, uint32_t key0, uint32_t key1) {
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t(0xD2511F53u) * a, second = uint64_t(0xCD9E8D57u) * c;
    a = uint32_t(second >> 32) ^ b ^ key0;
    b = uint32_t(second);
    c = uint32_t(first >> 32) ^ d ^ key1;
    d = uint32_t(first);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

struct Dropout {
  uint32_t threshold = 0;  // of 65536; 0: nothing is dropped
  double scale = 1;        // of what is kept
  uint32_t key0 = 0, key1 = 0;

  FS_HOST_DEVICE void set_seed(int64_t seed) {
    key0 = uint32_t(uint64_t(seed));
    key1 = uint32_t(uint64_t(seed) >> 32);
  }

  FS_HOST_DEVICE void words(uint32_t (&w)[4], int chunk, int lane, int64_t row, int64_t head) const {
    w[0] = uint32_t(chunk * kLanes + lane), w[1] = uint32_t(row), w[2] = uint32_t(head), w[3] = 0;
    philox(w[0], w[1], w[2], w[3], key0, key1);
  }

  // What the probability of a key is multiplied by: 0, or the scale.
  FS_HOST_DEVICE float factor(const uint32_t (&w)[4], int half) const {
    return ((w[half / 2] >> (16 * (half % 2))) & 0xFFFFu) >= threshold ? float(scale) : 0.0f;
  }
};

inline Dropout dropout_of(double p) {
  Dropout dropout;
  dropout.threshold = uint32_t(p * 65536 + 0.5);
  dropout.scale = dropout.threshold < 65536 ? 65536.0 / (65536.0 - dropout.threshold) : 0.0;
  return dropout;
}

}  // namespace fairseq
