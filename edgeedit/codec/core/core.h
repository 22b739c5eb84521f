// The numeric core of edgeedit: applies an integer-coded change to one tensor, bit for bit as edgeedit/rounding.py says.
//
//   new = round_to_dtype((float32(old) + s*q) + t*(A.B))      int8: new = old + q in the integers
//
// Guarantees: no I/O, no heap allocation, no exception, no global state; every argument is checked before the first write to
// `out`; the caller's floating-point control register (flush-to-zero, rounding mode) has no influence and is restored; elements
// that the change does not name keep their bits.  After an error the content of `out` is unspecified and must be thrown away.
#ifndef EDGEEDIT_CORE_H_
#define EDGEEDIT_CORE_H_

#include <cstddef>
#include <cstdint>

namespace edgeedit {

// Limits of edgeedit/limits.py.
constexpr std::uint64_t kMaxElements = std::uint64_t{1} << 28;
constexpr std::uint64_t kMaxRank = 1024;
constexpr int kMaxSquashStep = 255;
constexpr int kMaxScaleBits = 16;
constexpr int kMinScaleExp = -60;
constexpr int kMaxScaleExp = 20;

enum class Dtype : int { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2, kInt8 = 3 };

// Bytes of one element.
constexpr std::uint64_t item_size(Dtype dtype) noexcept { return dtype == Dtype::kFloat32 ? 4 : dtype == Dtype::kInt8 ? 1 : 2; }

enum class Status : int {
  kOk = 0,
  kBadArgument = 1,  // null pointer, unknown dtype, no change, or a size that does not fit
  kTooLarge = 2,     // a size above its limit
  kBadIndex = 3,     // positions not ascending inside the tensor, or bits set behind the end of a bitmap
  kBadStep = 4,      // q is 0 or above the limit
  kBadScale = 5,     // s or t out of range, or too many significant bits
  kNotFinite = 6,    // a named element is or becomes infinite or not a number
  kMalformed = 7,    // coded bytes that no writer makes
  kBadCode = 8,      // int8: a low-rank part, a step that is not 1, or a code outside -128..127
};

// Sparse change.  Exactly one of `index` (ascending flat C-order positions, `count` of them) and `bitmap` (one bit for each
// element, least significant first, ceil(elements / 8) bytes, `count` bits set) is given; `q` has `count` values in that order.
struct Sparse {
  const std::int64_t* index;
  const std::uint8_t* bitmap;
  std::uint64_t bitmap_bytes;
  const std::int16_t* q;
  std::uint64_t count;
  float step;
};

// Low-rank change t * (A.B) of the sub-matrix [rows, cols]: `a` is (row_count, rank), `b` is (rank, col_count), C order.
struct LowRank {
  const std::int64_t* rows;
  std::uint64_t row_count;
  const std::int64_t* cols;
  std::uint64_t col_count;
  const std::int8_t* a;
  const std::int8_t* b;
  std::uint64_t rank;
  float scale;
};

// Writes the new tensor of height * width elements to `out`, which must not overlap `old`.  A tensor that is no matrix is given
// as height 1.  `sparse` or `low_rank` may be null, not both.
Status apply(Dtype dtype, const void* old, void* out, std::uint64_t height, std::uint64_t width, const Sparse* sparse,
             const LowRank* low_rank) noexcept;

// Number of set bits; kBadIndex when a bit behind `elements` is set, kBadArgument when `bytes` is not ceil(elements / 8).
Status count_bits(const std::uint8_t* bitmap, std::uint64_t bytes, std::uint64_t elements, std::uint64_t* count) noexcept;

// Writes the position of every set bit; kBadArgument when there are not exactly `count`.
Status expand_bitmap(const std::uint8_t* bitmap, std::uint64_t bytes, std::int64_t* index, std::uint64_t count) noexcept;

// Conversions on bit patterns in integer arithmetic, so that no control register matters: nearest even, subnormals kept.
std::uint32_t float_from_half(std::uint16_t bits) noexcept;
std::uint16_t half_from_float(std::uint32_t bits) noexcept;
std::uint32_t float_from_bfloat16(std::uint16_t bits) noexcept;
std::uint16_t bfloat16_from_float(std::uint32_t bits) noexcept;

}  // namespace edgeedit

#endif  // EDGEEDIT_CORE_H_
