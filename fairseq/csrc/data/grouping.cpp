// Grouping of many small items: sentences into batches, and sentences into blocks of tokens.
//
// Plain C functions on plain arrays: they are called through ctypes, so that preprocessing and data workers need no
// torch. Reference implementations, with the rules in words: fairseq/ops/batching.py and fairseq/ops/blocks.py. The callers
// check all arguments; limits that are not wanted arrive as INT64_MAX.

#include <algorithm>
#include <cstdint>

namespace {

template <typename Size>
int64_t batch_ends(const Size *num_tokens, int64_t count, int64_t max_tokens, int64_t max_sentences, int64_t multiple,
                   int64_t *ends) {
  int64_t batches = 0;
  for (int64_t start = 0; start < count;) {
    int64_t longest = 0;
    int64_t end = start;
    const int64_t limit = max_sentences < count - start ? start + max_sentences : count;
    while (end < limit) {
      const int64_t with_next = std::max<int64_t>(longest, num_tokens[end]);
      // Division instead of a product: sentences * with_next may pass 2^63 when a size is absurd.
      if (with_next > 0 && end - start + 1 > max_tokens / with_next) break;
      longest = with_next;
      ++end;
    }
    const int64_t fitting = end - start;
    // Fewer than `multiple` sentences are scanned again by the next batch, which has at least `multiple`: linear time.
    start += fitting > multiple ? fitting - fitting % multiple : fitting;
    ends[batches++] = start;
  }
  return batches;
}

template <typename Size>
int64_t block_ranges(const Size *sizes, int64_t count, int64_t block_size, int64_t separator, int64_t *ranges) {
  // separator < 0: "complete". Otherwise "complete_doc": items of that size end a document and are left out.
  const bool by_document = separator >= 0;
  const int64_t shortest = by_document ? 2 : 1;
  int64_t blocks = 0, begin = 0, filled = 0;
  const auto close = [&] {
    if (filled >= shortest) {
      ranges[2 * blocks] = begin;
      ranges[2 * blocks + 1] = begin + filled;
      ++blocks;
    }
    begin += filled;
    filled = 0;
  };
  for (int64_t i = 0; i < count; ++i) {
    const int64_t size = sizes[i];
    if (by_document && size == separator) {
      close();
      begin += size;
      continue;
    }
    if (filled > 0 && filled + size > block_size) close();
    filled += size;
  }
  close();
  return blocks;
}

}  // namespace

#define FAIRSEQ_EXPORT(suffix, type)                                                                              \
  extern "C" int64_t fairseq_batch_ends_##suffix(const type *num_tokens, int64_t count, int64_t max_tokens,       \
                                                 int64_t max_sentences, int64_t multiple, int64_t *ends) {        \
    return batch_ends(num_tokens, count, max_tokens, max_sentences, multiple, ends);                              \
  }                                                                                                               \
  extern "C" int64_t fairseq_block_ranges_##suffix(const type *sizes, int64_t count, int64_t block_size,          \
                                                   int64_t separator, int64_t *ranges) {                          \
    return block_ranges(sizes, count, block_size, separator, ranges);                                             \
  }

FAIRSEQ_EXPORT(uint16, uint16_t)
FAIRSEQ_EXPORT(int32, int32_t)
FAIRSEQ_EXPORT(uint32, uint32_t)
FAIRSEQ_EXPORT(int64, int64_t)

// Raised together with ABI in fairseq/ops/native.py whenever a signature changes: a stale build is then not used.
extern "C" int64_t fairseq_data_abi() { return 1; }
