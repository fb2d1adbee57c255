// Numbers of any type as the type that kernels compute in, and back; in forms that the compiler vectorizes.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

#include <cstring>
#include <type_traits>

#include "../common/philox.h"

namespace fairseq {

template <typename T>
using Wide = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <typename T>
FS_HOST_DEVICE Wide<T> widen(T x) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
    const uint32_t bits = uint32_t(x.x) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
  } else {
    return x;
  }
}

template <typename T>
FS_HOST_DEVICE T narrow(Wide<T> x) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16;
    return c10::BFloat16(uint16_t(x == x ? rounded : 0x7FC0u), c10::BFloat16::from_bits());
  } else {
    return T(x);
  }
}

// Calls f with a null pointer of the tensor's type.
template <class F>
void for_floating_type(c10::ScalarType type, const char* name, F f) {
  switch (type) {
    case c10::ScalarType::Float: return f(static_cast<float*>(nullptr));
    case c10::ScalarType::Double: return f(static_cast<double*>(nullptr));
    case c10::ScalarType::BFloat16: return f(static_cast<c10::BFloat16*>(nullptr));
    case c10::ScalarType::Half: return f(static_cast<c10::Half*>(nullptr));
    default: TORCH_CHECK(false, name, " takes floating-point tensors, but got ", type);
  }
}

}  // namespace fairseq
