// fairseq::fast_feed_forward_forward, fast_feed_forward_backward and fff_routes on the CPU. Reference implementations:
// fairseq/ops/fff_reference.py.
//
// Tokens walk down the trees in small blocks. With many tokens and large tables, those of the upper levels come first;
// then the tokens go on in the order of the node that they have reached, so that the tables of a subtree stay in the
// cache. Backward, tokens are sorted by the last node that they visit (counting sort, stable), so that the tokens of every node
// are neighbours; the nodes of a subtree add up their rows in registers while these are in the cache, and what subtrees
// found for the nodes above them is added up at the end: no atomics, and the same bits for any number of threads.
//
// FAIRSEQ_VECTORS=plain, avx2 or avx512 in the environment limits the instruction set (for tests and measurements).
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <vector>

#include "tree_problem.h"

#define FS_INLINE inline __attribute__((always_inline))

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between inlined functions only

namespace fairseq {

#define FS_TARGET
#define FS_BYTES 16
namespace plain {
#include "tree_rows.h"
}
#undef FS_TARGET
#undef FS_BYTES

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FS_VARIANTS 1
#define FS_TARGET __attribute__((target("arch=x86-64-v3")))
#define FS_BYTES 32
namespace avx2 {
#include "tree_rows.h"
}
#undef FS_TARGET
#undef FS_BYTES
#define FS_TARGET __attribute__((target("arch=x86-64-v4")))
#define FS_BYTES 64
namespace avx512 {
#include "tree_rows.h"
}
#undef FS_TARGET
#undef FS_BYTES
#endif

namespace {

enum class Vectors { plain, avx2, avx512 };

Vectors best_vectors() {
#ifdef FS_VARIANTS
  const char* limit = std::getenv("FAIRSEQ_VECTORS");
  const auto allowed = [&](const char* name) { return !limit || std::strcmp(limit, name) == 0; };
  __builtin_cpu_init();
  if (allowed("avx512") && __builtin_cpu_supports("x86-64-v4")) return Vectors::avx512;
  if ((allowed("avx2") || allowed("avx512")) && __builtin_cpu_supports("x86-64-v3")) return Vectors::avx2;
#endif
  return Vectors::plain;
}

const Vectors kVectors = best_vectors();

#ifdef FS_VARIANTS
#define FS_BEST(call)                                \
  (kVectors == Vectors::avx512 ? avx512::call        \
   : kVectors == Vectors::avx2 ? avx2::call : plain::call)
#else
#define FS_BEST(call) plain::call
#endif

constexpr int64_t kFewTokens = 8;     // fewer are not worth a thread
constexpr int64_t kManyTokens = 512;  // that grouping pays for
constexpr int64_t kSubtrees = 64;

// f(begin, end) for blocks of at most kTokens of `count` tokens, in parallel; f has buffers of its own for each thread.
template <typename acc, class F>
void blocks_of_tokens(int64_t count, const int32_t* order, const Shape& shape, int64_t columns, F f) {
  const int64_t fair = (count + at::get_num_threads() - 1) / at::get_num_threads();
  const int64_t size = std::min(kTokens, std::max(kFewTokens, fair)), blocks = (count + size - 1) / size;
  at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    Buffers<acc> buffers(shape, columns);
    for (int64_t block = begin; block < end; ++block)
      f(Tokens{order, block * size, std::min(size, count - block * size)}, buffers);
  });
}

// Upper levels of the trees when tokens are to be grouped below them, or 0.
int levels_before_grouping(const Shape& shape, int64_t tokens) {
  const int64_t table = shape.nodes * shape.row_bytes;
  return shape.trees == 1 && tokens >= kManyTokens && table > 4 * kTableBytes ? shape.levels / 2 : 0;
}

// Tokens in the order of the node that they visit at `level` of one tree.
std::vector<int32_t> grouped(const int32_t* visited, int64_t tokens, const Shape& shape, int level) {
  const int32_t first = (int32_t(1) << level) - 1;
  std::vector<int64_t> place((int64_t(1) << level) + 1, 0);
  for (int64_t t = 0; t < tokens; ++t) ++place[visited[t * shape.pairs() + level] - first + 1];
  for (size_t i = 1; i < place.size(); ++i) place[i] += place[i - 1];
  std::vector<int32_t> order(tokens);
  for (int64_t t = 0; t < tokens; ++t) order[place[visited[t * shape.pairs() + level] - first]++] = int32_t(t);
  return order;
}

template <typename T, typename W>
void forward(const Forward<T, W>& f, int64_t tokens) {
  using acc = Wide<W>;
  const Shape& shape = f.shape;
  const int split = f.keeps() ? levels_before_grouping(shape, tokens) : 0;
  std::vector<int32_t> order;
  if (split) {
    blocks_of_tokens<acc>(tokens, nullptr, shape, shape.out,
                          [&](const Tokens& some, Buffers<acc>& buffers) { FS_BEST(walk(f, some, buffers, 0, split)); });
    order = grouped(f.visited, tokens, shape, split);
  }
  blocks_of_tokens<acc>(tokens, split ? order.data() : nullptr, shape, shape.out, [&](const Tokens& some, Buffers<acc>& buffers) {
    FS_BEST(walk(f, some, buffers, split, shape.levels));
  });
}

// The tokens in the order of the last nodes that they visit in a tree.
std::vector<int32_t> by_last_node(const int32_t* visited, int64_t tokens, const Shape& shape, int64_t tree) {
  const int last = shape.levels - 1;
  if (int64_t(1) << last <= 4 * tokens + 4096) return grouped(visited + tree * shape.levels, tokens, shape, last);
  std::vector<int32_t> order(tokens);
  for (int64_t t = 0; t < tokens; ++t) order[t] = int32_t(t);
  const int32_t* nodes = visited + tree * shape.levels + last;
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return nodes[a * shape.pairs()] < nodes[b * shape.pairs()]; });
  return order;
}

// The level whose nodes are the roots of subtrees that add up their gradients apart from each other: enough of them for
// many threads, and tokens enough for each.
int level_of_subtrees(const Shape& shape, int64_t tokens) {
  int level = 0;
  while (level + 1 < shape.levels && shape.trees << level < kSubtrees && tokens >> level > kRun) ++level;
  return level;
}

template <typename T, typename W>
void weight_gradients(const Backward<T, W>& f, int64_t tokens, const std::vector<std::vector<int32_t>>& orders) {
  using acc = Wide<W>;
  const Shape& shape = f.shape;
  const int split = level_of_subtrees(shape, tokens);
  const int64_t subtrees = int64_t(1) << split, rows = shape.trees * subtrees * split;
  Above<acc> above;
  above.in.resize(rows * shape.in), above.out.resize(rows * shape.out), above.bias.resize(rows);
  const auto subtree = [&](int64_t tree, int64_t number) {
    const std::vector<int32_t>& order = orders[tree];
    const auto place = [&](int64_t at) {  // of the first token whose subtree is not before this one
      const int64_t edge = (int64_t(1) << split) - 1 + at;
      return std::partition_point(order.begin(), order.end(), [&](int32_t t) {
               return f.visited[t * shape.pairs() + tree * shape.levels + split] < edge;
             }) - order.begin();
    };
    const int64_t begin = place(number), n = place(number + 1) - begin, row = (tree * subtrees + number) * split;
    return Subtree<acc>{tree, number, split, order.data() + begin, n, above.in.data() + row * shape.in,
                        above.out.data() + row * shape.out, above.bias.data() + row};
  };
  const int64_t parts = tokens >= kManyTokens && std::max(shape.in, shape.out) >= 512 ? 2 : 1;
  at::parallel_for(0, shape.trees * subtrees * parts, 1, [&](int64_t begin, int64_t end) {
    OpenNodes<acc> open(shape);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i / parts;
      FS_BEST(subtree_gradients(f, subtree(at / subtrees, at % subtrees), open, Slice{i % parts, parts}));
    }
  });
  const int64_t upper = subtrees - 1;  // nodes of a tree
  at::parallel_for(0, shape.trees * upper, 1, [&](int64_t begin, int64_t end) {
    std::vector<int32_t> found;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t tree = i / upper, node = i % upper;
      int level = 0;
      while ((int64_t(1) << (level + 1)) - 1 <= node) ++level;
      const int64_t below = subtrees >> level, first = (node - (int64_t(1) << level) + 1) * below;
      found.clear();
      for (int64_t number = first; number < first + below; ++number)
        if (subtree(tree, number).n) found.push_back(int32_t((tree * subtrees + number) * split + level));
      const std::vector<acc> ones(found.size(), acc(1));
      FS_BEST(upper_gradients(f, above, tree * shape.nodes + node, Picked<acc>{found.data(), ones.data(), int64_t(found.size())}));
    }
  });
}

template <typename T, typename W>
void backward(const Backward<T, W>& f, int64_t tokens) {
  using acc = Wide<W>;
  const Shape& shape = f.shape;
  std::vector<std::vector<int32_t>> orders(f.dweight_in ? shape.trees : 1);
  at::parallel_for(0, orders.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t tree = begin; tree < end; ++tree) orders[tree] = by_last_node(f.visited, tokens, shape, tree);
  });
  const int32_t* order = levels_before_grouping(shape, tokens) ? orders[0].data() : nullptr;
  blocks_of_tokens<acc>(tokens, order, shape, shape.in,
                        [&](const Tokens& some, Buffers<acc>& buffers) { FS_BEST(walk_back(f, some, buffers)); });
  if (f.dweight_in) weight_gradients(f, tokens, orders);
}

Shape checked(const at::Tensor& x, const at::Tensor& weight_in, const at::Tensor& weight_out, int64_t levels, int64_t trees,
              c10::string_view activation) {
  TORCH_CHECK(x.dim() >= 1 && weight_in.dim() == 2 && weight_out.dim() == 2, "x must have a dimension, weights two");
  TORCH_CHECK(levels >= 1 && levels <= 25 && trees >= 1, "there must be 1 to 25 levels and a tree");
  const int64_t nodes = (int64_t(1) << levels) - 1;
  TORCH_CHECK(weight_in.size(0) == trees * nodes && weight_out.size(0) == trees * nodes && trees * nodes < (int64_t(1) << 31),
              "weights must have a row for each node");
  TORCH_CHECK(weight_in.size(1) == x.size(-1), "weight_in must have the columns of x");
  TORCH_CHECK(weight_in.scalar_type() == weight_out.scalar_type() && weight_in.is_cpu() && weight_out.is_cpu() && x.is_cpu(),
              "weights must have one type and be where x is");
  TORCH_CHECK(activation == "gelu" || activation == "relu", "activation must be gelu or relu");
  TORCH_CHECK(x.numel() / std::max<int64_t>(1, x.size(-1)) < (int64_t(1) << 31), "too many tokens");
  return {x.size(-1), weight_out.size(1), trees, nodes, int(levels), activation == "gelu",
          (x.size(-1) + weight_out.size(1)) * int64_t(weight_in.element_size())};
}

// Calls f with null pointers of the types of x and of the weights.
template <class F>
void for_types(const at::Tensor& x, const at::Tensor& weight, F f) {
  const auto kind = x.scalar_type(), wide = weight.scalar_type();
  if (kind == wide)
    return for_floating_type(kind, "fast_feed_forward", [&](auto* type) { f(type, type); });
  TORCH_CHECK(wide == at::kFloat && (kind == at::kBFloat16 || kind == at::kHalf),
              "x must have the type of the weights, or half precision beside float32 weights");
  if (kind == at::kBFloat16) f(static_cast<c10::BFloat16*>(nullptr), static_cast<float*>(nullptr));
  else f(static_cast<c10::Half*>(nullptr), static_cast<float*>(nullptr));
}

// Memory for a gradient. The system hands it out in large pages where it can: it is mostly zeros with few tokens, and to
// fetch small pages would take longer than everything else.
at::Tensor gradient_like(const at::Tensor& t, bool wanted) {
  if (!wanted) return at::empty({0}, t.options());
  const at::Tensor gradient = at::empty_like(t, at::MemoryFormat::Contiguous);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(1) << 21;
  const uintptr_t begin = (uintptr_t(gradient.mutable_data_ptr()) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (uintptr_t(gradient.mutable_data_ptr()) + gradient.nbytes()) / kPage * kPage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish: it may be refused
#endif
  return gradient;
}

int64_t tokens_of(const at::Tensor& x) {
  int64_t tokens = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) tokens *= x.size(i);
  return tokens;
}

std::vector<int64_t> with_last(const at::Tensor& x, std::initializer_list<int64_t> last) {
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end() - 1);
  shape.insert(shape.end(), last);
  return shape;
}

at::Tensor checked_bias(const std::optional<at::Tensor>& bias, const at::Tensor& weight) {
  if (!bias) return {};
  TORCH_CHECK(bias->dim() == 1 && bias->size(0) == weight.size(0) && bias->scalar_type() == weight.scalar_type() && bias->is_cpu(),
              "bias_in must have a number for each node, of the type of the weights");
  return bias->contiguous();
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> fast_feed_forward_forward(
    const at::Tensor& x, const at::Tensor& weight_in, const std::optional<at::Tensor>& bias_in, const at::Tensor& weight_out,
    int64_t depth, int64_t trees, c10::string_view activation, bool keep) {
  const Shape shape = checked(x, weight_in, weight_out, depth + 1, trees, activation);
  const at::Tensor rows = x.contiguous(), keys = weight_in.contiguous(), values = weight_out.contiguous();
  const at::Tensor bias = checked_bias(bias_in, weight_in);
  const int64_t tokens = tokens_of(x);
  const at::Tensor y = at::empty(with_last(x, {shape.out}), x.options());
  at::Tensor visited, logits;
  const bool needed = keep || levels_before_grouping(shape, tokens);
  const auto wide = weight_in.options().dtype(weight_in.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  visited = at::empty(needed ? at::IntArrayRef({tokens, trees, depth + 1}) : at::IntArrayRef({0}), x.options().dtype(at::kInt));
  logits = at::empty(visited.sizes(), wide);
  for_types(x, weight_in, [&](auto* type, auto* weights) {
    using T = std::remove_pointer_t<decltype(type)>;
    using W = std::remove_pointer_t<decltype(weights)>;
    forward(Forward<T, W>{shape, rows.const_data_ptr<T>(), keys.const_data_ptr<W>(),
                          bias.defined() ? bias.const_data_ptr<W>() : nullptr, values.const_data_ptr<W>(),
                          y.mutable_data_ptr<T>(), needed ? visited.mutable_data_ptr<int32_t>() : nullptr,
                          needed ? logits.mutable_data_ptr<Wide<W>>() : nullptr},
            tokens);
  });
  if (needed && !keep) return {y, at::empty({0}, visited.options()), at::empty({0}, logits.options())};
  return {y, visited, logits};
}

at::Tensor fff_routes(const at::Tensor& x, const at::Tensor& weight_in, const std::optional<at::Tensor>& bias_in, int64_t depth,
                      int64_t trees) {
  const Shape shape = checked(x, weight_in, weight_in, depth + 1, trees, "gelu");
  const at::Tensor rows = x.contiguous(), keys = weight_in.contiguous(), bias = checked_bias(bias_in, weight_in);
  const at::Tensor visited = at::empty(with_last(x, {trees, depth + 1}), x.options().dtype(at::kInt));
  const auto wide = weight_in.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor logits = at::empty(visited.sizes(), x.options().dtype(wide));
  for_types(x, weight_in, [&](auto* type, auto* weights) {
    using T = std::remove_pointer_t<decltype(type)>;
    using W = std::remove_pointer_t<decltype(weights)>;
    forward(Forward<T, W>{shape, rows.const_data_ptr<T>(), keys.const_data_ptr<W>(),
                          bias.defined() ? bias.const_data_ptr<W>() : nullptr, nullptr, nullptr,
                          visited.mutable_data_ptr<int32_t>(), logits.mutable_data_ptr<Wide<W>>()},
            tokens_of(x));
  });
  return visited.to(at::kLong);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> fast_feed_forward_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight_in, const at::Tensor& weight_out,
    const at::Tensor& nodes, const at::Tensor& logits, c10::string_view activation, bool for_x, bool for_weights) {
  TORCH_CHECK(nodes.dim() == 3 && nodes.scalar_type() == at::kInt && nodes.size(0) == tokens_of(x) && logits.sizes() == nodes.sizes(),
              "nodes and logits must be those of the forward pass");
  const Shape shape = checked(x, weight_in, weight_out, nodes.size(2), nodes.size(1), activation);
  TORCH_CHECK(grad.sizes().equals(with_last(x, {shape.out})) && grad.scalar_type() == x.scalar_type(),
              "the gradient must be like the output");
  const at::Tensor up = grad.contiguous(), rows = x.contiguous(), keys = weight_in.contiguous(), values = weight_out.contiguous();
  const at::Tensor visited = nodes.contiguous(), sums = logits.contiguous();
  const int64_t limit = shape.nodes;
  const int32_t* ids = visited.const_data_ptr<int32_t>();
  TORCH_CHECK(std::all_of(ids, ids + visited.numel(), [&](int32_t id) { return id >= 0 && id < limit; }), "nodes must be in their tree");
  const at::Tensor dx = gradient_like(rows, for_x), dkeys = gradient_like(keys, for_weights), dvalues = gradient_like(values, for_weights);
  const at::Tensor dbias = at::empty({for_weights ? keys.size(0) : 0}, keys.options());
  const at::Tensor dlogits = at::empty(sums.sizes(), sums.options()), activations = at::empty(sums.sizes(), sums.options());
  for_types(x, weight_in, [&](auto* type, auto* weights) {
    using T = std::remove_pointer_t<decltype(type)>;
    using W = std::remove_pointer_t<decltype(weights)>;
    backward(Backward<T, W>{shape, up.const_data_ptr<T>(), rows.const_data_ptr<T>(), keys.const_data_ptr<W>(),
                            values.const_data_ptr<W>(), ids, sums.const_data_ptr<Wide<W>>(),
                            dlogits.mutable_data_ptr<Wide<W>>(), activations.mutable_data_ptr<Wide<W>>(),
                            for_x ? dx.mutable_data_ptr<T>() : nullptr, for_weights ? dkeys.mutable_data_ptr<W>() : nullptr,
                            for_weights ? dbias.mutable_data_ptr<W>() : nullptr,
                            for_weights ? dvalues.mutable_data_ptr<W>() : nullptr},
             tokens_of(x));
  });
  return {dx, dkeys, dbias, dvalues};
}

}  // namespace
}  // namespace fairseq

#pragma GCC diagnostic pop

TORCH_LIBRARY_IMPL(fairseq, CPU, m) {
  m.impl("fast_feed_forward_forward", fairseq::fast_feed_forward_forward);
  m.impl("fast_feed_forward_backward", fairseq::fast_feed_forward_backward);
  m.impl("fff_routes", fairseq::fff_routes);
}
