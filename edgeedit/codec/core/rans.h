// Static range asymmetric numeral system (rANS) with 12-bit frequencies: reader, and the tables both sides share.
//
// States are 32 bits wide and kept at 2^16 or more; one 16-bit word at most is read for a symbol.  Symbol number n of a stream belongs
// to state n mod lanes.  A stream is its states (u32, little-endian) and then its words (u16).  A whole stream ends with every state at
// 2^16 and no word left, so a cut or lengthened stream is seen.
#ifndef EDGEEDIT_RANS_H_
#define EDGEEDIT_RANS_H_

#include <cstddef>
#include <cstdint>

#include "class_tables.h"

namespace edgeedit {

constexpr std::uint32_t kTotal = 4096;  // sum of the frequencies of a table
constexpr std::uint32_t kLow = std::uint32_t{1} << 16;
constexpr int kClasses = 33;
constexpr std::uint32_t kMaxLanes = 8;

// One slot of a table: symbol (8 bits), frequency - 1 (12 bits), offset inside the symbol (12 bits).
inline std::uint32_t slot(std::uint32_t symbol, std::uint32_t frequency, std::uint32_t offset) noexcept {
  return symbol | ((frequency - 1) << 8) | (offset << 20);
}

inline std::uint32_t bit_count(std::uint32_t byte) noexcept {
  byte -= (byte >> 1) & 0x55U;
  byte = (byte & 0x33U) + ((byte >> 2) & 0x33U);
  return (byte + (byte >> 4)) & 0x0FU;
}

// Frequency and first slot of a byte in a class; a byte above the limit is coded as the escape.
struct Place {
  std::uint16_t start;
  std::uint16_t frequency;
};

// The 33 mask tables, made once from the frozen integers and constant afterwards.
struct MaskTables {
  std::uint32_t slots[kClasses][kTotal];
  Place places[kClasses][256];
};
const MaskTables& mask_tables() noexcept;

class RansReader {
 public:
  // `data` holds 4 * lanes bytes of states and then words; false when that is impossible.
  bool open(const std::uint8_t* data, std::uint64_t size, std::uint32_t lanes) noexcept {
    if (size < std::uint64_t{4} * lanes || (size - std::uint64_t{4} * lanes) % 2 != 0) return false;
    lanes_ = lanes;
    for (std::uint32_t i = 0; i < lanes; ++i) {
      const std::uint8_t* at = data + 4 * i;
      states_[i] = static_cast<std::uint32_t>(at[0]) | static_cast<std::uint32_t>(at[1]) << 8 | static_cast<std::uint32_t>(at[2]) << 16 |
                   static_cast<std::uint32_t>(at[3]) << 24;
      if (states_[i] < kLow) return false;
    }
    next_ = data + 4 * lanes;
    end_ = data + size;
    return true;
  }

  // The next symbol by a table of 4096 slots.  Behind the end of the words zeros are read and `whole` gives false.
  std::uint32_t get(const std::uint32_t* slots) noexcept {
    std::uint32_t& state = states_[number_++ & (lanes_ - 1)];
    const std::uint32_t found = slots[state & (kTotal - 1)];
    state = (((found >> 8) & 0xFFFU) + 1) * (state >> 12) + (found >> 20);
    if (state < kLow) {
      std::uint32_t word = 0;
      if (next_ != end_) {
        word = static_cast<std::uint32_t>(next_[0]) | static_cast<std::uint32_t>(next_[1]) << 8;
        next_ += 2;
      } else {
        short_ = true;
      }
      state = state << 16 | word;
    }
    return found & 0xFFU;
  }

  // `count` symbols, the n-th by table `table(n)`: the same as that many calls of `get`.  Eight lanes are kept in registers, without a
  // branch on data, so that their chains of multiply and load overlap; one vector of eight would wait for its slowest lane each time.
  template <class Table>
  void get_many(const Table& table, std::uint64_t count, std::uint8_t* __restrict out) noexcept {
    std::uint64_t n = 0;
    if (lanes_ == kMaxLanes) {
      for (; n < count && number_ % kMaxLanes != 0; ++n) out[n] = static_cast<std::uint8_t>(get(table(n)));
      n += eights(table, n, count, out);
    }
    for (; n < count; ++n) out[n] = static_cast<std::uint8_t>(get(table(n)));
  }

  // True when exactly the whole stream was read.
  bool whole() const noexcept {
    bool fine = !short_ && next_ == end_;
    for (std::uint32_t i = 0; i < lanes_; ++i) fine &= states_[i] == kLow;
    return fine;
  }

 private:
  // Symbols first.. in whole eights, while the words that eight symbols can need are there; returns how many it read.
  template <class Table>
  std::uint64_t eights(const Table& table, std::uint64_t first, std::uint64_t count, std::uint8_t* __restrict out) noexcept {
    std::uint32_t s0 = states_[0], s1 = states_[1], s2 = states_[2], s3 = states_[3];
    std::uint32_t s4 = states_[4], s5 = states_[5], s6 = states_[6], s7 = states_[7];
    const std::uint8_t* next = next_;
    const auto step = [&next](std::uint32_t& state, const std::uint32_t* slots) noexcept {
      const std::uint32_t found = slots[state & (kTotal - 1)];
      const std::uint32_t moved = (((found >> 8) & 0xFFFU) + 1) * (state >> 12) + (found >> 20);
      const std::uint32_t word = static_cast<std::uint32_t>(next[0]) | static_cast<std::uint32_t>(next[1]) << 8;
      const std::uint32_t low = moved < kLow ? 1U : 0U;
      state = low != 0 ? moved << 16 | word : moved;
      next += 2 * low;
      return static_cast<std::uint8_t>(found);
    };
    std::uint64_t n = first;
    for (; count - n >= kMaxLanes && end_ - next >= 2 * static_cast<std::ptrdiff_t>(kMaxLanes); n += kMaxLanes) {
      out[n] = step(s0, table(n));
      out[n + 1] = step(s1, table(n + 1));
      out[n + 2] = step(s2, table(n + 2));
      out[n + 3] = step(s3, table(n + 3));
      out[n + 4] = step(s4, table(n + 4));
      out[n + 5] = step(s5, table(n + 5));
      out[n + 6] = step(s6, table(n + 6));
      out[n + 7] = step(s7, table(n + 7));
    }
    const std::uint32_t states[kMaxLanes] = {s0, s1, s2, s3, s4, s5, s6, s7};
    for (std::uint32_t i = 0; i < kMaxLanes; ++i) states_[i] = states[i];
    next_ = next;
    return n - first;
  }

  std::uint32_t states_[kMaxLanes] = {};
  std::uint32_t lanes_ = 1;
  std::uint64_t number_ = 0;
  const std::uint8_t* next_ = nullptr;
  const std::uint8_t* end_ = nullptr;
  bool short_ = false;
};

}  // namespace edgeedit

#endif  // EDGEEDIT_RANS_H_
