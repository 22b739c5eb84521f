// Checks of arguments that every way to apply a change makes before it writes.
#ifndef EDGEEDIT_CHECKS_H_
#define EDGEEDIT_CHECKS_H_

#include <cstdint>

#include "core.h"
#include "scalar.h"

namespace edgeedit {

inline bool ascending(const std::int64_t* values, std::uint64_t count, std::uint64_t bound) noexcept {
  std::int64_t last = -1;
  bool fine = true;
  for (std::uint64_t i = 0; i < count; ++i) {
    fine &= values[i] > last;
    last = values[i];
  }
  return fine && (count == 0 || static_cast<std::uint64_t>(last) < bound);
}

// At most `bits` significant bits, inside [2^-60, 2^20]; looks at the bit pattern, so no control register matters.
inline bool legal_scale(float value, int bits) noexcept {
  const std::uint32_t pattern = as_bits(value);
  const int exponent = static_cast<int>(pattern >> 23) - 127;  // a set sign bit gives an exponent above every limit
  const std::uint32_t significand = pattern & 0x7FFFFFU;
  if (exponent < kMinScaleExp || exponent > kMaxScaleExp || (exponent == kMaxScaleExp && significand != 0)) return false;
  return (significand & ((1U << (24 - bits)) - 1U)) == 0;
}

inline Status check_low_rank(const LowRank& part, std::uint64_t height, std::uint64_t width) noexcept {
  if (part.rows == nullptr || part.cols == nullptr || part.a == nullptr || part.b == nullptr) return Status::kBadArgument;
  if (part.row_count == 0 || part.col_count == 0 || part.rank == 0) return Status::kBadArgument;
  if (part.rank > kMaxRank || part.row_count > height || part.col_count > width) return Status::kTooLarge;
  if (!legal_scale(part.scale, 1)) return Status::kBadScale;
  if (!ascending(part.rows, part.row_count, height) || !ascending(part.cols, part.col_count, width)) return Status::kBadIndex;
  return Status::kOk;
}

}  // namespace edgeedit

#endif  // EDGEEDIT_CHECKS_H_
