#include "container.h"

#include <algorithm>
#include <map>
#include <optional>

#include "failure.h"
#include "limits.h"
#include "sections.h"

namespace edgeedit::native {
namespace {

constexpr std::string_view kMagic("\x89" "EEP\r\n\x1a\n", 8);
constexpr std::uint16_t kVersion = 1;
constexpr std::string_view kDomain("edgeedit-patch-v1\0", 18);
constexpr std::size_t kFixedBytes = 24;
constexpr std::size_t kKeyIdBytes = 32;
constexpr std::size_t kSlotBytes = 96;
constexpr std::size_t kHeaderBytes = kFixedBytes + MAX_SIGNATURES * kSlotBytes;

// Keys of edgeedit.patch.keys.TEST_KEY_IDS; a device that trusted one would trust everybody.
constexpr std::string_view kTestKeyIds[] = {
    "65b60673d6ed884bf01c2c222d82ada0740f29ac3355d6a925c81f17f47a27b8",
    "947561e3eb43b38b2d5f7c2f6a74f30b97a168a3d03916b4381066811319f9ea",
};

std::uint64_t little(std::string_view data, std::size_t at, std::size_t size) {
  std::uint64_t value = 0;
  for (std::size_t i = size; i-- > 0;) value = (value << 8) | static_cast<unsigned char>(data[at + i]);
  return value;
}

const std::uint8_t* octets(std::string_view data) { return reinterpret_cast<const std::uint8_t*>(data.data()); }

bool is_test_key(std::string_view key_id) { return std::find(std::begin(kTestKeyIds), std::end(kTestKeyIds), key_id) != std::end(kTestKeyIds); }

}  // namespace

Header read_header(std::string_view data) {
  if (data.substr(0, kMagic.size()) != kMagic) refuse("not a patch: the first 8 bytes are no patch magic", "give a .eep file");
  if (data.size() < 10 || little(data, 8, 2) != kVersion) {
    refuse("patch has another format version: expected " + std::to_string(kVersion) + ", got " +
               (data.size() < 10 ? "none" : std::to_string(little(data, 8, 2))),
           data.size() < 10 || little(data, 8, 2) > kVersion
               ? "upgrade edgeedit here, or ask for the patch in format version " + std::to_string(kVersion)
               : "ask whoever made it to pack it again with a present edgeedit; the old format is not read any more");
  }
  if (data.size() <= kHeaderBytes || data.size() > MAX_PATCH_BYTES) {
    refuse("patch has an impossible size: expected " + std::to_string(kHeaderBytes + 1) + ".." + std::to_string(MAX_PATCH_BYTES) +
           " bytes, got " + std::to_string(data.size()));
  }
  const std::uint64_t count = little(data, 10, 2), manifest_bytes = little(data, 12, 4), total = little(data, 16, 8);
  if (total != data.size()) {
    refuse("patch is cut off or longer than it says: expected " + std::to_string(total) + " bytes, got " + std::to_string(data.size()));
  }
  if (count < 1 || count > MAX_SIGNATURES) {
    refuse("number of signatures is wrong: expected 1.." + std::to_string(MAX_SIGNATURES) + ", got " + std::to_string(count));
  }
  if (manifest_bytes < 1 || manifest_bytes > std::min<std::uint64_t>(MAX_MANIFEST_BYTES, total - kHeaderBytes)) {
    refuse("manifest has an impossible size: got " + std::to_string(manifest_bytes) + " bytes");
  }
  Header header;
  header.manifest_bytes = static_cast<std::uint32_t>(manifest_bytes);
  std::string_view last;
  for (std::size_t i = 0; i < count; ++i) {
    const std::string_view slot = data.substr(kFixedBytes + i * kSlotBytes, kSlotBytes);
    const std::string_view key_id = slot.substr(0, kKeyIdBytes);
    if (i > 0 && key_id <= last) refuse("signatures are out of order: expected strictly ascending key ids");
    last = key_id;
    header.slots.push_back({to_hex(octets(key_id), kKeyIdBytes), slot.substr(kKeyIdBytes)});
  }
  const std::size_t used = kFixedBytes + static_cast<std::size_t>(count) * kSlotBytes;
  if (data.substr(used, kHeaderBytes - used).find_first_not_of('\0') != std::string_view::npos) {
    refuse("an unused signature slot is not empty");
  }
  return header;
}

std::vector<std::string> verified_signers(std::string_view data, const Header& header, const std::vector<RawKey>& trusted,
                                          bool allow_test_keys) {
  std::string message(kDomain);
  message += data.substr(0, kFixedBytes);
  for (std::size_t i = 0; i < header.slots.size(); ++i) message += data.substr(kFixedBytes + i * kSlotBytes, kKeyIdBytes);
  message += data.substr(kHeaderBytes, header.manifest_bytes);
  std::map<std::string, RawKey> known;
  for (const RawKey& key : trusted) known[sha256_hex(key.data(), key.size())] = key;
  std::vector<std::string> signers;
  std::string named;
  for (const Slot& slot : header.slots) {
    const bool test = is_test_key(slot.key_id);
    named += (named.empty() ? "" : ", ") + slot.key_id + (test ? " (a test key)" : "");
    const auto found = known.find(slot.key_id);
    if (found == known.end() || (test && !allow_test_keys)) continue;
    // A bad signature under a trusted key condemns the file, whatever the other slots say.
    if (!verify_ed25519(found->second, octets(slot.signature), message)) {
      refuse("signature is wrong: key " + slot.key_id + " did not sign this patch");
    }
    signers.push_back(slot.key_id);
  }
  if (signers.empty()) {
    refuse("no trusted signature: expected one of " + std::to_string(known.size()) + " trusted keys, got " + named,
           "give the signer's public key, or ask who made this patch");
  }
  return signers;
}

Patch::Patch(std::string data, const std::vector<RawKey>& trusted, bool allow_test_keys) : data_(std::move(data)) {
  const Header header = read_header(data_);
  signers_ = verified_signers(data_, header, trusted, allow_test_keys);
  payload_ = kHeaderBytes + header.manifest_bytes;
  manifest_ = parse_manifest(plain_manifest(std::string_view(data_).substr(kHeaderBytes, header.manifest_bytes)), data_.size() - payload_);
  for (std::size_t i = 0; i < manifest_.sections.size(); ++i) {
    const std::string_view bytes = section(i);
    if (sha256_hex(bytes.data(), bytes.size()) != manifest_.sections[i].sha256) {
      refuse("section " + manifest_.sections[i].name + " was changed: its digest differs");
    }
  }
}

std::string_view Patch::section(std::size_t index) const {
  const Section& row = manifest_.sections[index];
  return std::string_view(data_).substr(payload_ + row.offset, row.length);
}

void Patch::apply(const PatchTensor& row, const void* old, void* out) const {
  if (sha256_hex(old, row.bytes()) != row.before) {
    throw Failure(kMismatch, "tensor " + row.name + " is not the one the patch was made for", "apply the patches in their order");
  }
  apply_known(row, old, out);
}

void Patch::apply_known(const PatchTensor& row, const void* old, void* out) const {
  const auto bytes_of = [this](const std::optional<std::size_t>& index) { return index ? section(*index) : std::string_view(); };
  apply_sections(row, {bytes_of(row.sparse), bytes_of(row.dense), bytes_of(row.low_rank), bytes_of(row.exact)}, old, out);
  const std::string got = sha256_hex(out, row.bytes());
  if (got != row.after) {
    refuse("tensor " + row.name + " came out wrong: expected digest " + row.after.substr(0, 12) + ", got " + got.substr(0, 12));
  }
}

}  // namespace edgeedit::native
