/* C ABI of edgeedit: verify a signed patch and apply it tensor by tensor, without Python.
 *
 * Guarantees: no exception leaves a function; no global state, so any number of threads may use the library, and one open handle may
 * be read by many of them (closing it must be the last use); buffers belong to the caller; what is not signed by one of the given keys
 * is never parsed past its fixed header.  Strings returned by a handle live as long as the handle.  Text is UTF-8.
 */
#ifndef EDGEEDIT_H_
#define EDGEEDIT_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define EDGEEDIT_API __attribute__((visibility("default")))
#else
#define EDGEEDIT_API
#endif

#define EDGEEDIT_ABI_VERSION 1

#ifdef __cplusplus
extern "C" {
#endif

/* Who must act; the numbers are the exit codes of the tools. */
typedef enum edgeedit_status {
  EDGEEDIT_OK = 0,
  EDGEEDIT_UNEXPECTED = 1, /* a fault of the library or of OpenSSL */
  EDGEEDIT_INPUT = 2,      /* the caller: an unusable argument, key or file */
  EDGEEDIT_MISMATCH = 4,   /* the patch is for another base, precision or place in the order */
  EDGEEDIT_INTEGRITY = 5,  /* signature, digest or format is wrong */
  EDGEEDIT_REFUSED = 6     /* memory or disk */
} edgeedit_status;

/* Filled on failure; both texts end with a zero byte and are cut when they are too long. */
typedef struct edgeedit_error {
  char message[512];
  char hint[256];
} edgeedit_error;

typedef struct edgeedit_key {
  uint8_t raw[32]; /* raw Ed25519 public key */
} edgeedit_key;

typedef struct edgeedit_tensor {
  const char* name;
  const char* dtype;      /* "float32", "float16", "bfloat16" or "int8" */
  const uint64_t* shape;
  size_t dims;
  uint64_t bytes;         /* little-endian, C order */
  const char* sha256;     /* 64 hexadecimal digits; of a patch: before */
  const char* after;      /* of a patch; NULL for a bundle */
  uint64_t offset;        /* in weights.bin, for a bundle; 0 for a patch */
} edgeedit_tensor;

typedef struct edgeedit_patch edgeedit_patch;
typedef struct edgeedit_bundle edgeedit_bundle;

/* `error` may be NULL everywhere. */

EDGEEDIT_API int edgeedit_abi_version(void);

EDGEEDIT_API edgeedit_status edgeedit_key_from_pem(const char* pem, size_t size, edgeedit_key* key, edgeedit_error* error);

/* Copies `data`, verifies signature, manifest and every section digest.  Without a key every patch is refused. */
EDGEEDIT_API edgeedit_status edgeedit_patch_open(const void* data, size_t size, const edgeedit_key* keys, size_t key_count,
                                                 edgeedit_patch** patch, edgeedit_error* error);
EDGEEDIT_API void edgeedit_patch_close(edgeedit_patch* patch);
EDGEEDIT_API const char* edgeedit_patch_parent(const edgeedit_patch* patch);
EDGEEDIT_API const char* edgeedit_patch_result(const edgeedit_patch* patch);
EDGEEDIT_API size_t edgeedit_patch_tensor_count(const edgeedit_patch* patch);
EDGEEDIT_API edgeedit_status edgeedit_patch_tensor(const edgeedit_patch* patch, size_t index, edgeedit_tensor* tensor, edgeedit_error* error);

/* EDGEEDIT_OK when the patch was made for a generation with this fingerprint, else EDGEEDIT_MISMATCH. */
EDGEEDIT_API edgeedit_status edgeedit_patch_check_parent(const edgeedit_patch* patch, const char* fingerprint, edgeedit_error* error);

/* Writes the new tensor to `out`; `old_data` and `out` have the tensor's bytes and do not overlap.  The digest before and the digest
 * after are checked; on failure the content of `out` is unspecified and must not be used. */
EDGEEDIT_API edgeedit_status edgeedit_patch_apply(const edgeedit_patch* patch, size_t index, const void* old_data, size_t old_size, void* out,
                                                  size_t out_size, edgeedit_error* error);

/* Reads bundle.json and maps weights.bin read-only; checks the table, not the weights' digests. */
EDGEEDIT_API edgeedit_status edgeedit_bundle_open(const char* folder, edgeedit_bundle** bundle, edgeedit_error* error);
EDGEEDIT_API void edgeedit_bundle_close(edgeedit_bundle* bundle);
EDGEEDIT_API const char* edgeedit_bundle_fingerprint(const edgeedit_bundle* bundle);
EDGEEDIT_API size_t edgeedit_bundle_tensor_count(const edgeedit_bundle* bundle);
EDGEEDIT_API edgeedit_status edgeedit_bundle_tensor(const edgeedit_bundle* bundle, size_t index, edgeedit_tensor* tensor, const void** data,
                                                    edgeedit_error* error);

/* SHA-256 of bytes, and the fingerprint of a set of tensors (name, dtype, shape, dims and sha256 are read), each as 64 hexadecimal
 * digits and a zero byte. */
EDGEEDIT_API edgeedit_status edgeedit_sha256(const void* data, size_t size, char out[65], edgeedit_error* error);
EDGEEDIT_API edgeedit_status edgeedit_fingerprint(const edgeedit_tensor* tensors, size_t count, char out[65], edgeedit_error* error);

#ifdef __cplusplus
}
#endif

#endif /* EDGEEDIT_H_ */
