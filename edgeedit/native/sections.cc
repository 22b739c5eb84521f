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

constexpr std::uint32_t kAllRows = 1, kAllCols = 2, kGaps = 4;

std::uint32_t u32(std::string_view data, std::size_t at) {
  std::uint32_t value = 0;
  for (std::size_t i = 4; i-- > 0;) value = (value << 8) | static_cast<unsigned char>(data[at + i]);
  return value;
}

constexpr int kZlib = 15, kRawDeflate = -15;        // window bits, as zlib tells the two forms apart
constexpr std::uint64_t kDeflateExpansion = 1032;  // deflate makes no more bytes than this of one

// One zlib or raw deflate stream that ends where `packed` ends and holds exactly `size` bytes.
std::vector<std::uint8_t> inflate_exactly(std::string_view packed, std::uint64_t size, const std::string& what, int form) {
  if (packed.size() > MAX_PATCH_BYTES || size > MAX_PATCH_BYTES || size > kDeflateExpansion * packed.size()) {
    refuse(what + " has an impossible size");
  }
  std::vector<std::uint8_t> out(size + 1);  // a stream that goes on is seen in the one byte more
  z_stream stream;
  std::memset(&stream, 0, sizeof(stream));
  if (inflateInit2(&stream, form) != Z_OK) throw Failure(kRefused, "memory is short: cannot unpack " + what, "stop other programs");
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());
  stream.next_out = out.data();
  stream.avail_out = static_cast<uInt>(out.size());
  const int status = inflate(&stream, Z_FINISH);
  const bool whole = status == Z_STREAM_END && stream.avail_in == 0 && stream.avail_out == 1;
  inflateEnd(&stream);
  if (!whole) refuse(what + " has a wrong length: expected exactly " + std::to_string(size) + " bytes in one stream");
  out.pop_back();
  return out;
}

std::vector<std::int64_t> indices(const std::vector<std::uint8_t>& content, std::size_t& at, std::uint64_t count, std::uint64_t bound, bool all,
                                  bool gaps) {
  std::vector<std::int64_t> found(count);
  if (all) {
    std::iota(found.begin(), found.end(), std::int64_t{0});
    return found;
  }
  const std::string_view view(reinterpret_cast<const char*>(content.data()), content.size());
  std::int64_t last = -1;
  for (std::int64_t& value : found) {
    value = static_cast<std::int64_t>(u32(view, at)) + (gaps ? last + 1 : 0);
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
  const std::uint32_t all = (row_count == height ? kAllRows : 0U) | (col_count == width ? kAllCols : 0U);
  const std::uint32_t expected = all | (all != (kAllRows | kAllCols) ? flags & kGaps : 0U);
  const bool sizes_fit = rank >= 1 && rank <= MAX_RANK && row_count >= 1 && row_count <= height && col_count >= 1 && col_count <= width;
  if (!sizes_fit || flags != expected || section.size() - 20 != u32(section, 16)) refuse("low-rank section does not fit its matrix");
  const bool all_rows = (flags & kAllRows) != 0, all_cols = (flags & kAllCols) != 0, gaps = (flags & kGaps) != 0;
  const std::uint64_t size = rank * (row_count + col_count) + (all_rows ? 0 : 4 * row_count) + (all_cols ? 0 : 4 * col_count);
  if (size > MAX_PATCH_BYTES) refuse("low-rank section is too large: expected at most " + std::to_string(MAX_PATCH_BYTES) + " bytes unpacked");
  const std::vector<std::uint8_t> content = inflate_exactly(section.substr(20), size, "low-rank payload", kZlib);
  LowRankPart part;
  part.rank = rank;
  std::size_t at = 0;
  part.rows = indices(content, at, row_count, height, all_rows, gaps);
  part.cols = indices(content, at, col_count, width, all_cols, gaps);
  const auto* factors = reinterpret_cast<const std::int8_t*>(content.data()) + at;
  part.a.assign(factors, factors + row_count * rank);
  part.b.assign(factors + row_count * rank, factors + rank * (row_count + col_count));
  return part;
}

namespace {

// FORMAT 8: the zigzag numbers of `count` integers, which lie as `width` byte planes.
std::vector<std::uint32_t> unpack_planes(std::string_view packed, std::uint64_t count, std::uint64_t width, const std::string& what) {
  const std::vector<std::uint8_t> content = inflate_exactly(packed, count * width, what, kRawDeflate);
  std::vector<std::uint32_t> found(count);
  for (std::uint64_t plane = 0; plane < width; ++plane) {
    for (std::uint64_t i = 0; i < count; ++i) found[i] |= static_cast<std::uint32_t>(content[plane * count + i]) << (8 * plane);
  }
  return found;
}

// Two's complement of the integer that a zigzag number stands for.
std::uint32_t from_zigzag(std::uint32_t value) { return (value >> 1) ^ (0U - (value & 1U)); }

// FORMAT 9: the positions and steps of a small tensor that lists the step of every element.
void decode_dense(const PatchTensor& row, std::string_view section, std::vector<std::int64_t>& index, std::vector<std::int16_t>& q) {
  if (row.elements() > MAX_DENSE_ELEMENTS) refuse("dense section does not fit " + row.name);
  const std::vector<std::uint32_t> steps = unpack_planes(section, row.elements(), 2, "dense section of " + row.name);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const auto step = static_cast<std::int32_t>(from_zigzag(steps[i]));
    if (step < -MAX_SQUASH_STEP || step > MAX_SQUASH_STEP) refuse("dense section of " + row.name + " has a wrong step");
    if (step == 0) continue;
    index.push_back(static_cast<std::int64_t>(i));
    q.push_back(static_cast<std::int16_t>(step));
  }
  if (index.empty()) refuse("dense section of " + row.name + " changes nothing");
}

// Adds `difference` to the bits of one little-endian element; true when what comes out is finite.
bool correct(std::uint8_t* at, std::uint32_t difference, Dtype dtype) {
  const std::uint64_t width = item_size(dtype);
  std::uint32_t bits = 0;
  for (std::uint64_t b = 0; b < width; ++b) bits |= static_cast<std::uint32_t>(at[b]) << (8 * b);
  bits += difference;
  for (std::uint64_t b = 0; b < width; ++b) at[b] = static_cast<std::uint8_t>(bits >> (8 * b));
  const std::uint32_t exponent = dtype == Dtype::kFloat32 ? 0x7F800000U : dtype == Dtype::kFloat16 ? 0x7C00U : 0x7F80U;
  return (bits & exponent) != exponent;
}

// FORMAT 10: corrections of the bits that the parts gave.
void apply_exact(const PatchTensor& row, std::string_view section, std::uint8_t* out) {
  const std::uint64_t rows = row.shape.size() == 1 ? 1 : row.shape[0], cols = row.elements() / rows, width = item_bytes(row.dtype);
  const std::string what = "corrections of " + row.name;
  if (section.size() < 4 || u32(section, 0) == 0 || u32(section, 0) >= section.size() - 4) refuse(what + " have a wrong length");
  const std::string_view positions = section.substr(4, u32(section, 0)), packed = section.substr(4 + positions.size());
  const auto* coded = reinterpret_cast<const std::uint8_t*>(positions.data());
  std::uint64_t count = 0;
  if (density_count(coded, positions.size(), rows, cols, &count) != Status::kOk) refuse(what + " have a wrong header of positions");
  const std::vector<std::uint32_t> differences = unpack_planes(packed, count, width, what);
  std::vector<std::uint8_t> bitmap((row.elements() + 7) / 8);
  std::vector<std::int16_t> ones(count);
  std::vector<std::uint64_t> workspace(density_workspace(rows, cols) / 8 + 1);
  const Status status =
      density_decode(coded, positions.size(), rows, cols, bitmap.data(), ones.data(), count, workspace.data(), workspace.size() * 8);
  if (status != Status::kOk) refuse(what + " have damaged positions: expected whole streams");
  for (const std::int16_t one : ones) {
    if (one != 1) refuse(what + " have wrong positions: expected steps of 1 alone");
  }
  std::size_t next = 0;
  for (std::uint64_t i = 0; i < row.elements(); ++i) {
    if ((bitmap[i / 8] >> (i % 8) & 1U) == 0) continue;
    if (differences[next] == 0) refuse(what + " have a wrong difference: expected none of 0");
    if (!correct(out + i * width, from_zigzag(differences[next++]), core_dtype(row.dtype))) {
      refuse("corrections make " + row.name + " not finite: expected finite weights");
    }
  }
}

}  // namespace

void apply_sections(const PatchTensor& row, const TensorSections& sections, const void* old, void* out) {
  const bool matrix = row.shape.size() == 2;
  const std::uint64_t height = matrix ? row.shape[0] : 1, width = matrix ? row.shape[1] : row.elements();
  LowRankPart second;
  LowRank low_rank_part{};
  if (row.low_rank) {
    second = decode_low_rank(sections.low_rank, height, width);
    low_rank_part = {second.rows.data(), second.rows.size(), second.cols.data(), second.cols.size(),
                     second.a.data(),    second.b.data(),    second.rank,        row.scale};
  }
  const LowRank* const low = row.low_rank ? &low_rank_part : nullptr;
  Status status = Status::kOk;
  if (row.sparse) {
    // FORMAT 6: a vector is one row, otherwise the first dimension against the rest.
    const std::uint64_t rows = row.shape.size() == 1 ? 1 : row.shape[0], cols = row.elements() / rows;
    const CodedSparse coded{reinterpret_cast<const std::uint8_t*>(sections.sparse.data()), sections.sparse.size(), row.step};
    std::vector<std::uint64_t> workspace(density_workspace(rows, cols) / 8 + 1);
    status = density_apply(core_dtype(row.dtype), old, out, rows, cols, coded, low, workspace.data(), workspace.size() * 8);
    if (sections.sparse.empty() || status == Status::kMalformed) refuse("sparse section of " + row.name + " is damaged: expected whole streams");
  } else if (row.dense) {
    std::vector<std::int64_t> index;
    std::vector<std::int16_t> q;
    decode_dense(row, sections.dense, index, q);
    const Sparse part{index.data(), nullptr, 0, q.data(), q.size(), row.step};
    status = edgeedit::apply(core_dtype(row.dtype), old, out, height, width, &part, low);
  } else if (low != nullptr) {
    status = edgeedit::apply(core_dtype(row.dtype), old, out, height, width, nullptr, low);
  } else {
    std::memcpy(out, old, row.bytes());
  }
  if (status == Status::kNotFinite) refuse("delta makes " + row.name + " not finite: expected finite weights");
  if (status != Status::kOk) refuse("delta does not fit " + row.name + ": got status " + std::to_string(static_cast<int>(status)));
  if (row.exact) apply_exact(row, sections.exact, static_cast<std::uint8_t*>(out));
}

}  // namespace edgeedit::native
