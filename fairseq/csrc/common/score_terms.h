// What is added to a scaled product of query and key before the softmax: the replaceable part of the attention kernels.
//
// A term is a small copyable struct over the type that a kernel computes in. Kernels are templates over it and use
//   take(values, gradients, T)             the tables of its parameters, and for their gradients (null ones in forward)
//   row(sequence, head, i) -> Row          what it needs to know about a query row, made once a row
//   term(row, i, j)                        the number for key column j
//   accumulate(row, i, j, dscore, sums)    the gradient of that number: stored where this row and key alone contribute,
//                                          added to `sums` (kSums numbers) where other keys of the row do too
//   finish(row, sums)                      stores the sums of the row
//   accumulate_column(...)                 gradients that rows share, from scores' gradients in memory (kColumns)
// and, where kPieces says so, `add` and `accumulate` for a piece of a row at once: what vector units want when the number
// is no formula of the offset. A `dscore` is the gradient of the product of query and key, so it carries their scale. All
// of this is deterministic: no place is written by two rows, or by two columns, at a time.
//
// Every parameter is of shape (H,) or (B, H, ., .) with a dense last dimension; others may be expanded (stride 0).
//
// Legend: B sequences, H heads, T tokens, i query row, j key column, o offset.
#pragma once

#include "philox.h"

namespace fairseq {

// One parameter or its gradient. Absent when `data` is null.
template <typename acc>
struct Table {
  acc* data = nullptr;
  int64_t columns = 0;
  int64_t strides[3] = {0, 0, 0};  // of sequences, heads, rows

  FS_HOST_DEVICE acc* at(int64_t sequence, int64_t head, int64_t row) const {
    return data + sequence * strides[0] + head * strides[1] + row * strides[2];
  }
};

template <int N>
struct Sums {
  float at[N > 0 ? N : 1] = {};
};

// -slope times the distance; `ahead` is taken off the distance to what lies ahead (j > i).
template <typename acc>
struct AlibiTerm {
  static constexpr bool kTrained = false, kPieces = false, kColumns = false;
  static constexpr int kParameters = 1, kSums = 0;
  acc ahead = 0;
  Table<const acc> slopes;  // (H,)

  struct Row {
    acc slope, ahead;
  };

  void take(const Table<const acc>* values, const Table<acc>*, int64_t) { slopes = values[0]; }
  FS_HOST_DEVICE Row row(int64_t, int64_t head, int64_t) const { return {*slopes.at(0, head, 0), ahead}; }
  FS_HOST_DEVICE acc operator()(const Row& row, int i, int j) const {
    const acc offset = acc(j - i);
    return row.slope * (offset > 0 ? row.ahead - offset : offset);
  }
  FS_HOST_DEVICE void accumulate(const Row&, int, int, float, Sums<0>&) const {}
  FS_HOST_DEVICE void finish(const Row&, const Sums<0>&) const {}
};

// Numbers for each offset up to a reach w: query[i, clamp(j - i, -w, w) + w] + key[j, clamp(i - j, -w, w) + w], each
// table with its own view of the offset. A key's two ends are apart from its inside, as rows over all keys.
template <typename acc>
struct BandTerm {
  static constexpr bool kTrained = true, kPieces = true, kColumns = true;
  static constexpr int kParameters = 3, kSums = 2;
  Table<const acc> query, inside, ends;  // (B, H, T, 2w + 1), (B, H, T, 2w - 1), (B, H, 2, T); the last two or none
  Table<acc> dquery, dinside, dends;
  int reach = 0, tokens = 0;

  struct Row {                   // null: absent
    const acc *query;            // at offset 0
    const acc *inside, *low, *high;  // of the key side, at key 0; `low` is for i - j <= -w
    acc *dquery, *dinside, *dlow, *dhigh;
  };

  void take(const Table<const acc>* values, const Table<acc>* gradients, int64_t all) {
    query = values[0], inside = values[1], ends = values[2];
    dquery = gradients[0], dinside = gradients[1], dends = gradients[2];
    tokens = int(all);
    reach = int(query.data ? query.columns / 2 : inside.columns / 2 + 1);
  }
  FS_HOST_DEVICE Row row(int64_t sequence, int64_t head, int64_t i) const {
    Row row{};
    if (query.data) row.query = query.at(sequence, head, i) + reach;
    if (dquery.data) row.dquery = dquery.at(sequence, head, i) + reach;
    if (inside.data) {
      row.inside = inside.at(sequence, head, 0) + reach - 1;
      row.low = ends.at(sequence, head, 0), row.high = ends.at(sequence, head, 1);
    }
    if (dinside.data) {
      row.dinside = dinside.at(sequence, head, 0) + reach - 1;
      row.dlow = dends.at(sequence, head, 0), row.dhigh = dends.at(sequence, head, 1);
    }
    return row;
  }

  FS_HOST_DEVICE acc operator()(const Row& row, int i, int j) const {
    const int o = j - i;
    acc sum = 0;
    if (row.query) sum = row.query[o < -reach ? -reach : o > reach ? reach : o];
    if (row.inside) sum += o <= -reach ? row.high[j] : o >= reach ? row.low[j] : row.inside[j * inside.strides[2] - o];
    return sum;
  }
  FS_HOST_DEVICE void accumulate(const Row& row, int i, int j, float dscore, Sums<2>& sums) const {
    const int o = j - i;
    if (o <= -reach) {
      sums.at[0] += dscore;
    } else if (o >= reach) {
      sums.at[1] += dscore;
    } else {
      if (row.dquery) row.dquery[o] = dscore;
      if (row.dinside) row.dinside[j * dinside.strides[2] - o] = dscore;
    }
  }
  FS_HOST_DEVICE void finish(const Row& row, const Sums<2>& sums) const {
    if (!row.dquery) return;
    row.dquery[-reach] = sums.at[0];
    row.dquery[reach] = sums.at[1];
  }

  // Gradients of key j's ends, from `rows` rows from `first` on of a column whose numbers are T apart; f widens them.
  template <typename T, class F>
  FS_HOST_DEVICE void accumulate_column(const Row& row, int64_t first, int64_t rows, int64_t j, const T* dscores, F f) const {
    if (!row.dlow) return;
    acc low = 0, high = 0;
    for (int64_t i = first; i < first + rows; ++i, dscores += tokens) {
      if (j - i <= -reach) high += f(*dscores);
      if (j - i >= reach) low += f(*dscores);
    }
    row.dlow[j] += low;
    row.dhigh[j] += high;
  }

  // Where those of the keys j0 to j0 + n that are far behind end, and those far ahead begin and end; j0 taken off.
  struct Cut {
    int behind, ahead, end;
  };
  FS_HOST_DEVICE Cut cut(int i, int j0, int n) const {
    const int end = j0 + n < tokens ? n : tokens - j0;
    return {bounded(i - reach + 1 - j0, end), bounded(i + reach - j0, end), end};
  }
  static FS_HOST_DEVICE int bounded(int x, int most) { return x < 0 ? 0 : x > most ? most : x; }

  FS_HOST_DEVICE void add(const Row& row, int i, int j0, int n, acc* x) const {
    const Cut at = cut(i, j0, n);
    add_end(x, 0, at.behind, row.query, -reach, row.high, j0);
    for (int j = at.behind; j < at.ahead; ++j) x[j] += (*this)(row, i, j0 + j);
    add_end(x, at.ahead, at.end, row.query, reach, row.low, j0);
  }
  static FS_HOST_DEVICE void add_end(acc* x, int from, int to, const acc* query, int offset, const acc* keys, int j0) {
    if (query) {
      const acc same = query[offset];
#pragma omp simd
      for (int j = from; j < to; ++j) x[j] += same;
    }
    if (keys) {
      keys += j0;
#pragma omp simd
      for (int j = from; j < to; ++j) x[j] += keys[j];
    }
  }

  FS_HOST_DEVICE void accumulate(const Row& row, int i, int j0, int n, const acc* dscores) const {
    const Cut at = cut(i, j0, n);
    accumulate_end(dscores, 0, at.behind, row.dquery, -reach, row.dhigh, j0);
    for (int j = at.behind; j < at.ahead; ++j) {
      const int o = j0 + j - i;
      if (row.dquery) row.dquery[o] += dscores[j];
      if (row.dinside) row.dinside[(j0 + j) * dinside.strides[2] - o] += dscores[j];
    }
    accumulate_end(dscores, at.ahead, at.end, row.dquery, reach, row.dlow, j0);
  }
  static FS_HOST_DEVICE void accumulate_end(const acc* dscores, int from, int to, acc* query, int offset, acc* keys, int j0) {
    if (query) {
      acc sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int j = from; j < to; ++j) sum += dscores[j];
      query[offset] += sum;
    }
    if (keys) {
      keys += j0;
#pragma omp simd
      for (int j = from; j < to; ++j) keys[j] += dscores[j];
    }
  }
};

// The terms there are. Kernels that are compiled apart are made for each of FS_SCORE_TERMS; `for_term` gives f the one
// that goes by a name, with its constants, and false when there is none.
#define FS_SCORE_TERMS(DO) DO(AlibiTerm) DO(BandTerm)

template <typename acc, class Name, class F>
bool for_term(const Name& name, F f) {
  if (name == "alibi") {
    f(AlibiTerm<acc>{});
  } else if (name == "alibi_asymmetrical") {
    f(AlibiTerm<acc>{acc(0.5)});
  } else if (name == "band") {
    f(BandTerm<acc>{});
  } else {
    return false;
  }
  return true;
}

}  // namespace fairseq
