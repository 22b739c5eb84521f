// libFuzzer target: two bytes of shape, one of dtype (its top bits: which parts), two u16 of lengths, then arbitrary bytes as all sections of a tensor.
#include "failure.h"
#include "sections.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 7) return 0;
  static const char* const kDtypes[] = {"float16", "float32", "bfloat16"};
  edgeedit::native::PatchTensor row;
  row.name = "t";
  row.dtype = kDtypes[data[2] % 16 % 3];
  row.shape = {1U + data[0] % 64, 1U + data[1] % 64};
  row.step = row.scale = 0.5F;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 7, size - 7);
  const std::string_view first = rest.substr(0, data[3] | data[4] << 8);
  const std::string_view second = rest.substr(first.size()).substr(0, data[5] | data[6] << 8);
  if ((data[2] & 0x10) != 0) row.sparse = 0;
  if ((data[2] & 0x30) == 0x20) row.dense = 0;
  if ((data[2] & 0x40) != 0) row.low_rank = 1;
  if ((data[2] & 0x80) != 0) row.exact = 2;
  const std::vector<std::uint8_t> old(row.bytes(), 0x12);
  std::vector<std::uint8_t> made(row.bytes());
  try {
    edgeedit::native::apply_sections(row, {first, first, second, rest.substr(first.size() + second.size())}, old.data(), made.data());
  } catch (const edgeedit::native::Failure&) {
  }
  return 0;
}
