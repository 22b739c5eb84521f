#include <cstring>

#include "checks.h"
#include "density.h"
#include "density_rows.h"
#include "kernels.h"
#include "low_rank_rows.h"

namespace edgeedit {
namespace {

// One row of weights with its entries, which `line` holds by column during the call, and row `number` of the low-rank part.
bool add_both(Dtype dtype, const void* old_row, void* out_row, const DensityRow& row, std::int16_t* line, float step, const LowRank& part,
              std::uint64_t number) noexcept {
  for (std::uint32_t n = 0; n < row.length; ++n) line[row.columns[n]] = row.q[n];
  bool fine = add_low_rank_row(dtype, old_row, out_row, part, number, line, step);
  for (std::uint64_t j = 0; j < part.col_count; ++j) line[part.cols[j]] = 0;
  // What is left is outside the part's columns.
  const Kernels::AddEntries add = kernels().add_entries[static_cast<int>(dtype)];
  for (std::uint32_t n = 0; n < row.length; ++n) {
    if (line[row.columns[n]] == 0) continue;
    fine &= add(old_row, out_row, row.columns + n, row.q + n, 1, step);
    line[row.columns[n]] = 0;
  }
  return fine;
}

// Codes of a row, which `codes` holds already, plus q; false when a sum is no code.
bool add_codes(std::int8_t* codes, const DensityRow& row) noexcept {
  bool fine = true;
  for (std::uint32_t n = 0; n < row.length; ++n) {
    const int sum = codes[row.columns[n]] + row.q[n];
    fine &= (sum >= -128) & (sum <= 127);
    codes[row.columns[n]] = static_cast<std::int8_t>(static_cast<std::uint8_t>(sum));
  }
  return fine;
}

// Asks for the lines of a row of both tensors early, so that they come while its entries are decoded.
void prefetch(const std::uint8_t* from, const std::uint8_t* to, std::size_t bytes) noexcept {
#if defined(__GNUC__)
  constexpr std::size_t kLine = 64;
  for (std::size_t at = 0; at < bytes; at += kLine) {
    __builtin_prefetch(from + at, 0);
    __builtin_prefetch(to + at, 1);
  }
#endif
}

Status check(Dtype dtype, std::uint64_t rows, std::uint64_t cols, float step, const LowRank* low_rank) noexcept {
  if (!legal_scale(step, kMaxScaleBits)) return Status::kBadScale;
  if (dtype == Dtype::kInt8) return low_rank == nullptr && as_bits(step) == 0x3F800000U ? Status::kOk : Status::kBadCode;
  return low_rank == nullptr ? Status::kOk : check_low_rank(*low_rank, rows, cols);
}

}  // namespace

Status density_apply(Dtype dtype, const void* old, void* out, std::uint64_t rows, std::uint64_t cols, const CodedSparse& sparse,
                     const LowRank* low_rank, void* workspace, std::uint64_t workspace_bytes) noexcept {
  if (old == nullptr || out == nullptr) return Status::kBadArgument;
  if (dtype != Dtype::kFloat32 && dtype != Dtype::kFloat16 && dtype != Dtype::kBfloat16 && dtype != Dtype::kInt8) return Status::kBadArgument;
  DensityRows coded;
  Status status = coded.open(sparse.data, sparse.size, rows, cols, workspace, workspace_bytes);
  if (status == Status::kOk) status = check(dtype, rows, cols, sparse.step, low_rank);
  if (status != Status::kOk) return status;
  const FloatEnvironment plain;
  const Kernels::AddEntries add = dtype == Dtype::kInt8 ? nullptr : kernels().add_entries[static_cast<int>(dtype)];
  const std::size_t row_bytes = static_cast<std::size_t>(cols * item_size(dtype));
  const auto* from = static_cast<const std::uint8_t*>(old);
  auto* to = static_cast<std::uint8_t*>(out);
  bool fine = true;
  std::uint64_t number = 0;  // of the next row of the low-rank part
  DensityRow row{};
  for (std::uint64_t i = 0; i < rows; ++i, from += row_bytes, to += row_bytes) {
    prefetch(from, to, row_bytes);
    if (!coded.read(i, row)) return Status::kMalformed;
    std::memcpy(to, from, row_bytes);
    if (dtype == Dtype::kInt8) {
      fine &= add_codes(reinterpret_cast<std::int8_t*>(to), row);
    } else if (low_rank != nullptr && number < low_rank->row_count && static_cast<std::uint64_t>(low_rank->rows[number]) == i) {
      fine &= add_both(dtype, from, to, row, coded.line(), sparse.step, *low_rank, number++);
    } else {
      fine &= add(from, to, row.columns, row.q, row.length, sparse.step);
    }
  }
  if (!coded.ended()) return Status::kMalformed;
  return fine ? Status::kOk : dtype == Dtype::kInt8 ? Status::kBadCode : Status::kNotFinite;
}

}  // namespace edgeedit
