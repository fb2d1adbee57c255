// What is added to a scaled product of query and key before the softmax: the replaceable part of the attention kernels.
//
// A term is a small copyable struct with `operator()(i, j)` for query row i and key column j, made for one head by
// `of(parameters, head)` from plain pointers. Kernels are templates over it; another kind of attention is another struct.
#pragma once

#include "philox.h"

namespace fairseq {

// -slope times the distance; the asymmetrical form takes a half off what lies ahead (j > i).
template <typename acc = float>
struct AlibiTerm {
  struct Parameters {
    const float* slopes;  // (H,)
    bool asymmetrical;
  };
  acc slope, ahead;

  static FS_HOST_DEVICE AlibiTerm of(const Parameters& parameters, int64_t head) {
    return {parameters.slopes[head], parameters.asymmetrical ? acc(0.5) : acc(0)};
  }
  FS_HOST_DEVICE acc operator()(int i, int j) const {
    const acc offset = acc(j - i);
    return slope * (offset > 0 ? ahead - offset : offset);
  }
};

}  // namespace fairseq
