// libFuzzer target: one byte of size, one of dtype, then arbitrary bytes as a dense section, decoded and applied.
#include "failure.h"
#include "sections.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  static const char* const kDtypes[] = {"float16", "float32", "bfloat16", "int8"};
  edgeedit::native::PatchTensor row;
  row.name = "t";
  row.dtype = kDtypes[data[1] % 4];
  row.shape = {1U + data[0]};
  row.dense = 0;
  row.step = data[1] % 4 == 3 ? 1.0F : 0.5F;
  const std::vector<std::uint8_t> old(row.bytes(), 0x12);
  std::vector<std::uint8_t> made(row.bytes());
  const std::string_view section(reinterpret_cast<const char*>(data) + 2, size - 2);
  try {
    edgeedit::native::apply_sections(row, {{}, section, {}, {}}, old.data(), made.data());
  } catch (const edgeedit::native::Failure&) {
  }
  return 0;
}
