// The softmax of attention and its derivative, a row of scores at a time, by a group of 32 lanes: bias, padding,
// softmax and dropout in one pass over what a matrix product left in memory.
//
// The bodies are templates over the group. On a device it is a warp (csrc/cuda); on the host `HostGroup` runs the lanes
// one after the other, so that tests without a device run the same statements, the index arithmetic included.
// `share(lane, f)` gives a function that any lane can ask for the f(lane) of another: a warp computes each once and
// exchanges them, so all of its lanes ask at a time.
//
// Legend: B sequences, H heads, T tokens; a chunk of work is N of the B * H heads times R of the T query rows.
#pragma once

#include <cmath>

#include "score_terms.h"

namespace fairseq {

struct HostGroup {
  template <class F>
  void each(F f) const {
    for (int lane = 0; lane < kLanes; ++lane) f(lane);
  }
  template <class F>
  float max(F f) const {
    return tree(f, [](float a, float b) { return a > b ? a : b; });
  }
  template <class F>
  float sum(F f) const {
    return tree(f, [](float a, float b) { return a + b; });
  }
  template <class F>
  F share(int, F f) const {
    return f;
  }
  template <int N, class F>
  Sums<N> sums(F f) const {
    Sums<N> lanes[kLanes], total;
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = f(lane);
    for (int n = 0; n < N; ++n) total.at[n] = sum([&](int lane) { return lanes[lane].at[n]; });
    return total;
  }

 private:
  template <class F, class Join>
  static float tree(F f, Join join) {  // in the order of a device's butterfly
    float value[kLanes], next[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) value[lane] = f(lane);
    for (int distance = kLanes / 2; distance > 0; distance /= 2) {
      for (int lane = 0; lane < kLanes; ++lane) next[lane] = join(value[lane], value[lane ^ distance]);
      for (int lane = 0; lane < kLanes; ++lane) value[lane] = next[lane];
    }
    return value[0];
  }
};

// One chunk. Arrays of the chunk are (N, R, T); `lse` and `delta` are (B * H, T), `padding` is (B, T) or null.
template <class Term>
struct Rows {
  int64_t first_head, heads, first_row, rows, tokens, heads_per_sequence;
  Term term;
  const bool* padding;   // true = padding
  const int64_t* seed;   // one number, where the kernel runs
  Dropout dropout;       // without its seed
  float scale;           // of the products: D^-0.5
  const float* scores;   // products of queries and keys
  const float* dweights; // products of output gradients and values (backward)
  const float* delta;    // row sums of output * its gradient (backward)
  float* lse;            // log of the row's sum of exponentials; +inf for a row without keys, so that exp(. - lse) is 0
  void* weights;         // out: dropped-out probabilities, of the type of the model
  void* dscores;         // out (backward): gradient of the products
};

// A row's place in the arrays and its scores.
template <class Term>
struct Row {
  int64_t head, i, tokens, start, at;
  const bool* padding;
  const float* scores;
  float scale;
  Term term;
  typename Term::Row part;  // of the term
  Dropout dropout;

  FS_HOST_DEVICE Row(const Rows<Term>& all, int64_t index)
      : head(all.first_head + index / all.rows),
        i(all.first_row + index % all.rows),
        tokens(all.tokens),
        start(index * all.tokens),
        at(head * all.tokens + i),
        padding(all.padding ? all.padding + head / all.heads_per_sequence * all.tokens : nullptr),
        scores(all.scores + start),
        scale(all.scale),
        term(all.term),
        part(all.term.row(head / all.heads_per_sequence, head % all.heads_per_sequence, i)),
        dropout(all.dropout) {
    dropout.set_seed(*all.seed);
  }

  FS_HOST_DEVICE float score(int64_t j) const {
    return padding && padding[j] ? -INFINITY : scale * scores[j] + term(part, int(i), int(j));
  }

  // f(j, dropout factor) for the keys of a lane, which are kLanes apart, so that neighbours read neighbouring numbers.
  // The 8 keys of a counter belong to 8 lanes then: each lane draws for one counter of a chunk and shares what it drew.
  template <class Group, class F>
  FS_HOST_DEVICE void keys(const Group& group, int lane, F f) const {
    if (!dropout.threshold) {
      for (int64_t j = lane; j < tokens; j += kLanes) f(j, 1.0f);
      return;
    }
    for (int64_t chunk = 0; chunk < tokens; chunk += kChunk) {
      const auto kept = group.share(lane, [&](int drawer) { return dropout.kept(chunk / kHalves + drawer, i, head); });
      for (int64_t start = chunk; start < chunk + kChunk && start < tokens; start += kLanes) {
        const int64_t j = start + lane;
        const bool keep = kept(int(j - chunk) / kHalves) >> (j % kHalves) & 1;
        if (j < tokens) f(j, keep ? float(dropout.scale) : 0.0f);
      }
    }
  }
};

// A float as T. Types whose conversions torch's compiler flags forbid specialise this.
template <typename T>
struct Narrow {
  static FS_HOST_DEVICE T of(float value) { return T(value); }
};

template <typename T>
struct Widen {
  static FS_HOST_DEVICE float of(T value) { return float(value); }
};

template <typename T, class Term, class Group>
FS_HOST_DEVICE void forward_row(const Group& group, const Rows<Term>& all, int64_t index) {
  const Row<Term> row(all, index);
  const float top = group.max([&](int lane) {
    float most = -INFINITY;
    for (int64_t j = lane; j < row.tokens; j += kLanes) most = fmaxf(most, row.score(j));
    return most;
  });
  const float shift = top > -INFINITY ? top : 0.0f;  // a row without keys; its sum is 0, that of a row of NaN is not
  const float sum = group.sum([&](int lane) {
    float part = 0;
    for (int64_t j = lane; j < row.tokens; j += kLanes) part += expf(row.score(j) - shift);
    return part;
  });
  // Divided by the sum and not exp(score - lse), whose rounding is that of the scores' size.
  const float inverse = sum == 0 ? 0.0f : 1 / sum;
  T* weights = static_cast<T*>(all.weights) + row.start;
  group.each([&](int lane) {
    if (lane == 0) all.lse[row.at] = sum == 0 ? INFINITY : shift + logf(sum);
    row.keys(group, lane, [&](int64_t j, float factor) { weights[j] = Narrow<T>::of(factor * inverse * expf(row.score(j) - shift)); });
  });
}

template <typename T, class Term, class Group>
FS_HOST_DEVICE void backward_row(const Group& group, const Rows<Term>& all, int64_t index) {
  const Row<Term> row(all, index);
  const float lse = all.lse[row.at], delta = all.delta[row.at];
  const float* dweights = all.dweights + row.start;
  T* weights = static_cast<T*>(all.weights) + row.start;
  T* dscores = static_cast<T*>(all.dscores) + row.start;
  const auto sums = group.template sums<Term::kSums>([&](int lane) {
    Sums<Term::kSums> own;
    row.keys(group, lane, [&](int64_t j, float factor) {
      const float p = expf(row.score(j) - lse);
      const float dscore = p * (dweights[j] * factor - delta) * row.scale;
      weights[j] = Narrow<T>::of(p * factor);
      dscores[j] = Narrow<T>::of(dscore);
      row.term.accumulate(row.part, int(row.i), int(j), dscore, own);
    });
    return own;
  });
  group.each([&](int lane) {
    if (lane == 0) row.term.finish(row.part, sums);
  });
}

// What rows share of the term's gradients, by one lane for a column of the chunk: after all of its rows.
template <typename T, class Term>
FS_HOST_DEVICE void backward_column(const Rows<Term>& all, int64_t index) {
  if constexpr (Term::kColumns) {
    const int64_t head = all.first_head + index / all.tokens, j = index % all.tokens;
    const auto part = all.term.row(head / all.heads_per_sequence, head % all.heads_per_sequence, all.first_row);
    const T* dscores = static_cast<const T*>(all.dscores) + index / all.tokens * all.rows * all.tokens + j;
    all.term.accumulate_column(part, all.first_row, all.rows, j, dscores, [](T x) { return Widen<T>::of(x); });
  }
}

}  // namespace fairseq
