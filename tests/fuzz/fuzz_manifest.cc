// libFuzzer target: four bytes of payload length, then arbitrary bytes as a manifest; an accepted table fills the payload exactly.
#include <cstdlib>

#include "failure.h"
#include "manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 4) return 0;
  const std::uint64_t payload = data[0] | data[1] << 8 | data[2] << 16;
  try {
    const auto manifest = edgeedit::native::parse_manifest(
        edgeedit::native::plain_manifest({reinterpret_cast<const char*>(data) + 4, size - 4}), payload);
    std::uint64_t end = 0;
    for (const auto& section : manifest.sections) end += section.length;
    if (end != payload || manifest.tensors.empty()) std::abort();
  } catch (const edgeedit::native::Failure&) {
  }
  return 0;
}
