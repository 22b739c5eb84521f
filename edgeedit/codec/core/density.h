// A sparse change as bytes: the mask under row x column density classes, the steps under their own table, both by static rANS.
//
// Layout, little-endian, without gaps:
//   u8 mask lanes, u8 step lanes (1 or 8)
//   u32 entries, u32 bytes of margins, of mask, of mask escapes, of steps, of step escapes
//   row table, column table, step table: u8 lowest, u8 highest symbol, then 12-bit frequencies of lowest..highest, low bits first;
//     lowest = highest has no frequencies (its frequency is 4096); otherwise the sum is 4096
//   margins (one rANS stream, 1 lane): the class of every row, then of every column
//   mask (rANS), mask escapes (bytes), steps (rANS), step escapes (bytes)
//
// Row class 0: no entry in the row; r in 1..64 stands for the logit 0.2 (r - 33).  Column class 0: no entry in the column; c in 1..63 for
// 0.2 (c - 32).  The columns that are not empty, stably sorted by class, are cut into groups of eight; the logit number of a group is the mean of
// c - 32 over its columns, rounded half away from zero.  For each row that is not empty and each group one byte is coded, bit k for the
// k-th column of the group, with L = clamp(r - 33 + group, -32, 32): by table |L|, and for L > 0 with all valid bits inverted.  A byte with
// more bits than the table's limit is the escape, symbol 255, and follows in the mask escapes.  Bits behind the last column are 0.
// Steps follow row by row in group order: symbol 2 (|q| - 1) + (q < 0) for |q| <= 15; 30 + (q < 0) for more, and |q| - 16 follows in the step
// escapes (|q| <= 255).
//
// Guarantees of the decoder: integers only; nothing is read or written outside the given ranges whatever the bytes; no allocation; kOk
// only when every stream ends exactly where it should.
#ifndef EDGEEDIT_DENSITY_H_
#define EDGEEDIT_DENSITY_H_

#include <cstdint>

#include "core.h"

namespace edgeedit {

// Entries that the section declares, 1..rows*cols; kMalformed when its header does not fit.
Status density_count(const std::uint8_t* data, std::uint64_t size, std::uint64_t rows, std::uint64_t cols, std::uint64_t* count) noexcept;

// Bytes of scratch memory that decoding needs; the scratch must be aligned to 8 bytes.
std::uint64_t density_workspace(std::uint64_t rows, std::uint64_t cols) noexcept;

// Writes the mask (one bit for each element in C order, least significant first, ceil(n / 8) bytes) and the `count` steps in that order.
Status density_decode(const std::uint8_t* data, std::uint64_t size, std::uint64_t rows, std::uint64_t cols, std::uint8_t* bitmap,
                      std::int16_t* q, std::uint64_t count, void* workspace, std::uint64_t workspace_bytes) noexcept;

// Decodes a section and adds it to weights in one pass, together with the low-rank part of the same matrix, if there is one: writes the
// new tensor to `out`, which must not overlap `old`.  The same bits as density_decode() and then apply(), without bitmap and list
// of steps.  Unless the status is kOk, `out` holds nothing of use.
struct CodedSparse {
  const std::uint8_t* data;
  std::uint64_t size;
  float step;
};
Status density_apply(Dtype dtype, const void* old, void* out, std::uint64_t rows, std::uint64_t cols, const CodedSparse& sparse,
                     const LowRank* low_rank, void* workspace, std::uint64_t workspace_bytes) noexcept;

// Server side.  `index` ascending, `q` the steps, classes as above (a class 0 only where there is no entry); writes at most `capacity` bytes.
// Allocates scratch memory; kTooLarge when there is none or `capacity` is too small, kBadArgument when classes and entries disagree.
Status density_encode(const std::int64_t* index, const std::int16_t* q, std::uint64_t count, std::uint64_t rows, std::uint64_t cols,
                      const std::uint8_t* row_class, const std::uint8_t* col_class, std::uint8_t* out, std::uint64_t capacity,
                      std::uint64_t* size) noexcept;

}  // namespace edgeedit

#endif  // EDGEEDIT_DENSITY_H_
