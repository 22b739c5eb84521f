// libFuzzer target: two bytes of shape, one of dtype (its top bit: a matrix long enough for streams of eight lanes), then arbitrary bytes as a
// sparse section, decoded and applied in the wide and in the scalar form: the same verdict, the same bits.
#include <cstdlib>

#include "failure.h"
#include "kernels.h"
#include "sections.h"

static std::string outcome(const edgeedit::native::PatchTensor& row, std::string_view section, std::vector<std::uint8_t>& made) {
  const std::vector<std::uint8_t> old(row.bytes(), 0x12);
  try {
    edgeedit::native::apply_sections(row, {section, {}, {}, {}}, old.data(), made.data());
  } catch (const edgeedit::native::Failure& failure) {
    made.clear();
    return failure.message;
  }
  return {};
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 3) return 0;
  edgeedit::native::PatchTensor row;
  row.name = "t";
  static const char* const kDtypes[] = {"float16", "float32", "bfloat16", "int8"};
  row.dtype = kDtypes[data[2] % 4];
  row.shape = {1U + data[0] % 64, 1U + data[1] % 64};
  if ((data[2] & 0x80) != 0) row.shape = {512, 256};  // as v1-lanes.eep
  row.sparse = 0;
  row.step = data[2] % 4 == 3 ? 1.0F : 0.5F;
  const std::string_view section(reinterpret_cast<const char*>(data) + 3, size - 3);
  std::vector<std::uint8_t> wide(row.bytes()), scalar(row.bytes());
  edgeedit::use_scalar(false);
  const std::string first = outcome(row, section, wide);
  edgeedit::use_scalar(true);
  if (outcome(row, section, scalar) != first || wide != scalar) std::abort();
  return 0;
}
