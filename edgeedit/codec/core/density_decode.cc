#include <cstring>

#include "density.h"
#include "density_layout.h"

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

 private:
  const std::uint8_t* next_;
  std::uint64_t left_;
};

std::uint32_t word(const std::uint8_t* at) noexcept {
  return static_cast<std::uint32_t>(at[0]) | static_cast<std::uint32_t>(at[1]) << 8 | static_cast<std::uint32_t>(at[2]) << 16 |
         static_cast<std::uint32_t>(at[3]) << 24;
}

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
    for (std::uint32_t i = 0; i < kTotal; ++i) slots[i] = slot(lowest, kTotal, i);
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
    for (std::uint32_t i = 0; i < frequency; ++i) slots[filled + i] = slot(lowest + s, frequency, i);
    filled += frequency;
  }
  const bool clean = symbols % 2 == 0 || (packed[(symbols * 12 + 7) / 8 - 1] >> 4) == 0;
  return clean && filled == kTotal;
}

struct Workspace {
  std::uint32_t* row_slots;
  std::uint32_t* col_slots;
  std::uint32_t* step_slots;
  std::uint64_t* row_mask;
  std::uint32_t* order;
  std::int16_t* row_steps;
  std::uint8_t* row_class;
  std::uint8_t* col_class;
  std::int8_t* groups;
};

std::uint64_t padded(std::uint64_t bytes) noexcept { return (bytes + 7) / 8 * 8; }

Workspace lay_out(void* memory, std::uint64_t rows, std::uint64_t cols) noexcept {
  std::uint8_t* at = static_cast<std::uint8_t*>(memory);
  const auto next = [&at](std::uint64_t bytes) noexcept {
    std::uint8_t* start = at;
    at += padded(bytes);
    return static_cast<void*>(start);
  };
  Workspace w{};
  w.row_slots = static_cast<std::uint32_t*>(next(kTotal * 4));
  w.col_slots = static_cast<std::uint32_t*>(next(kTotal * 4));
  w.step_slots = static_cast<std::uint32_t*>(next(kTotal * 4));
  w.row_mask = static_cast<std::uint64_t*>(next((cols + 63) / 64 * 8));
  w.order = static_cast<std::uint32_t*>(next(cols * 4));
  w.row_steps = static_cast<std::int16_t*>(next(cols * 2));
  w.row_class = static_cast<std::uint8_t*>(next(rows));
  w.col_class = static_cast<std::uint8_t*>(next(cols));
  w.groups = static_cast<std::int8_t*>(next((cols + 7) / 8));
  return w;
}

// The streams of one section, and what has been read of the escapes.
struct Streams {
  RansReader mask, steps;
  const MaskTables* tables;  // fetched once: asking for them at every byte asks every time whether they are made
  const std::uint8_t* mask_escape;
  const std::uint8_t* mask_escape_end;
  const std::uint8_t* step_escape;
  const std::uint8_t* step_escape_end;
};

bool open_streams(Bytes& bytes, const Header& header, Streams& streams) noexcept {
  streams.tables = &mask_tables();
  const std::uint8_t* mask = bytes.take(header.mask);
  streams.mask_escape = bytes.take(header.mask_escapes);
  const std::uint8_t* steps = bytes.take(header.steps);
  streams.step_escape = bytes.take(header.step_escapes);
  if (mask == nullptr || streams.mask_escape == nullptr || steps == nullptr || streams.step_escape == nullptr || bytes.left() != 0) return false;
  streams.mask_escape_end = streams.mask_escape + header.mask_escapes;
  streams.step_escape_end = streams.step_escape + header.step_escapes;
  return streams.mask.open(mask, header.mask, header.mask_lanes) && streams.steps.open(steps, header.steps, header.step_lanes);
}

bool read_margins(const std::uint8_t* data, const Header& header, std::uint64_t rows, std::uint64_t cols, const Workspace& w) noexcept {
  RansReader margins;
  if (data == nullptr || !margins.open(data, header.margins, 1)) return false;
  for (std::uint64_t i = 0; i < rows; ++i) w.row_class[i] = static_cast<std::uint8_t>(margins.get(w.row_slots));
  for (std::uint64_t j = 0; j < cols; ++j) w.col_class[j] = static_cast<std::uint8_t>(margins.get(w.col_slots));
  return margins.whole();
}

// One byte of the mask: bit k for the k-th column of the group; false when the bytes are no mask.
inline bool read_group(Streams& streams, int logit, std::uint32_t valid, std::uint32_t& bits) noexcept {
  const int m = logit < 0 ? -logit : logit;
  std::uint32_t symbol = streams.mask.get(streams.tables->slots[m]);
  const std::uint32_t limit = kClassTables[m].limit;
  if (symbol == kEscape && limit < 8) {
    if (streams.mask_escape == streams.mask_escape_end) return false;
    symbol = *streams.mask_escape++;
    if (bit_count(symbol) <= limit) return false;
  }
  if ((symbol & ~valid) != 0) return false;
  bits = logit > 0 ? symbol ^ valid : symbol;
  return true;
}

inline bool read_step(Streams& streams, const std::uint32_t* slots, std::int16_t& q) noexcept {
  const std::uint32_t symbol = streams.steps.get(slots);
  int size = static_cast<int>(symbol >> 1) + 1;
  if (size > kSmallSteps) {
    if (streams.step_escape == streams.step_escape_end) return false;
    size = kSmallSteps + 1 + *streams.step_escape++;
    if (size > kMaxSquashStep) return false;
  }
  q = static_cast<std::int16_t>((symbol & 1U) != 0 ? -size : size);
  return true;
}

// Where the steps of a section go.
struct Target {
  std::uint8_t* bitmap;
  std::int16_t* q;
  std::uint64_t count;
  std::uint64_t written;
};

// Moves one decoded row into the bitmap and the list of steps, in C order.
bool emit_row(const Workspace& w, std::uint64_t first, std::uint64_t cols, Target& target) noexcept {
  for (std::uint64_t part = 0; part * 64 < cols; ++part) {
    std::uint64_t bits = w.row_mask[part];
    w.row_mask[part] = 0;
    while (bits != 0) {
      std::uint64_t column = part * 64;
#if defined(__GNUC__)
      column += static_cast<std::uint64_t>(__builtin_ctzll(bits));
#else
      while (((bits >> (column - part * 64)) & 1U) == 0) ++column;
#endif
      bits &= bits - 1;
      if (target.written == target.count) return false;
      const std::uint64_t position = first + column;
      target.bitmap[position / 8] = static_cast<std::uint8_t>(target.bitmap[position / 8] | 1U << (position % 8));
      target.q[target.written++] = w.row_steps[column];
    }
  }
  return true;
}

bool read_row(Streams& streams, const Workspace& w, int row_class, std::uint32_t used) noexcept {
  for (std::uint32_t g = 0; g * 8 < used; ++g) {
    const std::uint32_t length = used - g * 8 < 8 ? used - g * 8 : 8;
    std::uint32_t bits = 0;
    if (!read_group(streams, entry_logit(row_class, w.groups[g]), (1U << length) - 1U, bits)) return false;
    for (std::uint32_t k = 0; bits != 0; ++k, bits >>= 1) {
      if ((bits & 1U) == 0) continue;
      const std::uint32_t column = w.order[g * 8 + k];
      if (!read_step(streams, w.step_slots, w.row_steps[column])) return false;
      w.row_mask[column / 64] |= std::uint64_t{1} << (column % 64);
    }
  }
  return true;
}

MaskTables make_tables() noexcept {
  MaskTables tables{};
  for (int m = 0; m < kClasses; ++m) {
    const ClassTable& row = kClassTables[m];
    std::uint32_t filled = 0;
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t bits = bit_count(byte);
      const std::uint32_t frequency = bits <= row.limit ? row.frequency[bits] : byte == kEscape ? row.escape : 0;
      tables.places[m][byte] = {static_cast<std::uint16_t>(filled), static_cast<std::uint16_t>(frequency)};
      for (std::uint32_t i = 0; i < frequency && filled < kTotal; ++i) tables.slots[m][filled++] = slot(byte, frequency, i);
    }
  }
  return tables;
}

}  // namespace

const MaskTables& mask_tables() noexcept {
  static const MaskTables tables = make_tables();
  return tables;
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

std::uint64_t density_workspace(std::uint64_t rows, std::uint64_t cols) noexcept {
  if (!shape_fits(rows, cols)) return 0;
  return 3 * kTotal * 4 + padded((cols + 63) / 64 * 8) + padded(cols * 4) + padded(cols * 2) + padded(rows) + padded(cols) + padded((cols + 7) / 8);
}

Status density_decode(const std::uint8_t* data, std::uint64_t size, std::uint64_t rows, std::uint64_t cols, std::uint8_t* bitmap,
                      std::int16_t* q, std::uint64_t count, void* workspace, std::uint64_t workspace_bytes) noexcept {
  if (data == nullptr || bitmap == nullptr || q == nullptr || workspace == nullptr) return Status::kBadArgument;
  if (!shape_fits(rows, cols)) return Status::kTooLarge;
  if (workspace_bytes < density_workspace(rows, cols)) return Status::kBadArgument;
  Bytes bytes(data, size);
  Header header{};
  if (!read_header(bytes, rows * cols, header) || header.count != count) return Status::kMalformed;
  const Workspace w = lay_out(workspace, rows, cols);
  if (!read_table(bytes, kRowSymbols, w.row_slots) || !read_table(bytes, kColSymbols, w.col_slots) ||
      !read_table(bytes, kStepSymbols, w.step_slots)) {
    return Status::kMalformed;
  }
  if (!read_margins(bytes.take(header.margins), header, rows, cols, w)) return Status::kMalformed;
  Streams streams{};
  if (!open_streams(bytes, header, streams)) return Status::kMalformed;
  const std::uint32_t used = sort_columns(w.col_class, cols, w.order);
  for (std::uint32_t g = 0; g * 8 < used; ++g) {
    w.groups[g] = static_cast<std::int8_t>(group_logit(w.col_class, w.order + g * 8, used - g * 8 < 8 ? used - g * 8 : 8));
  }
  std::memset(bitmap, 0, static_cast<std::size_t>((rows * cols + 7) / 8));
  std::memset(w.row_mask, 0, static_cast<std::size_t>((cols + 63) / 64 * 8));
  Target target{bitmap, q, count, 0};
  for (std::uint64_t i = 0; i < rows; ++i) {
    if (w.row_class[i] == 0) continue;
    if (!read_row(streams, w, w.row_class[i], used) || !emit_row(w, i * cols, cols, target)) return Status::kMalformed;
  }
  const bool ended = streams.mask.whole() && streams.steps.whole() && streams.mask_escape == streams.mask_escape_end &&
                     streams.step_escape == streams.step_escape_end;
  return ended && target.written == count ? Status::kOk : Status::kMalformed;
}

}  // namespace edgeedit
