// The manifest of a patch (FORMAT 4) as plain types, and the checks that turn verified bytes into it.
// Guarantees: a Manifest satisfies every rule of FORMAT 4; reads no payload byte.
#ifndef EDGEEDIT_NATIVE_MANIFEST_H_
#define EDGEEDIT_NATIVE_MANIFEST_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core.h"

namespace edgeedit::native {

// `offset` counts from the end of the manifest, in bytes.
struct Section {
  std::string name;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  std::string sha256;
};

struct PatchTensor {
  std::string name;
  std::string dtype;
  std::vector<std::uint64_t> shape;
  std::string before;
  std::string after;
  float step = 0;   // of the sparse or dense part
  float scale = 0;  // of the low-rank part
  std::optional<std::size_t> sparse;  // index into Manifest::sections
  std::optional<std::size_t> dense;
  std::optional<std::size_t> low_rank;
  std::optional<std::size_t> exact;

  std::uint64_t elements() const;
  std::uint64_t bytes() const;
};

struct Manifest {
  std::string parent;
  std::string result;
  std::string precision;
  std::string recipe;
  std::vector<PatchTensor> tensors;
  std::vector<Section> sections;
};

// Deployed dtypes by their words; `item_bytes` is 0 for a word that is none.
Dtype core_dtype(std::string_view word);
std::uint64_t item_bytes(std::string_view word);

bool is_digest(std::string_view text);

// The JSON bytes of a stored manifest, which may be one zlib stream (FORMAT 3); only for bytes whose signature was verified.
std::string plain_manifest(std::string_view stored);

Manifest parse_manifest(std::string_view data, std::uint64_t payload_bytes);

}  // namespace edgeedit::native

#endif  // EDGEEDIT_NATIVE_MANIFEST_H_
