#include "sections.h"

#include <zlib.h>

#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>

#include "density.h"
#include "failure.h"
#include "limits.h"

namespace edgeedit::native {
namespace {

constexpr std::uint32_t kAllRows = 1, kAllCols = 2;

std::uint32_t u32(std::string_view data, std::size_t at) {
  std::uint32_t value = 0;
  for (std::size_t i = 4; i-- > 0;) value = (value << 8) | static_cast<unsigned char>(data[at + i]);
  return value;
}

// One zlib stream that ends where `packed` ends and holds exactly `size` bytes, which the caller has bounded.
std::vector<std::uint8_t> inflate_exactly(std::string_view packed, std::uint64_t size, const std::string& what) {
  if (packed.size() > MAX_PATCH_BYTES || size > 2 * MAX_TENSOR_ELEMENTS) refuse(what + " has an impossible size");
  std::vector<std::uint8_t> out(size + 1);  // a stream that goes on is seen in the one byte more
  z_stream stream;
  std::memset(&stream, 0, sizeof(stream));
  if (inflateInit(&stream) != Z_OK) throw Failure(kRefused, "memory is short: cannot unpack " + what, "stop other programs");
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());
  stream.next_out = out.data();
  stream.avail_out = static_cast<uInt>(out.size());
  const int status = inflate(&stream, Z_FINISH);
  const bool whole = status == Z_STREAM_END && stream.avail_in == 0 && stream.avail_out == 1;
  inflateEnd(&stream);
  if (!whole) refuse(what + " has a wrong length: expected exactly " + std::to_string(size) + " bytes in one zlib stream");
  out.pop_back();
  return out;
}

std::vector<std::int64_t> indices(const std::vector<std::uint8_t>& content, std::size_t& at, std::uint64_t count, std::uint64_t bound, bool all) {
  std::vector<std::int64_t> found(count);
  if (all) {
    std::iota(found.begin(), found.end(), std::int64_t{0});
    return found;
  }
  const std::string_view view(reinterpret_cast<const char*>(content.data()), content.size());
  std::int64_t last = -1;
  for (std::int64_t& value : found) {
    value = static_cast<std::int64_t>(u32(view, at));
    at += 4;
    if (value <= last || static_cast<std::uint64_t>(value) >= bound) refuse("low-rank section has wrong indices: expected ascending inside the matrix");
    last = value;
  }
  return found;
}

}  // namespace

LowRankPart decode_low_rank(std::string_view section, std::uint64_t height, std::uint64_t width) {
  if (section.size() < 20) refuse("low-rank section has a wrong length: expected at least 20 bytes");
  const std::uint64_t rank = u32(section, 0), row_count = u32(section, 4), col_count = u32(section, 8);
  const std::uint32_t flags = u32(section, 12);
  const std::uint32_t expected = (row_count == height ? kAllRows : 0U) | (col_count == width ? kAllCols : 0U);
  const bool sizes_fit = rank >= 1 && rank <= MAX_RANK && row_count >= 1 && row_count <= height && col_count >= 1 && col_count <= width;
  if (!sizes_fit || flags != expected || section.size() - 20 != u32(section, 16)) refuse("low-rank section does not fit its matrix");
  const bool all_rows = (flags & kAllRows) != 0, all_cols = (flags & kAllCols) != 0;
  const std::uint64_t size = rank * (row_count + col_count) + (all_rows ? 0 : 4 * row_count) + (all_cols ? 0 : 4 * col_count);
  if (size > MAX_PATCH_BYTES) refuse("low-rank section is too large: expected at most " + std::to_string(MAX_PATCH_BYTES) + " bytes unpacked");
  const std::vector<std::uint8_t> content = inflate_exactly(section.substr(20), size, "low-rank payload");
  LowRankPart part;
  part.rank = rank;
  std::size_t at = 0;
  part.rows = indices(content, at, row_count, height, all_rows);
  part.cols = indices(content, at, col_count, width, all_cols);
  const auto* factors = reinterpret_cast<const std::int8_t*>(content.data()) + at;
  part.a.assign(factors, factors + row_count * rank);
  part.b.assign(factors + row_count * rank, factors + rank * (row_count + col_count));
  return part;
}

void apply_sections(const PatchTensor& row, std::string_view sparse, std::string_view low_rank, const void* old, void* out) {
  const bool matrix = row.shape.size() == 2;
  const std::uint64_t height = matrix ? row.shape[0] : 1, width = matrix ? row.shape[1] : row.elements();
  LowRankPart second;
  LowRank low_rank_part{};
  if (row.low_rank) {
    second = decode_low_rank(low_rank, height, width);
    low_rank_part = {second.rows.data(), second.rows.size(), second.cols.data(), second.cols.size(),
                     second.a.data(),    second.b.data(),    second.rank,        row.scale};
  }
  const LowRank* const low = row.low_rank ? &low_rank_part : nullptr;
  Status status = Status::kOk;
  if (row.sparse) {
    // FORMAT 6: a vector is one row, otherwise the first dimension against the rest.
    const std::uint64_t rows = row.shape.size() == 1 ? 1 : row.shape[0], cols = row.elements() / rows;
    const CodedSparse coded{reinterpret_cast<const std::uint8_t*>(sparse.data()), sparse.size(), row.step};
    std::vector<std::uint64_t> workspace(density_workspace(rows, cols) / 8 + 1);
    status = density_apply(core_dtype(row.dtype), old, out, rows, cols, coded, low, workspace.data(), workspace.size() * 8);
    if (sparse.empty() || status == Status::kMalformed) refuse("sparse section of " + row.name + " is damaged: expected whole streams");
  } else {
    status = edgeedit::apply(core_dtype(row.dtype), old, out, height, width, nullptr, low);
  }
  if (status == Status::kNotFinite) refuse("delta makes " + row.name + " not finite: expected finite weights");
  if (status != Status::kOk) refuse("delta does not fit " + row.name + ": got status " + std::to_string(static_cast<int>(status)));
}

}  // namespace edgeedit::native
