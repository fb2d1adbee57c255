// Random bits that can be computed again: Philox4x32-10 (Salmon et al., SC 2011) for host, vector units and devices.
//
// Dropout of attention. The key of the generator is the seed (low word, high word). A counter decides about 8 keys
// (columns) that follow each other: (j / 8, query i, sequence * heads + head, 0) gives 4 words, and half j % 8 of them
// (low half of each word first) is the number of key j. It is kept when its 16 bits are not below round(p * 65536). The
// bits depend on the place alone, never on the blocks of a kernel.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FS_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace fairseq {

constexpr int kLanes = 32;
constexpr int kHalves = 8;  // keys a counter decides about
constexpr int kChunk = kLanes * kHalves;  // keys that a group of lanes decides about at once

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

  // Bit t tells whether key 8 * counter + t is kept.
  FS_HOST_DEVICE uint32_t kept(int64_t counter, int64_t row, int64_t head) const {
    uint32_t words[4] = {uint32_t(counter), uint32_t(row), uint32_t(head), 0}, bits = 0;
    philox(words[0], words[1], words[2], words[3], key0, key1);
    for (int half = 0; half < kHalves; ++half)
      bits |= uint32_t(((words[half / 2] >> (16 * (half % 2))) & 0xFFFFu) >= threshold) << half;
    return bits;
  }
};

inline Dropout dropout_of(double p) {
  Dropout dropout;
  dropout.threshold = uint32_t(p * 65536 + 0.5);
  dropout.scale = dropout.threshold < 65536 ? 65536.0 / (65536.0 - dropout.threshold) : 0.0;
  return dropout;
}

}  // namespace fairseq
