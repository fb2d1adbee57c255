// Every form of the random generator (random_lanes.h) by its name, for tests and measurements.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstring>

#include "random_lanes.h"

namespace fairseq {
namespace {

// The names of those that this processor has, best first.
std::vector<std::string> random_forms() {
  std::vector<std::string> names;
  for (const RandomForm& form : kRandomForms)
    if (form.here) names.emplace_back(form.name);
  return names;
}

// The bits of `counters` counters (a multiple of 32) from `first` on: (8 * counters,) int16, to be read as unsigned.
at::Tensor random_numbers(const std::string& name, int64_t first, int64_t counters, int64_t row, int64_t head, int64_t seed) {
  Dropout dropout;
  dropout.set_seed(seed);
  TORCH_CHECK(counters >= 0 && counters % kLanes == 0, "counters must be a multiple of ", kLanes);
  const at::Tensor out = at::empty({counters * kHalves}, at::kShort);
  auto* to = reinterpret_cast<Bits*>(out.mutable_data_ptr<int16_t>());
  for (const RandomForm& form : kRandomForms) {
    if (!form.here || name != form.name) continue;
    for (int64_t at = 0; at < counters; at += kLanes, ++to)
      form.bits(*to, uint32_t(first + at), uint32_t(row), uint32_t(head), dropout.key0, dropout.key1);
    return out;
  }
  TORCH_CHECK(false, "this processor has no form ", name);
}

}  // namespace
}  // namespace fairseq

TORCH_LIBRARY_FRAGMENT(fairseq_host, m) {
  m.def("random_forms() -> str[]", fairseq::random_forms);
  m.def("random_bits(str form, int first, int counters, int row, int head, int seed) -> Tensor", fairseq::random_numbers);
}
