// Walking trees of nodes with vectors of one width. Included once for each instruction set, within a namespace of its own,
// with FS_TARGET (the attribute of every function here) and FS_BYTES (the size of a vector) defined: vector types are
// lowered before a compiler makes clones of a function, so clones would not do.
//
// Every sum is in one order that depends on the number of columns alone; so results are the same bits however tokens are
// grouped and divided among threads.

template <typename acc>
struct Lanes {
  typedef acc V __attribute__((vector_size(FS_BYTES)));
  static constexpr int64_t n = FS_BYTES / int64_t(sizeof(acc));
};

typedef uint16_t Halves __attribute__((vector_size(FS_BYTES / 2)));
typedef uint32_t Words __attribute__((vector_size(FS_BYTES)));

template <typename acc, typename T>
FS_TARGET FS_INLINE typename Lanes<acc>::V load(const T* from) {
  typename Lanes<acc>::V v;
  if constexpr (std::is_same_v<T, acc>) {
    std::memcpy(&v, from, sizeof v);
  } else if constexpr (std::is_same_v<T, c10::BFloat16>) {
    Halves bits;
    std::memcpy(&bits, from, sizeof bits);
    const Words wide = __builtin_convertvector(bits, Words) << 16;
    std::memcpy(&v, &wide, sizeof v);
  } else {
    acc wide[Lanes<acc>::n];
    for (int64_t i = 0; i < Lanes<acc>::n; ++i) wide[i] = widen(from[i]);
    std::memcpy(&v, wide, sizeof v);
  }
  return v;
}

template <typename acc, typename T>
FS_TARGET FS_INLINE void store(T* to, typename Lanes<acc>::V v) {
  if constexpr (std::is_same_v<T, acc>) {
    std::memcpy(to, &v, sizeof v);
  } else {
    acc wide[Lanes<acc>::n];
    std::memcpy(wide, &v, sizeof v);
    for (int64_t i = 0; i < Lanes<acc>::n; ++i) to[i] = narrow<T>(wide[i]);
  }
}

template <typename acc>
FS_TARGET FS_INLINE acc sum_of_lanes(typename Lanes<acc>::V v) {
  constexpr int64_t n = Lanes<acc>::n;
  acc lanes[n];
  std::memcpy(lanes, &v, sizeof v);
#pragma GCC unroll 8
  for (int64_t half = n / 2; half; half /= 2)
#pragma GCC unroll 16
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

template <typename acc, typename A, typename B>
FS_TARGET FS_INLINE acc dot(const A* a, const B* b, int64_t n) {
  constexpr int64_t w = Lanes<acc>::n;
  typename Lanes<acc>::V s[8] = {};
  int64_t c = 0;
  for (; c + 8 * w <= n; c += 8 * w)
    for (int64_t i = 0; i < 8; ++i) s[i] += load<acc>(a + c + i * w) * load<acc>(b + c + i * w);
  for (; c + w <= n; c += w) s[0] += load<acc>(a + c) * load<acc>(b + c);
  for (int64_t half = 4; half; half /= 2)
    for (int64_t i = 0; i < half; ++i) s[i] += s[i + half];
  acc total = sum_of_lanes<acc>(s[0]);
  for (; c < n; ++c) total += widen(a[c]) * widen(b[c]);
  return total;
}

template <int64_t kVectors, typename acc, typename W, typename To>
FS_TARGET FS_INLINE void combine_columns(const W* table, int64_t width, Picked<acc> picked, const acc* base, To* to, int64_t c) {
  constexpr int64_t w = Lanes<acc>::n;
  typename Lanes<acc>::V s[kVectors] = {};
  if (base)
    for (int64_t i = 0; i < kVectors; ++i) s[i] = load<acc>(base + c + i * w);
  for (int64_t r = 0; r < picked.n; ++r) {
    const W* row = table + picked.rows[r] * width + c;
    const typename Lanes<acc>::V by = picked.by[r] - typename Lanes<acc>::V{};
    for (int64_t i = 0; i < kVectors; ++i) s[i] += by * load<acc>(row + i * w);
  }
  for (int64_t i = 0; i < kVectors; ++i) store<acc>(to + c + i * w, s[i]);
}

// to = base (null: 0) + the sum of the picked rows, for the columns begin to end of a table (rows, width).
template <typename acc, typename W, typename To>
FS_TARGET FS_INLINE void combine(const W* table, int64_t width, Picked<acc> picked, const acc* base, To* to, int64_t begin, int64_t end) {
  constexpr int64_t w = Lanes<acc>::n;
  int64_t c = begin;
  for (; c + 8 * w <= end; c += 8 * w) combine_columns<8>(table, width, picked, base, to, c);
  for (; c + w <= end; c += w) combine_columns<1>(table, width, picked, base, to, c);
  for (; c < end; ++c) {
    acc total = base ? base[c] : acc(0);
    for (int64_t r = 0; r < picked.n; ++r) total += picked.by[r] * widen(table[picked.rows[r] * width + c]);
    to[c] = narrow<To>(total);
  }
}

// Asks for the columns begin to end of a row. It goes to the second cache: the first would be full after ten rows.
template <typename T>
FS_TARGET FS_INLINE void ask_for(const T* row, int64_t begin, int64_t end) {
  for (int64_t c = begin; c < end; c += int64_t(64 / sizeof(T))) __builtin_prefetch(row + c, 0, 2);
}

// Levels `first` to `last` of all trees for `tokens`, and after the last level the outputs.
template <typename T, typename W>
FS_TARGET void walk(const Forward<T, W>& f, const Tokens& tokens, Buffers<Wide<W>>& buffer, int first, int last) {
  using acc = Wide<W>;
  const Shape& shape = f.shape;
  const int64_t pairs = shape.pairs(), together = shape.trees_together();
  const int near = shape.near_levels();
  for (int64_t tree0 = 0; tree0 < shape.trees; tree0 += together) {
    const int64_t trees = std::min(together, shape.trees - tree0), picks = trees * shape.levels;
    for (int64_t tree = tree0; tree < tree0 + trees; ++tree) {
      const W* weight = f.weight_in + tree * shape.nodes * shape.in;
      const W* bias = f.bias ? f.bias + tree * shape.nodes : nullptr;
      int32_t at[kTokens];
      int32_t* visited[kTokens];
      acc* logits[kTokens];
      for (int64_t i = 0; i < tokens.n; ++i) {
        const int64_t place = f.keeps() ? tokens[i] * pairs + tree * shape.levels : (i * together + tree - tree0) * shape.levels;
        visited[i] = (f.keeps() ? f.visited : buffer.visited.data()) + place;
        logits[i] = (f.keeps() ? f.logits : buffer.logits.data()) + place;
        at[i] = first ? visited[i][first] : 0;
      }
      for (int level = first; level < last; ++level)
        for (int64_t i = 0; i < tokens.n; ++i) {
          const int64_t node = at[i];
          acc z = dot<acc>(f.x + tokens[i] * shape.in, weight + node * shape.in, shape.in);
          if (bias) z += widen(bias[node]);
          visited[i][level] = int32_t(node);
          logits[i][level] = z;
          at[i] = int32_t(2 * node + 1 + (z > 0));
          if (level + 1 < shape.levels) {
            if (level >= near) ask_for(weight + at[i] * shape.in, 0, shape.in);
            visited[i][level + 1] = at[i];
          }
        }
      if (last < shape.levels || !f.y) continue;
      for (int64_t i = 0; i < tokens.n; ++i)
        for (int level = 0; level < shape.levels; ++level) {
          const int64_t place = i * picks + (tree - tree0) * shape.levels + level;
          buffer.rows[place] = int32_t(tree * shape.nodes) + visited[i][level];
          buffer.by[place] = logits[i][level];
        }
    }
    if (last < shape.levels || !f.y) continue;
    for (int64_t p = 0; p < tokens.n * picks; ++p) buffer.by[p] = activated(buffer.by[p], shape.gelu).value;
    const bool done = tree0 + trees == shape.trees;
    for (int64_t i = 0; i < tokens.n; ++i) {
      const Picked<acc> picked{buffer.rows.data() + i * picks, buffer.by.data() + i * picks, picks};
      acc* sums = buffer.sums.data() + i * shape.out;
      const acc* base = tree0 ? sums : nullptr;
      if (done) combine(f.weight_out, shape.out, picked, base, f.y + tokens[i] * shape.out, 0, shape.out);
      else combine(f.weight_out, shape.out, picked, base, sums, 0, shape.out);
    }
  }
}

// The gradients of the logits and of x for `tokens`, and the activations once more.
template <typename T, typename W>
FS_TARGET void walk_back(const Backward<T, W>& f, const Tokens& tokens, Buffers<Wide<W>>& buffer) {
  using acc = Wide<W>;
  const Shape& shape = f.shape;
  const int64_t pairs = shape.pairs(), together = shape.trees_together();
  for (int64_t tree0 = 0; tree0 < shape.trees; tree0 += together) {
    const int64_t trees = std::min(together, shape.trees - tree0), picks = trees * shape.levels;
    for (int64_t i = 0; i < tokens.n; ++i) {
      const T* grad = f.grad + tokens[i] * shape.out;
      const int64_t place = tokens[i] * pairs + tree0 * shape.levels;
      int32_t* rows = buffer.rows.data();
      for (int64_t p = 0; p < picks; ++p) rows[p] = int32_t((tree0 + p / shape.levels) * shape.nodes) + f.visited[place + p];
      acc* dlogits = f.dlogits + place;
      for (int64_t p = 0; p < picks; ++p) dlogits[p] = dot<acc>(grad, f.weight_out + rows[p] * shape.out, shape.out);
      for (int64_t p = 0; p < picks; ++p) {
        const Activated<acc> here = activated(f.logits[place + p], shape.gelu);
        f.activations[place + p] = here.value;
        dlogits[p] *= here.slope;
      }
      if (!f.dx) continue;
      const Picked<acc> picked{rows, dlogits, picks};
      acc* sums = buffer.sums.data() + i * shape.in;
      const acc* base = tree0 ? sums : nullptr;
      if (tree0 + trees == shape.trees) combine(f.weight_in, shape.in, picked, base, f.dx + tokens[i] * shape.in, 0, shape.in);
      else combine(f.weight_in, shape.in, picked, base, sums, 0, shape.in);
    }
  }
}

// Adds the rows of `n` tokens (at most kRun) to the gradients of a node: its first tokens or not, its last or not.
template <typename T, typename W>
FS_TARGET void add_tokens(const Backward<T, W>& f, const NodeSums<Wide<W>>& node, const int32_t* tokens, int64_t n, bool starts, bool ends,
                          int64_t pair, const Slice& slice) {
  using acc = Wide<W>;
  const Shape& shape = f.shape;
  acc dlogits[kRun], activations[kRun];
  acc total = starts ? acc(0) : *node.bias;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t place = tokens[i] * shape.pairs() + pair;
    dlogits[i] = f.dlogits[place], activations[i] = f.activations[place];
    total += dlogits[i];
  }
  const Picked<acc> in{tokens, dlogits, n}, out{tokens, activations, n};
  const acc *from_in = starts ? nullptr : node.in, *from_out = starts ? nullptr : node.out;
  const int64_t in0 = slice.begin(shape.in), in1 = slice.end(shape.in), out0 = slice.begin(shape.out), out1 = slice.end(shape.out);
  if (ends) {
    combine(f.x, shape.in, in, from_in, f.dweight_in + node.row * shape.in, in0, in1);
    combine(f.grad, shape.out, out, from_out, f.dweight_out + node.row * shape.out, out0, out1);
    if (!slice.part) f.dbias[node.row] = narrow<W>(total);
  } else {
    combine(f.x, shape.in, in, from_in, node.in, in0, in1);
    combine(f.grad, shape.out, out, from_out, node.out, out0, out1);
    *node.bias = total;
  }
}

// The gradients of the nodes of a subtree, and its part of those of the nodes above it.
template <typename T, typename W>
FS_TARGET void subtree_gradients(const Backward<T, W>& f, const Subtree<Wide<W>>& sub, OpenNodes<Wide<W>>& open, const Slice& slice) {
  const Shape& shape = f.shape;
  const int64_t pairs = shape.pairs(), first = sub.tree * shape.levels;
  const int64_t in0 = slice.begin(shape.in), in1 = slice.end(shape.in), out0 = slice.begin(shape.out), out1 = slice.end(shape.out);
  const auto id = [&](int64_t i, int level) { return f.visited[sub.tokens[i] * pairs + first + level]; };
  for (int level = sub.split; level < shape.levels; ++level) open.next[level] = sub.first(level);
  for (int64_t start = 0; start < sub.n; start += kRun) {
    const int64_t end = std::min(sub.n, start + kRun), beyond = std::min(sub.n, end + kRun);
    for (int level = 0; level < shape.levels; ++level) {
      const int64_t ahead = beyond - end;  // of the next tokens, some now
      for (int64_t i = end + ahead * level / shape.levels; i < end + ahead * (level + 1) / shape.levels; ++i) {
        ask_for(f.x + sub.tokens[i] * shape.in, in0, in1);
        ask_for(f.grad + sub.tokens[i] * shape.out, out0, out1);
      }
      const bool above = level < sub.split;
      for (int64_t i = start, next; i < end; i = next) {
        const int32_t node = id(i, level);
        for (next = i + 1; next < end && id(next, level) == node;) ++next;
        const bool starts = i == 0 || id(i - 1, level) != node, ends = !above && (next == sub.n || id(next, level) != node);
        const NodeSums<Wide<W>> sums{sub.tree * shape.nodes + node, above ? sub.in + level * shape.in : open.in.data() + level * shape.in,
                               above ? sub.out + level * shape.out : open.out.data() + level * shape.out,
                               above ? sub.bias + level : open.bias.data() + level};
        if (!above && starts) clear_nodes(f, sub.tree, open.next[level], node, slice);
        open.next[level] = node + 1;
        add_tokens(f, sums, sub.tokens + i, next - i, starts, ends, first + level, slice);
      }
    }
  }
  for (int level = sub.split; level < shape.levels; ++level)
    clear_nodes(f, sub.tree, open.next[level], sub.first(level, 1), slice);
}

// The gradients of a node above the subtrees: the sum of what they found.
template <typename T, typename W>
FS_TARGET void upper_gradients(const Backward<T, W>& f, const Above<Wide<W>>& above, int64_t row, Picked<Wide<W>> parts) {
  using acc = Wide<W>;
  const Shape& shape = f.shape;
  const acc* nothing = nullptr;
  combine(above.in.data(), shape.in, parts, nothing, f.dweight_in + row * shape.in, 0, shape.in);
  combine(above.out.data(), shape.out, parts, nothing, f.dweight_out + row * shape.out, 0, shape.out);
  combine(above.bias.data(), 1, parts, nothing, f.dbias + row, 0, 1);
}
