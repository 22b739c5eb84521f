// Test program: applies each named patch to weights made by a fixed rule and prints one line per patch, so that digests can be compared
// between architectures, between the scalar and the wide form of the core, and with Python.  Public test keys count here.
// Usage: digest_many KEYS.bin [scalar] < list of paths; keys are raw.
//
// A line is `path code` and, where code is 0, `name digest` of every new tensor.  The digests before and after in the manifest are not
// checked, because golden files name weights that never existed.
#include <cstdio>
#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "bundle.h"
#include "container.h"
#include "failure.h"
#include "kernels.h"
#include "limits.h"
#include "sections.h"

namespace {

using namespace edgeedit::native;

// Element i is finite in every dtype and of either sign; every tenth is subnormal in float16; codes of int8 lie in -20..20.
std::vector<std::uint8_t> weights(const PatchTensor& row) {
  std::vector<std::uint8_t> bytes(row.bytes());
  const auto item = static_cast<std::size_t>(item_bytes(row.dtype));
  for (std::uint64_t i = 0; i < row.elements(); ++i) {
    const auto mixed = static_cast<std::uint32_t>(i * 2654435761U);
    const std::uint32_t half = (i % 10 == 9 ? mixed % 0x400U : 0x1C00U + mixed % 0x1C00U) | ((mixed >> 16) & 0x8000U);
    const std::uint32_t single = 0x3A000000U + mixed % 0x05000000U + ((mixed & 1U) << 31);
    const std::uint32_t bits = item == 4 ? single : row.dtype == "bfloat16" ? single >> 16 : item == 2 ? half : (mixed >> 16) % 41U - 20U;
    for (std::size_t b = 0; b < item; ++b) bytes[i * item + b] = static_cast<std::uint8_t>(bits >> (8 * b));
  }
  return bytes;
}

// Patch hands out no section, so the file is opened here a second time.
void digest_new(const std::string& data, const Patch& patch) {
  const std::size_t payload = 408 + read_header(data).manifest_bytes;
  const auto& sections = patch.manifest().sections;
  const auto bytes_of = [&](const std::optional<std::size_t>& index) {
    return index ? std::string_view(data).substr(payload + sections[*index].offset, sections[*index].length) : std::string_view();
  };
  std::string line;
  for (const PatchTensor& row : patch.manifest().tensors) {
    const std::vector<std::uint8_t> old = weights(row);
    std::vector<std::uint8_t> made(old.size());
    apply_sections(row, {bytes_of(row.sparse), bytes_of(row.dense), bytes_of(row.low_rank), bytes_of(row.exact)}, old.data(), made.data());
    line += "\t" + row.name + "\t" + sha256_hex(made.data(), made.size());
  }
  std::printf("\t0%s", line.c_str());
}

}  // namespace

int main(int count, char** words) {
  edgeedit::use_scalar(count > 2 && std::strcmp(words[2], "scalar") == 0);
  const std::string raw = read_file(words[1], 1 << 20);
  std::vector<RawKey> trusted(raw.size() / 32);
  for (std::size_t i = 0; i < trusted.size(); ++i) std::memcpy(trusted[i].data(), raw.data() + 32 * i, 32);
  std::string path;
  while (std::getline(std::cin, path)) {
    std::printf("%s", path.c_str());
    try {
      const std::string data = read_file(path, MAX_PATCH_BYTES);
      digest_new(data, Patch(data, trusted, true));
    } catch (const Failure& failure) {
      std::printf("\t%d\t%s", failure.code, failure.message.c_str());
    }
    std::printf("\n");
  }
  return 0;
}
