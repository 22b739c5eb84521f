// libFuzzer target: two bytes of shape, one of dtype, then arbitrary bytes as corrections, decoded and applied; every element that is
// accepted is finite.
#include <cstdlib>

#include "failure.h"
#include "sections.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 3) return 0;
  static const char* const kDtypes[] = {"float16", "float32", "bfloat16"};
  edgeedit::native::PatchTensor row;
  row.name = "t";
  row.dtype = kDtypes[data[2] % 3];
  row.shape = {1U + data[0] % 64, 1U + data[1] % 64};
  row.exact = 0;
  const std::vector<std::uint8_t> old(row.bytes(), 0x12);
  std::vector<std::uint8_t> made(row.bytes());
  const std::string_view section(reinterpret_cast<const char*>(data) + 3, size - 3);
  try {
    edgeedit::native::apply_sections(row, {{}, {}, {}, section}, old.data(), made.data());
  } catch (const edgeedit::native::Failure&) {
    return 0;
  }
  const std::size_t width = row.dtype == "float32" ? 4 : 2;
  const unsigned top = row.dtype == "float16" ? 0x7CU : 0x7FU, below = row.dtype == "float16" ? 0U : 0x80U;
  for (std::size_t i = 0; i < made.size(); i += width) {
    if ((made[i + width - 1] & top) == top && (made[i + width - 2] & below) == below) std::abort();
  }
  return 0;
}
