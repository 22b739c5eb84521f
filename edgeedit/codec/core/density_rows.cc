#include "density_rows.h"

#include <cstring>

#include "density.h"
#include "kernels.h"
#include "scalar.h"

namespace edgeedit {
namespace {

// The only thing that moves a pointer over untrusted bytes.
class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::uint64_t size) noexcept : next_(data), left_(size) {}
  const std::uint8_t* take(std::uint64_t length) noexcept {
    if (length > left_) return nullptr;
    const std::uint8_t* start = next_;
    next_ += length;
    left_ -= length;
    return start;
  }
  std::uint64_t left() const noexcept { return left_; }
  const std::uint8_t* next() const noexcept { return next_; }

 private:
  const std::uint8_t* next_;
  std::uint64_t left_;
};

std::uint32_t word(const std::uint8_t* at) noexcept {
  return static_cast<std::uint32_t>(at[0]) | static_cast<std::uint32_t>(at[1]) << 8 | static_cast<std::uint32_t>(at[2]) << 16 |
         static_cast<std::uint32_t>(at[3]) << 24;
}

std::uint64_t long_word(const std::uint8_t* at) noexcept { return word(at) | static_cast<std::uint64_t>(word(at + 4)) << 32; }

bool shape_fits(std::uint64_t rows, std::uint64_t cols) noexcept {
  return rows != 0 && cols != 0 && rows <= kMaxElements && cols <= kMaxElements / rows;
}

bool read_header(Bytes& bytes, std::uint64_t elements, Header& header) noexcept {
  const std::uint8_t* at = bytes.take(kHeaderBytes);
  if (at == nullptr) return false;
  header = {at[0], at[1], word(at + 2), word(at + 6), word(at + 10), word(at + 14), word(at + 18), word(at + 22)};
  const bool lanes = (header.mask_lanes == 1 || header.mask_lanes == kMaxLanes) && (header.step_lanes == 1 || header.step_lanes == kMaxLanes);
  return lanes && header.count != 0 && header.count <= elements;
}

// Reads a table of symbols below `bound` and fills its 4096 slots.
bool read_table(Bytes& bytes, std::uint32_t bound, std::uint32_t* slots) noexcept {
  const std::uint8_t* range = bytes.take(2);
  if (range == nullptr || range[0] > range[1] || range[1] >= bound) return false;
  const std::uint32_t lowest = range[0];
  const std::uint32_t symbols = range[1] - lowest + 1U;
  if (symbols == 1) {
    for (std::uint32_t i = 0; i < kTotal; ++i) slots[i] = slot(lowest, kTotal, 0);
    return true;
  }
  const std::uint8_t* packed = bytes.take((symbols * 12 + 7) / 8);
  if (packed == nullptr) return false;
  std::uint32_t filled = 0;
  for (std::uint32_t s = 0; s < symbols; ++s) {
    const std::uint8_t* at = packed + s * 12 / 8;
    const std::uint32_t pair = static_cast<std::uint32_t>(at[0]) | static_cast<std::uint32_t>(at[1]) << 8;
    const std::uint32_t frequency = s % 2 == 0 ? pair & 0xFFFU : pair >> 4;
    // The first and the last symbol are there, else the range would be shorter: one form for one table.
    if (filled + frequency > kTotal || (frequency == 0 && (s == 0 || s + 1 == symbols))) return false;
    for (std::uint32_t i = 0; i < frequency; ++i) slots[filled + i] = slot(lowest + s, frequency, filled);
    filled += frequency;
  }
  const bool clean = symbols % 2 == 0 || (packed[(symbols * 12 + 7) / 8 - 1] >> 4) == 0;
  return clean && filled == kTotal;
}

std::uint64_t padded(std::uint64_t bytes) noexcept { return (bytes + 7) / 8 * 8; }

// Hands out parts of a workspace, each aligned to 8 bytes; without memory it only adds up.
class Parts {
 public:
  explicit Parts(void* memory) noexcept : at_(static_cast<std::uint8_t*>(memory)) {}
  template <class T>
  void take(T*& part, std::uint64_t count) noexcept {
    part = at_ == nullptr ? nullptr : static_cast<T*>(static_cast<void*>(at_ + used_));
    used_ += padded(count * sizeof(T));
  }
  std::uint64_t used() const noexcept { return used_; }

 private:
  std::uint8_t* at_;
  std::uint64_t used_ = 0;
};

std::uint32_t group_count(std::uint32_t columns) noexcept { return (columns + 7) / 8; }

}  // namespace

std::uint64_t DensityRows::lay_out(void* memory, std::uint64_t rows, std::uint64_t cols, Workspace& w) noexcept {
  Parts parts(memory);
  const std::uint64_t groups = padded((cols + 7) / 8);  // words of eight groups are read whole
  parts.take(w.row_slots, kTotal);
  parts.take(w.col_slots, kTotal);
  parts.take(w.step_slots, kTotal);
  parts.take(w.order, padded(cols));  // whole groups are read
  parts.take(w.columns, cols + kListedBehind);
  parts.take(w.q, cols);
  parts.take(w.line, cols);
  parts.take(w.row_class, rows);
  parts.take(w.col_class, cols);
  parts.take(w.symbols, cols);
  parts.take(w.bits, groups);
  parts.take(w.reach, groups);
  parts.take(w.groups, groups);
  return parts.used();
}

std::uint64_t density_workspace(std::uint64_t rows, std::uint64_t cols) noexcept {
  DensityRows::Workspace w{};
  return shape_fits(rows, cols) ? DensityRows::lay_out(nullptr, rows, cols, w) : 0;
}

Status density_count(const std::uint8_t* data, std::uint64_t size, std::uint64_t rows, std::uint64_t cols, std::uint64_t* count) noexcept {
  if (data == nullptr || count == nullptr) return Status::kBadArgument;
  if (!shape_fits(rows, cols)) return Status::kTooLarge;
  Bytes bytes(data, size);
  Header header{};
  if (!read_header(bytes, rows * cols, header)) return Status::kMalformed;
  *count = header.count;
  return Status::kOk;
}

Status DensityRows::open(const std::uint8_t* data, std::uint64_t size, std::uint64_t rows, std::uint64_t cols, void* workspace,
                         std::uint64_t workspace_bytes) noexcept {
  if (data == nullptr || workspace == nullptr) return Status::kBadArgument;
  if (!shape_fits(rows, cols)) return Status::kTooLarge;
  if (workspace_bytes < density_workspace(rows, cols)) return Status::kBadArgument;
  lay_out(workspace, rows, cols, w_);
  Bytes bytes(data, size);
  if (!read_header(bytes, rows * cols, header_)) return Status::kMalformed;
  if (!read_table(bytes, kRowSymbols, w_.row_slots) || !read_table(bytes, kColSymbols, w_.col_slots) ||
      !read_table(bytes, kStepSymbols, w_.step_slots)) {
    return Status::kMalformed;
  }
  if (!read_margins(bytes.take(header_.margins), rows, cols) || !open_streams(bytes.next(), bytes.left())) return Status::kMalformed;
  used_ = sort_columns(w_.col_class, cols, w_.order);
  for (std::uint32_t g = 0; g < group_count(used_); ++g) {
    w_.groups[g] = static_cast<std::int8_t>(group_logit(w_.col_class, w_.order + g * 8, used_ - g * 8 < 8 ? used_ - g * 8 : 8));
  }
  std::memset(w_.line, 0, static_cast<std::size_t>(cols * sizeof(*w_.line)));
  std::memset(w_.bits, 0, static_cast<std::size_t>(padded((cols + 7) / 8)));
  return Status::kOk;
}

bool DensityRows::open_streams(const std::uint8_t* data, std::uint64_t size) noexcept {
  Bytes bytes(data, size);
  const MaskTables& tables = mask_tables();
  mask_slots_ = tables.slots;
  for (int i = 0; i < kMostLogits; ++i) {
    const int logit = entry_logit(33, kLeastLogit + i);
    reach_[i] = tables.reach[logit < 0 ? -logit : logit];
  }
  const std::uint8_t* mask = bytes.take(header_.mask);
  mask_escape_ = bytes.take(header_.mask_escapes);
  const std::uint8_t* steps = bytes.take(header_.steps);
  step_escape_ = bytes.take(header_.step_escapes);
  if (mask == nullptr || mask_escape_ == nullptr || steps == nullptr || step_escape_ == nullptr || bytes.left() != 0) return false;
  mask_escape_end_ = mask_escape_ + header_.mask_escapes;
  step_escape_end_ = step_escape_ + header_.step_escapes;
  return mask_.open(mask, header_.mask, header_.mask_lanes) && steps_.open(steps, header_.steps, header_.step_lanes);
}

bool DensityRows::read_margins(const std::uint8_t* data, std::uint64_t rows, std::uint64_t cols) noexcept {
  RansReader margins;
  if (data == nullptr || !margins.open(data, header_.margins, 1)) return false;
  margins.get_many(w_.row_slots, nullptr, rows, w_.row_class);
  margins.get_many(w_.col_slots, nullptr, cols, w_.col_class);
  return margins.whole();
}

// Puts escaped bytes in place of their symbols in the eight groups from `first` on; false when they are missing or no escapes.
bool DensityRows::unescape(int row_class, std::uint32_t first) noexcept {
  for (std::uint32_t g = first; g < first + 8 && g < group_count(used_); ++g) {
    const int logit = entry_logit(row_class, w_.groups[g]);
    const std::uint32_t limit = kClassTables[logit < 0 ? -logit : logit].limit;
    if (w_.bits[g] != kEscape || limit == 8) continue;
    if (mask_escape_ == mask_escape_end_ || bit_count(*mask_escape_) <= limit) return false;
    w_.bits[g] = *mask_escape_++;
  }
  return true;
}

// The bytes of one row; false when they are no mask.
bool DensityRows::read_mask(int row_class) noexcept {
  const std::uint32_t groups = group_count(used_);
  if (groups == 0) return true;
  // Local pointers, because a store through one of bytes may change any member for all the compiler knows.
  std::uint8_t* const __restrict bits = w_.bits;
  std::uint32_t* const __restrict reach = w_.reach;
  const std::int8_t* const __restrict logits = w_.groups;
  const std::uint32_t* const of_row = reach_ + (row_class - 33 - kLeastLogit);
  for (std::uint32_t g = 0; g < groups; ++g) reach[g] = of_row[logits[g]];
  mask_.get_many(mask_slots_, reach, groups, bits);
  for (std::uint32_t first = 0; first < groups; first += 8) {
    const std::uint64_t zeros = ~long_word(w_.bits + first);  // a byte of 255, which may be the escape, is 0 here
    if (((zeros - 0x0101010101010101ULL) & ~zeros & 0x8080808080808080ULL) != 0 && !unescape(row_class, first)) return false;
  }
  const std::uint32_t valid = used_ % 8 == 0 ? 0xFFU : (1U << (used_ % 8)) - 1U;
  if ((w_.bits[groups - 1] & ~valid) != 0) return false;
  const int middle = 33 - row_class;  // L > 0 above it
  for (std::uint32_t g = 0; g < groups; ++g) bits[g] = static_cast<std::uint8_t>(bits[g] ^ (logits[g] > middle ? 0xFFU : 0U));
  w_.bits[groups - 1] = static_cast<std::uint8_t>(w_.bits[groups - 1] & valid);
  return true;
}

bool DensityRows::read_steps(std::uint32_t length) noexcept {
  steps_.get_many(w_.step_slots, nullptr, length, w_.symbols);
  const std::uint8_t* const __restrict symbols = w_.symbols;
  std::int16_t* const __restrict q = w_.q;
  std::uint8_t largest = 0;
  for (std::uint32_t n = 0; n < length; ++n) {
    const int size = (symbols[n] >> 1) + 1;
    q[n] = static_cast<std::int16_t>((symbols[n] & 1) != 0 ? -size : size);
    largest = largest > symbols[n] ? largest : symbols[n];
  }
  if (largest < 2 * kSmallSteps) return true;
  for (std::uint32_t n = 0; n < length; ++n) {
    if (symbols[n] < 2 * kSmallSteps) continue;
    if (step_escape_ == step_escape_end_) return false;
    const int size = kSmallSteps + 1 + *step_escape_++;
    if (size > kMaxSquashStep) return false;
    q[n] = static_cast<std::int16_t>((symbols[n] & 1U) != 0 ? -size : size);
  }
  return true;
}

bool DensityRows::read(std::uint64_t row, DensityRow& found) noexcept {
  found = {w_.columns, w_.q, 0};
  if (w_.row_class[row] == 0) return true;
  if (!read_mask(w_.row_class[row])) return false;
  found.length = static_cast<std::uint32_t>(kernels().list_bits(w_.order, w_.bits, group_count(used_), w_.columns));
  read_ += found.length;
  return read_ <= header_.count && read_steps(found.length);
}

bool DensityRows::ended() const noexcept {
  return mask_.whole() && steps_.whole() && mask_escape_ == mask_escape_end_ && step_escape_ == step_escape_end_ && read_ == header_.count;
}

}  // namespace edgeedit
