// The writing side of density.h: runs on the server only, so it may allocate; never throws.
#include <cstring>
#include <memory>
#include <new>

#include "density.h"
#include "density_layout.h"

namespace edgeedit {
namespace {

template <class T>
std::unique_ptr<T[]> room(std::uint64_t count) noexcept {
  return std::unique_ptr<T[]>(new (std::nothrow) T[count == 0 ? 1 : count]);
}

// Writes forward into a fixed range; `fine` turns false when it is full.
struct Writer {
  std::uint8_t* next;
  std::uint64_t left;
  bool fine = true;
  void bytes(const std::uint8_t* data, std::uint64_t size) noexcept {
    if (size > left) {
      fine = false;
      return;
    }
    if (size != 0) std::memcpy(next, data, static_cast<std::size_t>(size));
    next += size;
    left -= size;
  }
  void byte(std::uint32_t value) noexcept {
    const std::uint8_t one = static_cast<std::uint8_t>(value);
    bytes(&one, 1);
  }
  void word(std::uint32_t value) noexcept {
    for (int shift = 0; shift < 32; shift += 8) byte(value >> shift);
  }
};

// Scales counts to frequencies that sum to 4096, each symbol that occurs getting at least 1.
void normalise(const std::uint64_t* counts, std::uint32_t symbols, std::uint32_t* frequencies) noexcept {
  std::uint64_t total = 0;
  for (std::uint32_t s = 0; s < symbols; ++s) total += counts[s];
  std::uint32_t sum = 0;
  for (std::uint32_t s = 0; s < symbols; ++s) {
    frequencies[s] = 0;
    if (counts[s] == 0) continue;
    const std::uint64_t scaled = (counts[s] * kTotal + total / 2) / total;
    frequencies[s] = scaled == 0 ? 1 : static_cast<std::uint32_t>(scaled);
    sum += frequencies[s];
  }
  // What rounding left over or took too much goes, one by one, to or from the largest: there it costs least.
  while (sum != kTotal) {
    std::uint32_t largest = 0;
    for (std::uint32_t s = 1; s < symbols; ++s) largest = frequencies[s] > frequencies[largest] ? s : largest;
    frequencies[largest] += sum < kTotal ? 1U : static_cast<std::uint32_t>(-1);
    sum += sum < kTotal ? 1U : static_cast<std::uint32_t>(-1);
  }
}

struct Table {
  std::uint32_t frequencies[kRowSymbols];
  Place places[kRowSymbols];
};

Table make_table(const std::uint64_t* counts, std::uint32_t symbols) noexcept {
  Table table{};
  normalise(counts, symbols, table.frequencies);
  std::uint32_t start = 0;
  for (std::uint32_t s = 0; s < symbols; ++s) {
    table.places[s] = {static_cast<std::uint16_t>(start), static_cast<std::uint16_t>(table.frequencies[s])};
    start += table.frequencies[s];
  }
  return table;
}

void write_table(Writer& writer, const Table& table, std::uint32_t symbols) noexcept {
  std::uint32_t lowest = 0, highest = symbols - 1;
  while (lowest < highest && table.frequencies[lowest] == 0) ++lowest;
  while (highest > lowest && table.frequencies[highest] == 0) --highest;
  writer.byte(lowest);
  writer.byte(highest);
  if (lowest == highest) return;
  for (std::uint32_t s = lowest; s <= highest; s += 2) {
    const std::uint32_t first = table.frequencies[s];
    const std::uint32_t second = s < highest ? table.frequencies[s + 1] : 0;
    writer.byte(first);
    writer.byte(first >> 8 | second << 4);
    if (s < highest) writer.byte(second >> 4);
  }
}

// Codes `places` backwards into words; returns their number.  `words` has room for one word a symbol.
std::uint64_t code(const Place* places, std::uint64_t count, std::uint32_t lanes, std::uint32_t* states, std::uint16_t* words) noexcept {
  for (std::uint32_t i = 0; i < lanes; ++i) states[i] = kLow;
  std::uint64_t written = 0;
  for (std::uint64_t n = count; n-- > 0;) {
    std::uint32_t& state = states[n & (lanes - 1)];
    const std::uint32_t frequency = places[n].frequency;
    if (state >= static_cast<std::uint64_t>(frequency) << 20) {
      words[written++] = static_cast<std::uint16_t>(state);
      state >>= 16;
    }
    state = (state / frequency) << 12 | (state % frequency + places[n].start);
  }
  return written;
}

// Writes a whole stream and returns its length in bytes.
std::uint64_t write_stream(Writer& writer, const Place* places, std::uint64_t count, std::uint32_t lanes, std::uint16_t* words) noexcept {
  std::uint32_t states[kMaxLanes];
  const std::uint64_t written = code(places, count, lanes, states, words);
  for (std::uint32_t i = 0; i < lanes; ++i) writer.word(states[i]);
  for (std::uint64_t n = written; n-- > 0;) {
    writer.byte(words[n]);
    writer.byte(static_cast<std::uint32_t>(words[n]) >> 8);
  }
  return 4 * lanes + 2 * written;
}

std::uint32_t step_symbol(int q) noexcept {
  const std::uint32_t size = static_cast<std::uint32_t>(q < 0 ? -q : q);
  const std::uint32_t capped = size > kSmallSteps ? kSmallSteps + 1 : size;
  return 2 * (capped - 1) + (q < 0 ? 1U : 0U);
}

std::uint32_t lanes_for(std::uint64_t symbols) noexcept { return symbols < 16384 ? 1 : kMaxLanes; }

struct Entries {
  const std::int64_t* index;
  const std::int16_t* q;
  std::uint64_t count;
};

bool legal(const Entries& entries, std::uint64_t rows, std::uint64_t cols, const std::uint8_t* row_class, const std::uint8_t* col_class) noexcept {
  for (std::uint64_t i = 0; i < rows; ++i) {
    if (row_class[i] >= kRowSymbols) return false;
  }
  for (std::uint64_t j = 0; j < cols; ++j) {
    if (col_class[j] >= kColSymbols) return false;
  }
  std::int64_t last = -1;
  for (std::uint64_t n = 0; n < entries.count; ++n) {
    const std::int64_t at = entries.index[n];
    const int q = entries.q[n];
    if (at <= last || static_cast<std::uint64_t>(at) >= rows * cols || q == 0 || q > kMaxSquashStep || q < -kMaxSquashStep) return false;
    if (row_class[static_cast<std::uint64_t>(at) / cols] == 0 || col_class[static_cast<std::uint64_t>(at) % cols] == 0) return false;
    last = at;
  }
  return true;
}

// Symbols of mask and steps in the decoder's order.
struct Symbols {
  std::unique_ptr<Place[]> mask;
  std::unique_ptr<std::uint8_t[]> mask_escapes, steps, step_escapes;
  std::uint64_t mask_count = 0, mask_escape_count = 0, step_count = 0, step_escape_count = 0;
};

void add_group(Symbols& symbols, int logit, std::uint32_t bits, std::uint32_t valid) noexcept {
  const int m = logit < 0 ? -logit : logit;
  const std::uint32_t byte = logit > 0 ? bits ^ valid : bits;
  const bool escaped = bit_count(byte) > kClassTables[m].limit;
  if (escaped) symbols.mask_escapes[symbols.mask_escape_count++] = static_cast<std::uint8_t>(byte);
  symbols.mask[symbols.mask_count++] = mask_tables().places[m][escaped ? kEscape : byte];
}

void add_step(Symbols& symbols, int q) noexcept {
  const int size = q < 0 ? -q : q;
  if (size > kSmallSteps) symbols.step_escapes[symbols.step_escape_count++] = static_cast<std::uint8_t>(size - kSmallSteps - 1);
  symbols.steps[symbols.step_count++] = static_cast<std::uint8_t>(step_symbol(q));
}

struct Columns {
  std::unique_ptr<std::uint32_t[]> order;
  std::unique_ptr<int[]> groups;
  std::uint32_t used = 0;
};

void collect(const Entries& entries, std::uint64_t rows, std::uint64_t cols, const std::uint8_t* row_class, const Columns& columns,
             std::int16_t* line, Symbols& symbols) noexcept {
  std::uint64_t n = 0;
  for (std::uint64_t i = 0; i < rows; ++i) {
    if (row_class[i] == 0) continue;
    std::memset(line, 0, static_cast<std::size_t>(cols * sizeof(*line)));
    for (; n < entries.count && static_cast<std::uint64_t>(entries.index[n]) < (i + 1) * cols; ++n) {
      line[static_cast<std::uint64_t>(entries.index[n]) - i * cols] = entries.q[n];
    }
    for (std::uint32_t g = 0; g * 8 < columns.used; ++g) {
      const std::uint32_t length = columns.used - g * 8 < 8 ? columns.used - g * 8 : 8;
      std::uint32_t bits = 0;
      for (std::uint32_t k = 0; k < length; ++k) {
        const std::int16_t q = line[columns.order[g * 8 + k]];
        if (q == 0) continue;
        bits |= 1U << k;
        add_step(symbols, q);
      }
      add_group(symbols, entry_logit(row_class[i], columns.groups[g]), bits, (1U << length) - 1U);
    }
  }
}

void put_word(std::uint8_t* at, std::uint64_t value) noexcept {
  for (int i = 0; i < 4; ++i) at[i] = static_cast<std::uint8_t>(value >> (8 * i));
}

// Header, tables and streams; the lengths are put into the header afterwards.
bool write_all(Writer& writer, const Symbols& symbols, std::uint64_t rows, std::uint64_t cols, const std::uint8_t* row_class,
               const std::uint8_t* col_class, std::uint16_t* words, Place* scratch) noexcept {
  std::uint8_t header[kHeaderBytes] = {};
  std::uint8_t* const start = writer.next;
  header[0] = static_cast<std::uint8_t>(lanes_for(symbols.mask_count));
  header[1] = static_cast<std::uint8_t>(lanes_for(symbols.step_count));
  writer.bytes(header, kHeaderBytes);
  std::uint64_t counts[3][kRowSymbols] = {};
  for (std::uint64_t i = 0; i < rows; ++i) ++counts[0][row_class[i]];
  for (std::uint64_t j = 0; j < cols; ++j) ++counts[1][col_class[j]];
  for (std::uint64_t n = 0; n < symbols.step_count; ++n) ++counts[2][symbols.steps[n]];
  const Table row = make_table(counts[0], kRowSymbols), col = make_table(counts[1], kColSymbols), step = make_table(counts[2], kStepSymbols);
  write_table(writer, row, kRowSymbols);
  write_table(writer, col, kColSymbols);
  write_table(writer, step, kStepSymbols);
  for (std::uint64_t i = 0; i < rows; ++i) scratch[i] = row.places[row_class[i]];
  for (std::uint64_t j = 0; j < cols; ++j) scratch[rows + j] = col.places[col_class[j]];
  const std::uint64_t margins = write_stream(writer, scratch, rows + cols, 1, words);
  const std::uint64_t mask = write_stream(writer, symbols.mask.get(), symbols.mask_count, header[0], words);
  writer.bytes(symbols.mask_escapes.get(), symbols.mask_escape_count);
  for (std::uint64_t n = 0; n < symbols.step_count; ++n) scratch[n] = step.places[symbols.steps[n]];
  const std::uint64_t steps = write_stream(writer, scratch, symbols.step_count, header[1], words);
  writer.bytes(symbols.step_escapes.get(), symbols.step_escape_count);
  if (!writer.fine) return false;
  const std::uint64_t lengths[6] = {symbols.step_count, margins, mask, symbols.mask_escape_count, steps, symbols.step_escape_count};
  for (int i = 0; i < 6; ++i) put_word(start + 2 + 4 * i, lengths[i]);
  return true;
}

}  // namespace

Status density_encode(const std::int64_t* index, const std::int16_t* q, std::uint64_t count, std::uint64_t rows, std::uint64_t cols,
                      const std::uint8_t* row_class, const std::uint8_t* col_class, std::uint8_t* out, std::uint64_t capacity,
                      std::uint64_t* size) noexcept {
  if (index == nullptr || q == nullptr || row_class == nullptr || col_class == nullptr || out == nullptr || size == nullptr) return Status::kBadArgument;
  if (rows == 0 || cols == 0 || rows > kMaxElements || cols > kMaxElements / rows || count > rows * cols) return Status::kTooLarge;
  const Entries entries{index, q, count};
  if (count == 0 || !legal(entries, rows, cols, row_class, col_class)) return Status::kBadArgument;
  const std::uint64_t bytes = rows * ((cols + 7) / 8);
  const std::uint64_t most = (bytes > count ? bytes : count) > rows + cols ? (bytes > count ? bytes : count) : rows + cols;
  Columns columns{room<std::uint32_t>(cols), room<int>((cols + 7) / 8)};
  Symbols symbols;
  symbols.mask = room<Place>(bytes);
  symbols.mask_escapes = room<std::uint8_t>(bytes);
  symbols.steps = room<std::uint8_t>(count);
  symbols.step_escapes = room<std::uint8_t>(count);
  const auto words = room<std::uint16_t>(most);
  const auto scratch = room<Place>(most);
  const auto line = room<std::int16_t>(cols);
  if (!columns.order || !columns.groups || !symbols.mask || !symbols.mask_escapes || !symbols.steps || !symbols.step_escapes || !words || !scratch || !line) {
    return Status::kTooLarge;
  }
  columns.used = sort_columns(col_class, cols, columns.order.get());
  for (std::uint32_t g = 0; g * 8 < columns.used; ++g) {
    columns.groups[g] = group_logit(col_class, columns.order.get() + g * 8, columns.used - g * 8 < 8 ? columns.used - g * 8 : 8);
  }
  collect(entries, rows, cols, row_class, columns, line.get(), symbols);
  Writer writer{out, capacity};
  if (!write_all(writer, symbols, rows, cols, row_class, col_class, words.get(), scratch.get())) return Status::kTooLarge;
  *size = capacity - writer.left;
  return Status::kOk;
}

}  // namespace edgeedit
