// The decoder of density.h row by row, for what stands above it: `density_decode` collects the rows, `density_apply` adds them to weights.
//
// Guarantees: integers only, no allocation; whatever the bytes, every column is inside the matrix and named once in its row, and no
// step is 0 or above 255.  The section was whole only if `ended` says so after the last row.
#ifndef EDGEEDIT_DENSITY_ROWS_H_
#define EDGEEDIT_DENSITY_ROWS_H_

#include <cstdint>

#include "core.h"
#include "density_layout.h"

namespace edgeedit {

// Entries of one row in coded order, which is not ascending.
struct DensityRow {
  const std::uint32_t* columns;
  const std::int16_t* q;
  std::uint32_t length;
};

class DensityRows {
 public:
  // Reads header, tables and margins and opens the streams; `workspace` as density_workspace() says.
  Status open(const std::uint8_t* data, std::uint64_t size, std::uint64_t rows, std::uint64_t cols, void* workspace,
              std::uint64_t workspace_bytes) noexcept;
  std::uint64_t count() const noexcept { return header_.count; }
  // The next row (number `row`, ascending from 0); false when the bytes are no section or there are more entries than declared.
  bool read(std::uint64_t row, DensityRow& found) noexcept;
  // A place for every column, all 0, for who needs a row in ascending order; it must be all 0 again afterwards.
  std::int16_t* line() noexcept { return w_.line; }
  // True when every stream ended where it should and all declared entries came.
  bool ended() const noexcept;

 private:
  struct Workspace {
    std::uint32_t* row_slots;
    std::uint32_t* col_slots;
    std::uint32_t* step_slots;
    std::uint32_t* order;
    std::uint32_t* columns;
    std::int16_t* q;
    std::int16_t* line;
    std::uint8_t* row_class;
    std::uint8_t* col_class;
    std::uint8_t* symbols;
    std::uint8_t* bits;    // of the groups of a row, up to a multiple of eight
    std::uint32_t* reach;  // of their tables
    std::int8_t* groups;
  };
  static std::uint64_t lay_out(void* memory, std::uint64_t rows, std::uint64_t cols, Workspace& w) noexcept;
  friend std::uint64_t density_workspace(std::uint64_t rows, std::uint64_t cols) noexcept;

  bool open_streams(const std::uint8_t* data, std::uint64_t size) noexcept;
  bool read_margins(const std::uint8_t* data, std::uint64_t rows, std::uint64_t cols) noexcept;
  bool read_mask(int row_class) noexcept;
  bool unescape(int row_class, std::uint32_t first) noexcept;
  bool read_steps(std::uint32_t length) noexcept;

  Header header_{};
  Workspace w_{};
  RansReader mask_, steps_;
  const std::uint32_t* mask_slots_ = nullptr;
  // Reach of the table for every row number + group number, from the lowest, -32 - 31, up.
  std::uint32_t reach_[kMostLogits] = {};
  const std::uint8_t* mask_escape_ = nullptr;
  const std::uint8_t* mask_escape_end_ = nullptr;
  const std::uint8_t* step_escape_ = nullptr;
  const std::uint8_t* step_escape_end_ = nullptr;
  std::uint32_t used_ = 0;
  std::uint64_t read_ = 0;
};

}  // namespace edgeedit

#endif  // EDGEEDIT_DENSITY_ROWS_H_
