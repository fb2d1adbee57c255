// What a pass over the trees of a fast feedforward layer works on, whatever the vectors are.
//
// Legend: T tokens, I and O columns in and out, N nodes of all trees.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "elements.h"

namespace fairseq {

constexpr int64_t kTokens = 16;                   // of a block: they take turns, so that rows arrive while others are used
constexpr int64_t kTableBytes = int64_t(1) << 19;  // of the trees that a block walks before it adds up their outputs

struct Shape {
  int64_t in, out, trees, nodes;  // nodes of a tree
  int levels;
  bool gelu;
  int64_t row_bytes;  // of a node, both tables

  int64_t pairs() const { return trees * levels; }  // of a token with the nodes that it visits
  int64_t trees_together() const { return std::min(trees, std::max<int64_t>(1, kTableBytes / std::max<int64_t>(1, nodes * row_bytes))); }
};

template <typename T, typename W>
struct Forward {
  Shape shape;
  const T* x;           // (T, I)
  const W* weight_in;   // (N, I)
  const W* bias;        // (N) or null
  const W* weight_out;  // (N, O)
  T* y;                 // (T, O); null: routes only
  int32_t* visited;     // (T, trees, levels) or null, with the logits
  Wide<W>* logits;

  bool keeps() const { return visited; }
};

template <typename T, typename W>
struct Backward {
  Shape shape;
  const T *grad, *x;
  const W *weight_in, *weight_out;
  const int32_t* visited;
  const Wide<W>* logits;
  Wide<W>*dlogits, *activations;  // (T, trees, levels)
  T* dx;                          // or null
  W *dweight_in, *dbias, *dweight_out;
};

// The tokens that visited each node, in order: those of node j are start[j] to start[j + 1].
template <typename acc>
struct Visits {
  const int64_t* start;
  const int32_t* tokens;
  const acc *dlogits, *activations;
};

// One of `parts` equal slices of the columns, cut at multiples of 128.
struct Slice {
  int64_t part, parts;

  int64_t cut(int64_t at, int64_t columns) const { return at == parts ? columns : columns * at / parts / 128 * 128; }
  int64_t begin(int64_t columns) const { return cut(part, columns); }
  int64_t end(int64_t columns) const { return cut(part + 1, columns); }
};

// Up to kTokens tokens: consecutive ones or those of a list.
struct Tokens {
  const int32_t* list;
  int64_t first, n;

  int64_t operator[](int64_t i) const { return list ? list[first + i] : first + i; }
};

template <typename acc>
struct Buffers {
  std::vector<int32_t> visited, rows;
  std::vector<acc> logits, by, sums;

  Buffers(const Shape& shape, int64_t columns) {
    const int64_t picks = kTokens * shape.trees_together() * shape.levels;
    visited.resize(picks), rows.resize(picks), logits.resize(picks), by.resize(picks);
    if (shape.trees_together() < shape.trees) sums.resize(kTokens * columns);
  }
};

template <typename acc>
FS_HOST_DEVICE acc normal_share(acc z) {  // of a standard normal variable below z
  return acc(0.5) * (acc(1) + std::erf(z * acc(0.70710678118654752440)));
}

template <typename acc>
FS_HOST_DEVICE acc activation(acc z, bool gelu) {
  return gelu ? z * normal_share(z) : (z > 0 || z != z ? z : acc(0));
}

template <typename acc>
FS_HOST_DEVICE acc slope(acc z, bool gelu) {
  return gelu ? normal_share(z) + z * acc(0.39894228040143267794) * std::exp(acc(-0.5) * z * z) : acc(z > 0);
}

}  // namespace fairseq
