// The C ABI: every function checks its pointers, and turns a Failure, or whatever else is thrown, into a status.
#include "edgeedit.h"

#include <cstdio>
#include <cstring>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "bundle.h"
#include "container.h"
#include "failure.h"
#include "limits.h"

struct edgeedit_patch {
  edgeedit::native::Patch patch;
};

struct edgeedit_bundle {
  edgeedit::native::Bundle bundle;
};

namespace {

using edgeedit::native::Failure;

edgeedit_status report(edgeedit_error* error, int status, const char* message, const char* hint) noexcept {
  if (error != nullptr) {
    std::snprintf(error->message, sizeof(error->message), "%s", message);
    std::snprintf(error->hint, sizeof(error->hint), "%s", hint);
  }
  return static_cast<edgeedit_status>(status);
}

template <class Body>
edgeedit_status guarded(edgeedit_error* error, const Body& body) noexcept {
  if (error != nullptr) error->message[0] = error->hint[0] = '\0';
  try {
    body();
    return EDGEEDIT_OK;
  } catch (const Failure& failure) {
    return report(error, failure.code, failure.message.c_str(), failure.hint.c_str());
  } catch (const std::bad_alloc&) {
    return report(error, EDGEEDIT_REFUSED, "memory is short: an allocation failed", "stop other programs or use a smaller patch");
  } catch (const std::exception& other) {
    return report(error, EDGEEDIT_UNEXPECTED, other.what(), "");
  } catch (...) {
    return report(error, EDGEEDIT_UNEXPECTED, "unexpected fault", "");
  }
}

void need(bool condition, const char* what) {
  if (!condition) throw Failure(edgeedit::native::kInput, std::string("wrong argument: expected ") + what);
}

void put(const std::string& hex, char out[65]) { std::memcpy(out, hex.c_str(), 65); }

}  // namespace

int edgeedit_abi_version(void) { return EDGEEDIT_ABI_VERSION; }

edgeedit_status edgeedit_key_from_pem(const char* pem, size_t size, edgeedit_key* key, edgeedit_error* error) {
  return guarded(error, [&] {
    need(pem != nullptr && key != nullptr, "a PEM text and a key to fill");
    const edgeedit::native::RawKey raw = edgeedit::native::key_from_pem({pem, size});
    std::memcpy(key->raw, raw.data(), raw.size());
  });
}

edgeedit_status edgeedit_patch_open(const void* data, size_t size, const edgeedit_key* keys, size_t key_count, edgeedit_patch** patch,
                                    edgeedit_error* error) {
  return guarded(error, [&] {
    need(patch != nullptr, "a place for the handle");
    *patch = nullptr;
    need(data != nullptr && (keys != nullptr || key_count == 0), "patch bytes and keys");
    if (size > edgeedit::native::MAX_PATCH_BYTES) edgeedit::native::refuse("patch has an impossible size: got " + std::to_string(size) + " bytes");
    std::vector<edgeedit::native::RawKey> trusted(key_count);
    for (size_t i = 0; i < key_count; ++i) std::memcpy(trusted[i].data(), keys[i].raw, trusted[i].size());
    *patch = new edgeedit_patch{edgeedit::native::Patch(std::string(static_cast<const char*>(data), size), trusted)};
  });
}

void edgeedit_patch_close(edgeedit_patch* patch) { delete patch; }

const char* edgeedit_patch_parent(const edgeedit_patch* patch) { return patch == nullptr ? "" : patch->patch.manifest().parent.c_str(); }

const char* edgeedit_patch_result(const edgeedit_patch* patch) { return patch == nullptr ? "" : patch->patch.manifest().result.c_str(); }

size_t edgeedit_patch_tensor_count(const edgeedit_patch* patch) { return patch == nullptr ? 0 : patch->patch.manifest().tensors.size(); }

edgeedit_status edgeedit_patch_tensor(const edgeedit_patch* patch, size_t index, edgeedit_tensor* tensor, edgeedit_error* error) {
  return guarded(error, [&] {
    need(patch != nullptr && tensor != nullptr && index < edgeedit_patch_tensor_count(patch), "a patch and the index of one of its tensors");
    const auto& row = patch->patch.manifest().tensors[index];
    *tensor = {row.name.c_str(), row.dtype.c_str(), row.shape.data(), row.shape.size(), row.bytes(), row.before.c_str(), row.after.c_str(), 0};
  });
}

edgeedit_status edgeedit_patch_check_parent(const edgeedit_patch* patch, const char* fingerprint, edgeedit_error* error) {
  return guarded(error, [&] {
    need(patch != nullptr && fingerprint != nullptr, "a patch and a fingerprint");
    const std::string& parent = patch->patch.manifest().parent;
    if (parent != fingerprint) {
      throw Failure(edgeedit::native::kMismatch,
                    "patch is for another generation: expected parent " + std::string(fingerprint).substr(0, 12) + ", got " + parent.substr(0, 12),
                    "apply the patches of this bundle in their order");
    }
  });
}

edgeedit_status edgeedit_patch_apply(const edgeedit_patch* patch, size_t index, const void* old_data, size_t old_size, void* out, size_t out_size,
                                     edgeedit_error* error) {
  return guarded(error, [&] {
    need(patch != nullptr && old_data != nullptr && out != nullptr && index < edgeedit_patch_tensor_count(patch),
         "a patch, the index of one of its tensors, and two buffers");
    const auto& row = patch->patch.manifest().tensors[index];
    need(old_size == row.bytes() && out_size == row.bytes(), "buffers of the tensor's size");
    const auto from = reinterpret_cast<std::uintptr_t>(old_data), to = reinterpret_cast<std::uintptr_t>(out);
    need((from > to ? from - to : to - from) >= old_size, "buffers that do not overlap");
    patch->patch.apply(row, old_data, out);
  });
}

edgeedit_status edgeedit_bundle_open(const char* folder, edgeedit_bundle** bundle, edgeedit_error* error) {
  return guarded(error, [&] {
    need(bundle != nullptr && folder != nullptr, "a folder and a place for the handle");
    *bundle = nullptr;
    *bundle = new edgeedit_bundle{edgeedit::native::Bundle(folder)};
  });
}

void edgeedit_bundle_close(edgeedit_bundle* bundle) { delete bundle; }

const char* edgeedit_bundle_fingerprint(const edgeedit_bundle* bundle) { return bundle == nullptr ? "" : bundle->bundle.fingerprint().c_str(); }

size_t edgeedit_bundle_tensor_count(const edgeedit_bundle* bundle) { return bundle == nullptr ? 0 : bundle->bundle.tensors().size(); }

edgeedit_status edgeedit_bundle_tensor(const edgeedit_bundle* bundle, size_t index, edgeedit_tensor* tensor, const void** data,
                                       edgeedit_error* error) {
  return guarded(error, [&] {
    need(bundle != nullptr && tensor != nullptr && index < edgeedit_bundle_tensor_count(bundle), "a bundle and the index of one of its tensors");
    const auto& row = bundle->bundle.tensors()[index];
    *tensor = {row.id.name.c_str(), row.id.dtype.c_str(), row.id.shape.data(), row.id.shape.size(), row.length, row.id.sha256.c_str(), nullptr, row.offset};
    if (data != nullptr) *data = bundle->bundle.bytes(row);
  });
}

edgeedit_status edgeedit_sha256(const void* data, size_t size, char out[65], edgeedit_error* error) {
  return guarded(error, [&] {
    need(out != nullptr && (data != nullptr || size == 0), "bytes and a place for the digest");
    put(edgeedit::native::sha256_hex(data, size), out);
  });
}

edgeedit_status edgeedit_fingerprint(const edgeedit_tensor* tensors, size_t count, char out[65], edgeedit_error* error) {
  return guarded(error, [&] {
    need(out != nullptr && (tensors != nullptr || count == 0), "tensors and a place for the fingerprint");
    std::vector<edgeedit::native::TensorId> ids;
    for (size_t i = 0; i < count; ++i) {
      const edgeedit_tensor& tensor = tensors[i];
      need(tensor.name != nullptr && tensor.dtype != nullptr && tensor.sha256 != nullptr && (tensor.shape != nullptr || tensor.dims == 0),
           "name, dtype, shape and sha256 of every tensor");
      ids.push_back({tensor.name, tensor.dtype, {tensor.shape, tensor.shape + tensor.dims}, tensor.sha256});
    }
    put(edgeedit::native::fingerprint(std::move(ids)), out);
  });
}
