// A low-rank change row by row, alone or together with the sparse entries of the same row.
#ifndef EDGEEDIT_LOW_RANK_ROWS_H_
#define EDGEEDIT_LOW_RANK_ROWS_H_

#include <cstdint>

#include "core.h"

namespace edgeedit {

// Adds row `number` of the low-rank part to one row of weights: every column the part names becomes round((old + step * line[column]) +
// scale * sum); without `line` no step is added.  `dtype` is a float type.  False when a new element is not finite.
bool add_low_rank_row(Dtype dtype, const void* old_row, void* out_row, const LowRank& part, std::uint64_t number, const std::int16_t* line,
                      float step) noexcept;

// All rows of a part that is the only change; `out` holds `old` already.
bool add_low_rank(Dtype dtype, const void* old, void* out, std::uint64_t width, const LowRank& part) noexcept;

}  // namespace edgeedit

#endif  // EDGEEDIT_LOW_RANK_ROWS_H_
