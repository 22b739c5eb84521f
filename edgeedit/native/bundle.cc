#include "bundle.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <future>
#include <map>
#include <memory>
#include <system_error>
#include <utility>

#include "failure.h"
#include "json.h"
#include "limits.h"

namespace edgeedit::native {
namespace {

constexpr const char* kExport = "export it again";

[[noreturn]] void bad_table(const std::string& what) { refuse("bundle table is wrong: " + what, kExport); }

const Json& need(const Json& row, const char* key, Json::Kind kind) {
  const Json* value = row.find(key);
  if (value == nullptr || value->kind != kind) bad_table(std::string("expected the field ") + key);
  return *value;
}

std::uint64_t natural(const Json& value) {
  if (value.kind != Json::Kind::kInteger || value.integer < 0) bad_table("expected a number from 0 on");
  return static_cast<std::uint64_t>(value.integer);
}

MappedTensor row_of(const Json& row) {
  MappedTensor tensor;
  tensor.id.name = need(row, "name", Json::Kind::kString).text;
  tensor.id.dtype = need(row, "dtype", Json::Kind::kString).text;
  tensor.id.sha256 = need(row, "sha256", Json::Kind::kString).text;
  tensor.offset = natural(need(row, "offset", Json::Kind::kInteger));
  tensor.length = natural(need(row, "length", Json::Kind::kInteger));
  std::uint64_t count = 1;
  for (const Json& length : need(row, "shape", Json::Kind::kArray).items) {
    tensor.id.shape.push_back(natural(length));
    if (tensor.id.shape.back() != 0 && count > MAX_TENSOR_ELEMENTS / tensor.id.shape.back()) bad_table(tensor.id.name + " is too large");
    count *= tensor.id.shape.back();
  }
  if (item_bytes(tensor.id.dtype) == 0 || tensor.length != count * item_bytes(tensor.id.dtype)) bad_table(tensor.id.name + " has a wrong length");
  return tensor;
}

}  // namespace

std::string read_file(const std::string& path, std::uint64_t limit) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rbe"), [](std::FILE* f) { return f ? std::fclose(f) : 0; });
  std::string data;
  char block[65536];
  while (file != nullptr) {
    const std::size_t got = std::fread(block, 1, sizeof(block), file.get());
    data.append(block, got);
    if (data.size() > limit) refuse("file is too large: expected at most " + std::to_string(limit) + " bytes in " + path);
    if (got < sizeof(block)) break;
  }
  if (file == nullptr || std::ferror(file.get()) != 0) {
    throw Failure(kInput, "cannot read " + path + ": " + std::strerror(errno), "check the path");
  }
  return data;
}

Bundle::Bundle(const std::string& folder) : folder_(folder) {
  read_table();
  map_weights();
}

Bundle::~Bundle() {
  if (size_ != 0) ::munmap(const_cast<std::uint8_t*>(data_), size_);
}

void Bundle::read_table() {
  const Json value = parse_json(read_file(folder_ + "/bundle.json", MAX_BUNDLE_JSON_BYTES), Numbers::kAny);
  const Json* version = value.find("schema_version");
  if (version == nullptr || version->kind != Json::Kind::kInteger || version->integer != 1) {
    throw Failure(kInput, "cannot read bundle " + folder_ + ": expected schema_version 1", kExport);
  }
  fingerprint_ = need(value, "fingerprint", Json::Kind::kString).text;
  precision_ = need(value, "precision", Json::Kind::kString).text;
  std::vector<TensorId> ids;
  for (const Json& row : need(value, "tensor_map", Json::Kind::kArray).items) {
    tensors_.push_back(row_of(row));
    ids.push_back(tensors_.back().id);
  }
  std::sort(tensors_.begin(), tensors_.end(), [](const MappedTensor& a, const MappedTensor& b) { return a.offset < b.offset; });
  if (native::fingerprint(std::move(ids)) != fingerprint_) refuse("bundle fingerprint does not match its own table", kExport);
}

void Bundle::map_weights() {
  const int handle = ::open(weights_path().c_str(), O_RDONLY | O_CLOEXEC);
  struct stat facts {};
  if (handle < 0 || ::fstat(handle, &facts) != 0) {
    const std::string reason = std::strerror(errno);
    if (handle >= 0) ::close(handle);
    throw Failure(kInput, "bundle has no weights: " + reason, "copy the whole bundle folder");
  }
  const auto size = static_cast<std::uint64_t>(facts.st_size);
  std::uint64_t end = 0;
  for (const MappedTensor& tensor : tensors_) {
    if (tensor.offset < end || tensor.offset > size || tensor.length > size - tensor.offset) {
      ::close(handle);
      bad_table(tensor.id.name + " does not fit weights.bin of " + std::to_string(size) + " bytes");
    }
    end = tensor.offset + tensor.length;
  }
  void* data = size == 0 ? nullptr : ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, handle, 0);
  ::close(handle);
  if (data == MAP_FAILED) throw Failure(kRefused, "memory is short: cannot map weights.bin", "stop other programs");
  data_ = static_cast<const std::uint8_t*>(data);
  size_ = size;
}

std::string check_chain(const Bundle& bundle, const std::vector<Patch>& chain) {
  if (chain.size() > MAX_CHAIN) {
    throw Failure(kMismatch, "chain is too long: expected at most " + std::to_string(MAX_CHAIN) + " patches, got " + std::to_string(chain.size()),
                  "squash the patches or export a new bundle");
  }
  std::map<std::string, TensorId> now;
  for (const MappedTensor& tensor : bundle.tensors()) now[tensor.id.name] = tensor.id;
  std::string current = bundle.fingerprint();
  for (const Patch& patch : chain) {
    const Manifest& manifest = patch.manifest();
    if (manifest.parent != current) {
      throw Failure(kMismatch, "patch is for another generation: expected parent " + current.substr(0, 12) + ", got " + manifest.parent.substr(0, 12),
                    "apply the patches of this bundle in their order");
    }
    if (manifest.precision != bundle.precision()) {
      throw Failure(kMismatch, "patch is for another precision: expected " + bundle.precision() + ", got " + manifest.precision, "choose the patch of this bundle");
    }
    for (const PatchTensor& row : manifest.tensors) {
      const auto found = now.find(row.name);
      if (found == now.end() || found->second.dtype != row.dtype || found->second.shape != row.shape || found->second.sha256 != row.before) {
        throw Failure(kMismatch, "tensor " + row.name + " is not the one the patch was made for", "apply the patches in their order");
      }
      found->second.sha256 = row.after;
    }
    std::vector<TensorId> ids;
    for (const auto& item : now) ids.push_back(item.second);
    current = fingerprint(std::move(ids));
    if (current != manifest.result) {
      refuse("result came out wrong: expected fingerprint " + manifest.result.substr(0, 12) + ", got " + current.substr(0, 12));
    }
  }
  return current;
}

namespace {

// The digest of a tensor's bytes in the bundle, by a thread of its own where one can be had: hashing is half of all work here.
std::future<std::string> digest(const Bundle& bundle, const MappedTensor& tensor) {
  const auto work = [&bundle, &tensor] { return sha256_hex(bundle.bytes(tensor), tensor.length); };
  try {
    return std::async(std::launch::async, work);
  } catch (const std::system_error&) {  // no thread: the one that asks does the work
    return std::async(std::launch::deferred, work);
  }
}

}  // namespace

void materialize(const Bundle& bundle, const std::vector<Patch>& chain, const Writer& write) {
  std::vector<std::map<std::string, const PatchTensor*>> rows(chain.size());
  for (std::size_t i = 0; i < chain.size(); ++i) {
    for (const PatchTensor& row : chain[i].manifest().tensors) rows[i][row.name] = &row;
  }
  std::vector<std::uint8_t> now, next;  // at most twice the largest tensor
  const std::vector<MappedTensor>& tensors = bundle.tensors();
  std::future<std::string> ahead;
  for (std::size_t at = 0; at < tensors.size(); ++at) {
    const MappedTensor& tensor = tensors[at];
    const std::uint8_t* bytes = bundle.bytes(tensor);
    const std::string found_digest = (at == 0 ? digest(bundle, tensor) : std::move(ahead)).get();
    // The next tensor is hashed while this one is patched and written.
    if (at + 1 < tensors.size()) ahead = digest(bundle, tensors[at + 1]);
    if (found_digest != tensor.id.sha256) {
      refuse("bundle weights were changed: digest of " + tensor.id.name + " differs", "copy the bundle again");
    }
    for (std::size_t i = 0; i < chain.size(); ++i) {
      const auto found = rows[i].find(tensor.id.name);
      if (found == rows[i].end()) continue;
      next.resize(tensor.length);
      // check_chain saw that `before` is the base's digest or the former patch's `after`; both were just compared with the bytes.
      chain[i].apply_known(*found->second, bytes, next.data());
      now.swap(next);
      bytes = now.data();
    }
    write(tensor.offset, bytes, tensor.length);
  }
}

}  // namespace edgeedit::native
