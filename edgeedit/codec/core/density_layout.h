// What the coder and the decoder of density.h share: header, groups of columns, symbols of steps.
#ifndef EDGEEDIT_DENSITY_LAYOUT_H_
#define EDGEEDIT_DENSITY_LAYOUT_H_

#include <cstdint>

#include "rans.h"

namespace edgeedit {

constexpr std::uint64_t kHeaderBytes = 26;
constexpr std::uint32_t kRowSymbols = 65;
constexpr std::uint32_t kColSymbols = 64;
constexpr std::uint32_t kStepSymbols = 32;
constexpr std::uint32_t kEscape = 255;
constexpr int kSmallSteps = 15;
constexpr int kMidLogit = 32;
constexpr int kLeastLogit = -32 - 31;  // of a row and a group together, before it is held to -32 .. 32
constexpr int kMostLogits = 31 + 31 - kLeastLogit + 1;

struct Header {
  std::uint32_t mask_lanes, step_lanes;
  std::uint32_t count, margins, mask, mask_escapes, steps, step_escapes;
};

// Stable counting sort of the columns that are not empty; returns how many there are.
inline std::uint32_t sort_columns(const std::uint8_t* col_class, std::uint64_t cols, std::uint32_t* order) noexcept {
  std::uint32_t starts[kColSymbols + 1] = {};
  for (std::uint64_t j = 0; j < cols; ++j) ++starts[col_class[j]];
  std::uint32_t next = 0;
  for (std::uint32_t c = 1; c < kColSymbols; ++c) {
    const std::uint32_t here = starts[c];
    starts[c] = next;
    next += here;
  }
  for (std::uint64_t j = 0; j < cols; ++j) {
    if (col_class[j] != 0) order[starts[col_class[j]]++] = static_cast<std::uint32_t>(j);
  }
  return next;
}

inline int group_logit(const std::uint8_t* col_class, const std::uint32_t* order, std::uint32_t length) noexcept {
  int sum = 0;
  for (std::uint32_t k = 0; k < length; ++k) sum += static_cast<int>(col_class[order[k]]) - kMidLogit;
  const int n = static_cast<int>(length);
  return sum >= 0 ? (2 * sum + n) / (2 * n) : -((-2 * sum + n) / (2 * n));
}

inline int entry_logit(int row_class, int group) noexcept {
  const int logit = row_class - 33 + group;
  return logit < -kMidLogit ? -kMidLogit : logit > kMidLogit ? kMidLogit : logit;
}

}  // namespace edgeedit

#endif  // EDGEEDIT_DENSITY_LAYOUT_H_
