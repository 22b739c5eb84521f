#include "digest.h"

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>

#include <algorithm>
#include <memory>
#include <tuple>

#include "failure.h"
#include "json.h"

namespace edgeedit::native {
namespace {

using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

}  // namespace

std::string to_hex(const std::uint8_t* data, std::size_t size) {
  const char* const hex = "0123456789abcdef";
  std::string out;
  out.reserve(2 * size);
  for (std::size_t i = 0; i < size; ++i) {
    out += hex[data[i] >> 4];
    out += hex[data[i] & 15];
  }
  return out;
}

std::string sha256_hex(const void* data, std::size_t size) {
  std::uint8_t out[32];
  if (EVP_Digest(data, size, out, nullptr, EVP_sha256(), nullptr) != 1) {
    throw Failure(kUnexpected, "cannot compute SHA-256: OpenSSL refused", "check the installation of OpenSSL");
  }
  return to_hex(out, sizeof(out));
}

bool verify_ed25519(const RawKey& key, const std::uint8_t* signature, std::string_view message) {
  const Key loaded(EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, key.data(), key.size()), &EVP_PKEY_free);
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  // Whatever goes wrong, memory or a provider, the answer is no.
  return loaded != nullptr && context != nullptr && EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, loaded.get()) == 1 &&
         EVP_DigestVerify(context.get(), signature, 64, reinterpret_cast<const unsigned char*>(message.data()), message.size()) == 1;
}

RawKey key_from_pem(std::string_view pem) {
  const char* const hint = "give the .pub file that `edgeedit keys new` wrote";
  if (pem.size() > 65536) throw Failure(kInput, "cannot read key: expected a public key in PEM, got a long file", hint);
  const std::unique_ptr<BIO, decltype(&BIO_free)> bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), &BIO_free);
  const Key loaded(bio ? PEM_read_bio_PUBKEY(bio.get(), nullptr, nullptr, nullptr) : nullptr, &EVP_PKEY_free);
  if (!loaded) throw Failure(kInput, "cannot read key: expected a public key in PEM", hint);
  RawKey raw{};
  std::size_t size = raw.size();
  if (EVP_PKEY_id(loaded.get()) != EVP_PKEY_ED25519 || EVP_PKEY_get_raw_public_key(loaded.get(), raw.data(), &size) != 1 || size != 32) {
    throw Failure(kInput, "cannot use key: expected Ed25519", hint);
  }
  return raw;
}

std::string fingerprint(std::vector<TensorId> tensors) {
  // UTF-8 sorts by bytes as Python sorts by code points.
  std::sort(tensors.begin(), tensors.end(), [](const TensorId& a, const TensorId& b) {
    return std::tie(a.name, a.dtype, a.shape, a.sha256) < std::tie(b.name, b.dtype, b.shape, b.sha256);
  });
  std::string text = "[";
  for (const TensorId& tensor : tensors) {
    if (text.size() > 1) text += ',';
    text += "[" + quote_ascii(tensor.name) + "," + quote_ascii(tensor.dtype) + ",[";
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) text += (i == 0 ? "" : ",") + std::to_string(tensor.shape[i]);
    text += "]," + quote_ascii(tensor.sha256) + "]";
  }
  text += "]";
  return sha256_hex(text.data(), text.size());
}

}  // namespace edgeedit::native
