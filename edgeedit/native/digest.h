// SHA-256 and Ed25519 by OpenSSL, hexadecimal text, and the fingerprint of edgeedit/digest.py.
#ifndef EDGEEDIT_NATIVE_DIGEST_H_
#define EDGEEDIT_NATIVE_DIGEST_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace edgeedit::native {

using RawKey = std::array<std::uint8_t, 32>;

// Identity of one deployed tensor; `sha256` is 64 lower-case hexadecimal digits.
struct TensorId {
  std::string name;
  std::string dtype;
  std::vector<std::uint64_t> shape;
  std::string sha256;
};

std::string to_hex(const std::uint8_t* data, std::size_t size);

// SHA-256 as 64 lower-case hexadecimal digits.
std::string sha256_hex(const void* data, std::size_t size);

// Whether `signature` (64 bytes) over `message` was made with `key` (RFC 8032, pure).
bool verify_ed25519(const RawKey& key, const std::uint8_t* signature, std::string_view message);

// The raw key of a public PEM text; Failure of exit code 2 when it is no Ed25519 public key.
RawKey key_from_pem(std::string_view pem);

// SHA-256 over the sorted rows [name, dtype, shape, digest] as compact ASCII JSON.
std::string fingerprint(std::vector<TensorId> tensors);

}  // namespace edgeedit::native

#endif  // EDGEEDIT_NATIVE_DIGEST_H_
