// A patch file: its fixed header (FORMAT 1), its signatures (FORMAT 2) and the verified patch.
// Guarantees: nothing but the fixed header is read before a signature of a trusted key verifies; a Patch is verified, its manifest
// legal and every section's SHA-256 checked.
#ifndef EDGEEDIT_NATIVE_CONTAINER_H_
#define EDGEEDIT_NATIVE_CONTAINER_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "digest.h"
#include "manifest.h"

namespace edgeedit::native {

struct Slot {
  std::string key_id;      // hexadecimal
  std::string_view signature;  // 64 bytes
};

struct Header {
  std::uint32_t manifest_bytes = 0;
  std::vector<Slot> slots;
};

// Views into `data`.
Header read_header(std::string_view data);

// Key ids of the trusted keys that signed; Failure when there is none or when one of them did not sign what is there.
std::vector<std::string> verified_signers(std::string_view data, const Header& header, const std::vector<RawKey>& trusted,
                                          bool allow_test_keys);

class Patch {
 public:
  // `allow_test_keys` is for tests only: the private halves of those keys are public.
  Patch(std::string data, const std::vector<RawKey>& trusted, bool allow_test_keys = false);

  const Manifest& manifest() const { return manifest_; }
  const std::vector<std::string>& signers() const { return signers_; }

  // Checks the digest of `old` against the row, writes the new tensor and checks its digest; both have row.bytes() bytes.
  void apply(const PatchTensor& row, const void* old, void* out) const;
  // The same for a caller that has just seen that `old` has the digest `row.before`: hashing is most of the work.
  void apply_known(const PatchTensor& row, const void* old, void* out) const;

 private:
  std::string_view section(std::size_t index) const;

  std::string data_;
  std::size_t payload_ = 0;
  std::vector<std::string> signers_;
  Manifest manifest_;
};

}  // namespace edgeedit::native

#endif  // EDGEEDIT_NATIVE_CONTAINER_H_
