// Payload sections (FORMAT 6 to 10) as numbers, and the change of one tensor.
// Guarantees: every size is known before anything is allocated; whatever the bytes, the result is a legal part or a Failure.
#ifndef EDGEEDIT_NATIVE_SECTIONS_H_
#define EDGEEDIT_NATIVE_SECTIONS_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "manifest.h"

namespace edgeedit::native {

struct LowRankPart {
  std::vector<std::int64_t> rows;
  std::vector<std::int64_t> cols;
  std::vector<std::int8_t> a;
  std::vector<std::int8_t> b;
  std::uint64_t rank = 0;
};

LowRankPart decode_low_rank(std::string_view section, std::uint64_t height, std::uint64_t width);

// The sections of one tensor; those that its row does not have are ignored.
struct TensorSections {
  std::string_view sparse;
  std::string_view dense;
  std::string_view low_rank;
  std::string_view exact;
};

// Decodes the parts that `row` has and writes the new tensor; `old` and `out` have row.bytes() bytes.  Checks no digest.
void apply_sections(const PatchTensor& row, const TensorSections& sections, const void* old, void* out);

}  // namespace edgeedit::native

#endif  // EDGEEDIT_NATIVE_SECTIONS_H_
