// What a pass over the trees of a fast feedforward layer works on, whatever the vectors are.
//
// Legend: T tokens, I and O columns in and out, N nodes of all trees.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "elements.h"
#include "vector_rows.h"

namespace fairseq {

constexpr int64_t kTokens = 4;                       // of a block: they take turns, so that rows arrive while others are used, and share the first cache
constexpr int64_t kRun = 64;                         // tokens whose rows are at hand while the nodes that they visited add them up
constexpr int64_t kTableBytes = int64_t(1) << 19;  // of the trees that a block walks before it adds up their outputs

struct Shape {
  int64_t in, out, trees, nodes;  // nodes of a tree
  int levels;
  bool gelu;
  int64_t row_bytes;  // of a node, both tables

  // Levels of a tree whose rows stay in the cache.
  int near_levels() const {
    int level = 0;
    while (level < levels && (row_bytes << level) < kTableBytes) ++level;
    return level;
  }
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

// The tokens of a subtree in the order of the last nodes that they visit, so that those of any node are neighbours.
template <typename acc>
struct Subtree {
  int64_t tree, number;  // from the left, on level `split`
  int split;
  const int32_t* tokens;
  int64_t n;
  acc *in, *out, *bias;  // (split, I), (split, O), (split): its part of the gradients of the nodes above it

  // The first of its nodes on a level, and, for the next number, the one after the last.
  int64_t first(int level, int64_t next = 0) const { return (int64_t(1) << level) - 1 + ((number + next) << (level - split)); }
};

// What the subtrees found for the nodes above them, (subtrees, split, I), (subtrees, split, O), (subtrees, split).
template <typename acc>
struct Above {
  std::vector<acc> in, out, bias;
};

// A node's row in the gradients, and its sums as long as more tokens may come.
template <typename acc>
struct NodeSums {
  int64_t row;
  acc *in, *out, *bias;
};

// The sums of one node a level, and the first node of each level that has no gradient yet.
template <typename acc>
struct OpenNodes {
  std::vector<acc> in, out, bias;
  std::vector<int64_t> next;

  explicit OpenNodes(const Shape& shape)
      : in(shape.levels * shape.in), out(shape.levels * shape.out), bias(shape.levels), next(shape.levels) {}
};

// The rows with these numbers in a table, and what each is multiplied by.
template <typename acc>
struct Picked {
  const int32_t* rows;
  const acc* by;
  int64_t n;
};

// One of `parts` equal slices of the columns, cut at multiples of 128.
struct Slice {
  int64_t part, parts;

  int64_t cut(int64_t at, int64_t columns) const { return at == parts ? columns : columns * at / parts / 128 * 128; }
  int64_t begin(int64_t columns) const { return cut(part, columns); }
  int64_t end(int64_t columns) const { return cut(part + 1, columns); }
};

// No token visited the nodes begin to end.
template <typename T, typename W>
void clear_nodes(const Backward<T, W>& f, int64_t tree, int64_t begin, int64_t end, const Slice& slice) {
  const auto clear = [&](W* table, int64_t columns, int64_t from, int64_t to) {
    for (int64_t row = tree * f.shape.nodes + begin; row < tree * f.shape.nodes + end; ++row)
      std::memset(static_cast<void*>(table + row * columns + from), 0, size_t(to - from) * sizeof(W));
  };
  clear(f.dweight_in, f.shape.in, slice.begin(f.shape.in), slice.end(f.shape.in));
  clear(f.dweight_out, f.shape.out, slice.begin(f.shape.out), slice.end(f.shape.out));
  if (!slice.part) clear(f.dbias, 1, 0, 1);
}

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

// The share of a standard normal variable that is below -a, for a >= 0, when e is exp(-a^2 / 2): e times a polynomial in
// 1 / (1 + 0.35 a), fitted to a relative error of 3e-8.
FS_HOST_DEVICE float tail(float a, float e) {
  const float t = 1.0f / (1.0f + 0.35f * a);
  float p = -2.914493336e-02f;
  p = p * t + 1.439671743e-01f;
  p = p * t - 2.557055183e-01f;
  p = p * t + 1.591647953e-01f;
  p = p * t - 2.310375068e-02f;
  p = p * t + 1.055055561e-01f;
  p = p * t + 1.198334615e-01f;
  p = p * t + 1.398617906e-01f;
  p = p * t + 1.396214087e-01f;
  return p * t * e;
}

FS_HOST_DEVICE double tail(double a, double) { return 0.5 * std::erfc(a * 0.70710678118654752440); }

// gelu, or relu, and its derivative.
template <typename acc>
struct Activated {
  acc value, slope;
};

template <typename acc>
FS_HOST_DEVICE Activated<acc> activated(acc z, bool gelu) {
  const acc a = z < 0 ? -z : z, e = exponential(acc(-0.5) * z * z), below = tail(a, e);
  const acc share = z > 0 ? 1 - below : below;
  const acc density = e > 0 ? e * acc(0.39894228040143267794) * z : acc(0);
  const acc rectified = z <= 0 ? acc(0) : z;
  return gelu ? Activated<acc>{z * share, share + density} : Activated<acc>{rectified, acc(z > 0)};
}

}  // namespace fairseq
