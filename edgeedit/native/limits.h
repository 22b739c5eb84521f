// Limits of edgeedit/limits.py that native code checks (tests/native/test_native.py compares the numbers).
#ifndef EDGEEDIT_NATIVE_LIMITS_H_
#define EDGEEDIT_NATIVE_LIMITS_H_

#include <cstddef>
#include <cstdint>

namespace edgeedit::native {

constexpr std::uint64_t MAX_PATCH_BYTES = std::uint64_t{256} * 1024 * 1024;
constexpr std::uint64_t MAX_MANIFEST_BYTES = std::uint64_t{8} * 1024 * 1024;
constexpr std::size_t MAX_SIGNATURES = 4;
constexpr std::size_t MAX_TENSORS = 4096;
constexpr std::size_t MAX_SECTIONS = 4 * MAX_TENSORS;
constexpr std::size_t MAX_NAME_BYTES = 512;
constexpr std::size_t MAX_DIMS = 8;
constexpr std::uint64_t MAX_TENSOR_ELEMENTS = std::uint64_t{1} << 28;
constexpr std::uint64_t MAX_RANK = 1024;
constexpr std::uint64_t MAX_DENSE_ELEMENTS = std::uint64_t{1} << 16;
constexpr int MAX_SQUASH_STEP = 255;
constexpr int MAX_SCALE_BITS = 16;
constexpr int MIN_SCALE_EXP = -60;
constexpr int MAX_SCALE_EXP = 20;
constexpr std::size_t MAX_CHAIN = 16;
constexpr std::int64_t MAX_PROBES = 256;
constexpr std::int64_t MAX_PROBE_VALUES = std::int64_t{1} << 22;
constexpr std::uint64_t MAX_BUNDLE_JSON_BYTES = std::uint64_t{16} * 1024 * 1024;
constexpr std::size_t MAX_JSON_DEPTH = 32;

}  // namespace edgeedit::native

#endif  // EDGEEDIT_NATIVE_LIMITS_H_
