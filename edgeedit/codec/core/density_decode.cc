#include <cstring>

#include "density.h"
#include "density_rows.h"

namespace edgeedit {
namespace {

// Where the entries of a section go.
struct Target {
  std::uint8_t* bitmap;
  std::int16_t* q;
};

// Puts the entries of a row that starts at element `first` into the bitmap, and their steps in C order behind `q`.
void emit_row(const DensityRow& row, std::uint64_t first, std::int16_t* line, Target& target) noexcept {
  if (row.length == 0) return;
  std::uint32_t lowest = row.columns[0], highest = row.columns[0];
  for (std::uint32_t n = 0; n < row.length; ++n) {
    const std::uint32_t column = row.columns[n];
    line[column] = row.q[n];
    lowest = column < lowest ? column : lowest;
    highest = column > highest ? column : highest;
    const std::uint64_t position = first + column;
    target.bitmap[position / 8] = static_cast<std::uint8_t>(target.bitmap[position / 8] | 1U << (position % 8));
  }
  // Zeros between are overwritten by the next entry; there is one, because the last column has one.
  for (std::uint32_t column = lowest; column <= highest; ++column) {
    *target.q = line[column];
    target.q += line[column] != 0 ? 1 : 0;
    line[column] = 0;
  }
}

}  // namespace

Status density_decode(const std::uint8_t* data, std::uint64_t size, std::uint64_t rows, std::uint64_t cols, std::uint8_t* bitmap,
                      std::int16_t* q, std::uint64_t count, void* workspace, std::uint64_t workspace_bytes) noexcept {
  if (bitmap == nullptr || q == nullptr) return Status::kBadArgument;
  DensityRows coded;
  const Status status = coded.open(data, size, rows, cols, workspace, workspace_bytes);
  if (status != Status::kOk) return status;
  if (coded.count() != count) return Status::kMalformed;
  std::memset(bitmap, 0, static_cast<std::size_t>((rows * cols + 7) / 8));
  Target target{bitmap, q};
  DensityRow row{};
  for (std::uint64_t i = 0; i < rows; ++i) {
    if (!coded.read(i, row)) return Status::kMalformed;
    emit_row(row, i * cols, coded.line(), target);
  }
  return coded.ended() ? Status::kOk : Status::kMalformed;
}

}  // namespace edgeedit
