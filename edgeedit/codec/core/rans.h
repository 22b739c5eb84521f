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

// One slot of a table: symbol (8 bits), frequency - 1 (12 bits), first slot of the symbol (12 bits).
inline std::uint32_t slot(std::uint32_t symbol, std::uint32_t frequency, std::uint32_t start) noexcept {
  return symbol | ((frequency - 1) << 8) | (start << 20);
}

// Tables lie in one array of slots.  A table's reach says where: its position from bit 12 up and, below, how many of its first slots are held as one
// (their number less one), as they are all of one symbol.  Reach 0 is a table at the start of which nothing is left out.
inline std::uint32_t place_of(std::uint32_t reach, std::uint32_t at) noexcept {
  const std::uint32_t skipped = reach & (kTotal - 1);
  return (reach >> 12) + (at > skipped ? at - skipped : 0U);
}

// The state after a symbol, before a word is read.
inline std::uint32_t moved(std::uint32_t state, std::uint32_t found) noexcept {
  return (((found >> 8) & 0xFFFU) + 1) * (state >> 12) + (state & (kTotal - 1)) - (found >> 20);
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

constexpr std::size_t mask_slots() noexcept {
  std::size_t sum = 0;
  for (int m = 0; m < kClasses; ++m) sum += kTotal - kClassTables[m].frequency[0] + std::size_t{1};
  return sum;
}

// The 33 mask tables, made once from the frozen integers and constant afterwards.  Byte 0 has the first slots of each, in most nearly all, and is
// held once: whole tables would be 528 KiB, more than the second cache of many processors; so they are 210, and those of one matrix less.
struct MaskTables {
  std::uint32_t slots[mask_slots()];
  std::uint32_t reach[kClasses];
  Place places[kClasses][256];  // for the encoder
};
const MaskTables& mask_tables() noexcept;

// The states of a stream of eight lanes in the order of their turns, and the words that are left.
struct Lanes {
  std::uint32_t states[kMaxLanes];
  const std::uint8_t* next;
  const std::uint8_t* end;
};

// Reads symbols in whole eights, at most `count`, while the words that eight symbols can need are there, and returns how many it read.  Symbol n is
// read by the table of reach[n]; without `reach` all by the one at the start of `slots`.
using Eights = std::uint64_t (*)(Lanes& lanes, const std::uint32_t* slots, const std::uint32_t* reach, std::uint64_t count,
                                 std::uint8_t* out) noexcept;
std::uint64_t eights_scalar(Lanes& lanes, const std::uint32_t* slots, const std::uint32_t* reach, std::uint64_t count, std::uint8_t* out) noexcept;
std::uint64_t eights_wide(Lanes& lanes, const std::uint32_t* slots, const std::uint32_t* reach, std::uint64_t count, std::uint8_t* out) noexcept;

class RansReader {
 public:
  // `data` holds 4 * lanes bytes of states and then words; false when that is impossible.
  bool open(const std::uint8_t* data, std::uint64_t size, std::uint32_t lanes) noexcept;

  // `count` symbols, the n-th by the table of reach[n], or all by the one at the start of `slots`.  Behind the end of the words zeros are read
  // and `whole` gives false.
  void get_many(const std::uint32_t* slots, const std::uint32_t* reach, std::uint64_t count, std::uint8_t* out) noexcept;

  // True when exactly the whole stream was read.
  bool whole() const noexcept;

 private:
  std::uint8_t get(const std::uint32_t* slots, std::uint32_t reach) noexcept;
  std::uint64_t get_eights(const std::uint32_t* slots, const std::uint32_t* reach, std::uint64_t count, std::uint8_t* out) noexcept;

  std::uint32_t states_[kMaxLanes] = {};
  std::uint32_t lanes_ = 1;
  std::uint32_t turn_ = 0;  // the lane of the next symbol
  const std::uint8_t* next_ = nullptr;
  const std::uint8_t* end_ = nullptr;
  bool short_ = false;
};

}  // namespace edgeedit

#endif  // EDGEEDIT_RANS_H_
