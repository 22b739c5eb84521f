#include "low_rank_rows.h"

#include "kernels.h"

namespace edgeedit {
namespace {

const void* at(const void* row, std::uint64_t element, std::uint64_t item) noexcept { return static_cast<const std::uint8_t*>(row) + element * item; }
void* at(void* row, std::uint64_t element, std::uint64_t item) noexcept { return static_cast<std::uint8_t*>(row) + element * item; }

// The elements of a row that are not neighbours, brought together for a kernel and taken apart again.
template <class Stored>
struct Gathered {
  Stored old[kSumsAtOnce];
  Stored made[kSumsAtOnce];
  std::int16_t q[kSumsAtOnce];

  void take(const void* row, const std::int16_t* line, const std::int64_t* cols, std::uint64_t length) noexcept {
    for (std::uint64_t j = 0; j < length; ++j) {
      old[j] = static_cast<const Stored*>(row)[cols[j]];
      q[j] = line == nullptr ? std::int16_t{0} : line[cols[j]];
    }
  }
  void put(void* row, const std::int64_t* cols, std::uint64_t length) const noexcept {
    for (std::uint64_t j = 0; j < length; ++j) static_cast<Stored*>(row)[cols[j]] = made[j];
  }
};

template <class Stored>
bool add_scattered(Kernels::AddSums add, const void* old_row, void* out_row, const std::int64_t* cols, std::uint64_t length,
                   const std::int16_t* line, float step, const std::int32_t* sums, float scale) noexcept {
  Gathered<Stored> some;
  some.take(old_row, line, cols, length);
  const bool fine = add(some.old, some.made, length, line == nullptr ? nullptr : some.q, step, sums, scale);
  some.put(out_row, cols, length);
  return fine;
}

}  // namespace

bool add_low_rank_row(Dtype dtype, const void* old_row, void* out_row, const LowRank& part, std::uint64_t number, const std::int16_t* line,
                      float step) noexcept {
  const Kernels& kernel = kernels();
  const Kernels::AddSums add = kernel.add_sums[static_cast<int>(dtype)];
  const std::uint64_t item = item_size(dtype);
  std::int32_t sums[kSumsAtOnce];
  bool fine = true;
  for (std::uint64_t first = 0; first < part.col_count; first += kSumsAtOnce) {
    const std::uint64_t length = part.col_count - first < kSumsAtOnce ? part.col_count - first : kSumsAtOnce;
    const std::int64_t* const cols = part.cols + first;
    kernel.products(part.a + number * part.rank, part.b + first, part.rank, part.col_count, length, sums);
    const auto start = static_cast<std::uint64_t>(cols[0]);
    if (static_cast<std::uint64_t>(cols[length - 1]) - start == length - 1) {
      fine &= add(at(old_row, start, item), at(out_row, start, item), length, line == nullptr ? nullptr : line + start, step, sums, part.scale);
    } else if (item == 4) {
      fine &= add_scattered<std::uint32_t>(add, old_row, out_row, cols, length, line, step, sums, part.scale);
    } else {
      fine &= add_scattered<std::uint16_t>(add, old_row, out_row, cols, length, line, step, sums, part.scale);
    }
  }
  return fine;
}

bool add_low_rank(Dtype dtype, const void* old, void* out, std::uint64_t width, const LowRank& part) noexcept {
  const std::uint64_t row_bytes = width * item_size(dtype);
  bool fine = true;
  for (std::uint64_t i = 0; i < part.row_count; ++i) {
    const auto row = static_cast<std::uint64_t>(part.rows[i]);
    fine &= add_low_rank_row(dtype, at(old, row, row_bytes), at(out, row, row_bytes), part, i, nullptr, 0.0F);
  }
  return fine;
}

}  // namespace edgeedit
