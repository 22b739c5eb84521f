#include "rans.h"

#include "kernels.h"
#include "scalar.h"
#include "wide.h"

namespace edgeedit {
namespace {

std::uint32_t long_state(const std::uint8_t* at) noexcept {
  return static_cast<std::uint32_t>(at[0]) | static_cast<std::uint32_t>(at[1]) << 8 | static_cast<std::uint32_t>(at[2]) << 16 |
         static_cast<std::uint32_t>(at[3]) << 24;
}

std::uint32_t short_word(const std::uint8_t* at) noexcept { return static_cast<std::uint32_t>(at[0]) | static_cast<std::uint32_t>(at[1]) << 8; }

MaskTables make_tables() noexcept {
  MaskTables tables{};
  std::uint32_t next = 0;
  for (int m = 0; m < kClasses; ++m) {
    const ClassTable& row = kClassTables[m];
    tables.reach[m] = (row.frequency[0] - 1U) | next << 12;
    std::uint32_t start = 0;
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
      const std::uint32_t bits = bit_count(byte);
      const std::uint32_t frequency = bits <= row.limit ? row.frequency[bits] : byte == 255 ? row.escape : 0;
      tables.places[m][byte] = {static_cast<std::uint16_t>(start), static_cast<std::uint16_t>(frequency)};
      for (std::uint32_t i = 0; i < (byte == 0 ? 1 : frequency); ++i) tables.slots[next++] = slot(byte, frequency, start);
      start += frequency;
    }
  }
  return tables;
}

// Eight chains of multiply and load that overlap, without a branch on data: a word is read where the state fell below 2^16, which is told by arithmetic,
// because compilers make branches of comparisons.
template <bool kReach>
std::uint64_t eights_body(Lanes& lanes, const std::uint32_t* slots, const std::uint32_t* reach, std::uint64_t count, std::uint8_t* out) noexcept {
  std::uint32_t states[kMaxLanes];
  for (std::uint32_t i = 0; i < kMaxLanes; ++i) states[i] = lanes.states[i];
  const std::uint8_t* next = lanes.next;
  std::uint64_t n = 0;
  for (; count - n >= kMaxLanes && lanes.end - next >= 2 * static_cast<std::ptrdiff_t>(kMaxLanes); n += kMaxLanes) {
    for (std::uint32_t i = 0; i < kMaxLanes; ++i) {
      const std::uint32_t at = states[i] & (kTotal - 1);
      const std::uint32_t found = slots[kReach ? place_of(reach[n + i], at) : at];
      const std::uint32_t now = moved(states[i], found);
      const std::uint32_t low = ((now >> 16) - 1U) >> 31;
      states[i] = now ^ ((now ^ (now << 16 | short_word(next))) & (0U - low));
      next += 2 * low;
      out[n + i] = static_cast<std::uint8_t>(found);
    }
  }
  for (std::uint32_t i = 0; i < kMaxLanes; ++i) lanes.states[i] = states[i];
  lanes.next = next;
  return n;
}

#if defined(EDGEEDIT_AVX2)

// For each set of lanes that read a word, which word each lane takes: the number of reading lanes before it.
struct Spread {
  std::uint64_t words[256];
};

constexpr Spread make_spread() noexcept {
  Spread spread{};
  for (std::uint32_t set = 0; set < 256; ++set) {
    std::uint64_t before = 0;
    for (std::uint32_t i = 0; i < 8; ++i) {
      spread.words[set] |= before << (8 * i);
      before += set >> i & 1U;
    }
  }
  return spread;
}

constexpr Spread kSpread = make_spread();

template <class T>
const __m128i* vector_at(const T* data) noexcept {
  return static_cast<const __m128i*>(static_cast<const void*>(data));
}

template <bool kReach>
EDGEEDIT_WIDE std::uint64_t eights_avx2(Lanes& lanes, const std::uint32_t* slots, const std::uint32_t* reach, std::uint64_t count,
                                        std::uint8_t* out) noexcept {
  const __m256i twelve = _mm256_set1_epi32(static_cast<int>(kTotal - 1)), zero = _mm256_setzero_si256(), one = _mm256_set1_epi32(1);
  const __m256i bytes = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1,
                                         -1, -1, -1);
  const auto* const table = static_cast<const int*>(static_cast<const void*>(slots));
  auto* const states = static_cast<__m256i*>(static_cast<void*>(lanes.states));
  __m256i state = _mm256_loadu_si256(states);
  const std::uint8_t* next = lanes.next;
  std::uint64_t n = 0;
  for (; count - n >= kMaxLanes && lanes.end - next >= 2 * static_cast<std::ptrdiff_t>(kMaxLanes); n += kMaxLanes) {
    const __m256i at = _mm256_and_si256(state, twelve);
    __m256i place = at;
    if (kReach) {
      const __m256i reaches = _mm256_loadu_si256(static_cast<const __m256i*>(static_cast<const void*>(reach + n)));
      const __m256i behind = _mm256_max_epi32(_mm256_sub_epi32(at, _mm256_and_si256(reaches, twelve)), zero);
      place = _mm256_add_epi32(behind, _mm256_srli_epi32(reaches, 12));
    }
    const __m256i found = _mm256_i32gather_epi32(table, place, 4);
    const __m256i frequency = _mm256_add_epi32(_mm256_and_si256(_mm256_srli_epi32(found, 8), twelve), one);
    const __m256i offset = _mm256_sub_epi32(at, _mm256_srli_epi32(found, 20));
    const __m256i now = _mm256_add_epi32(_mm256_mullo_epi32(frequency, _mm256_srli_epi32(state, 12)), offset);
    const __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(now, 16), zero);
    const auto set = static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(low)));
    const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(vector_at(next)));
    const __m256i taken = _mm256_permutevar8x32_epi32(words, _mm256_cvtepu8_epi32(_mm_loadl_epi64(vector_at(&kSpread.words[set]))));
    state = _mm256_blendv_epi8(now, _mm256_or_si256(_mm256_slli_epi32(now, 16), taken), low);
    next += 2 * _mm_popcnt_u32(set);
    const __m256i symbols = _mm256_shuffle_epi8(found, bytes);
    const __m128i eight = _mm_unpacklo_epi32(_mm256_castsi256_si128(symbols), _mm256_extracti128_si256(symbols, 1));
    _mm_storel_epi64(static_cast<__m128i*>(static_cast<void*>(out + n)), eight);
  }
  _mm256_storeu_si256(states, state);
  lanes.next = next;
  return n;
}

#endif

}  // namespace

const MaskTables& mask_tables() noexcept {
  static const MaskTables tables = make_tables();
  return tables;
}

std::uint64_t eights_scalar(Lanes& lanes, const std::uint32_t* slots, const std::uint32_t* reach, std::uint64_t count, std::uint8_t* out) noexcept {
  return reach == nullptr ? eights_body<false>(lanes, slots, reach, count, out) : eights_body<true>(lanes, slots, reach, count, out);
}

// NEON has no gather, so there the scalar form is the wide one.
std::uint64_t eights_wide(Lanes& lanes, const std::uint32_t* slots, const std::uint32_t* reach, std::uint64_t count, std::uint8_t* out) noexcept {
#if defined(EDGEEDIT_AVX2)
  return reach == nullptr ? eights_avx2<false>(lanes, slots, reach, count, out) : eights_avx2<true>(lanes, slots, reach, count, out);
#else
  return eights_scalar(lanes, slots, reach, count, out);
#endif
}

bool RansReader::open(const std::uint8_t* data, std::uint64_t size, std::uint32_t lanes) noexcept {
  if (size < std::uint64_t{4} * lanes || (size - std::uint64_t{4} * lanes) % 2 != 0) return false;
  lanes_ = lanes;
  for (std::uint32_t i = 0; i < lanes; ++i) {
    states_[i] = long_state(data + 4 * i);
    if (states_[i] < kLow) return false;
  }
  next_ = data + 4 * lanes;
  end_ = data + size;
  return true;
}

std::uint8_t RansReader::get(const std::uint32_t* slots, std::uint32_t reach) noexcept {
  std::uint32_t& state = states_[turn_];
  turn_ = (turn_ + 1) & (lanes_ - 1);
  const std::uint32_t found = slots[place_of(reach, state & (kTotal - 1))];
  state = moved(state, found);
  if (state < kLow) {
    std::uint32_t word = 0;
    if (next_ != end_) {
      word = short_word(next_);
      next_ += 2;
    } else {
      short_ = true;
    }
    state = state << 16 | word;
  }
  return static_cast<std::uint8_t>(found);
}

std::uint64_t RansReader::get_eights(const std::uint32_t* slots, const std::uint32_t* reach, std::uint64_t count, std::uint8_t* out) noexcept {
  Lanes lanes{{}, next_, end_};
  for (std::uint32_t i = 0; i < kMaxLanes; ++i) lanes.states[i] = states_[(turn_ + i) % kMaxLanes];
  const std::uint64_t read = kernels().eights(lanes, slots, reach, count, out);
  for (std::uint32_t i = 0; i < kMaxLanes; ++i) states_[(turn_ + i) % kMaxLanes] = lanes.states[i];
  next_ = lanes.next;
  return read;
}

void RansReader::get_many(const std::uint32_t* slots, const std::uint32_t* reach, std::uint64_t count, std::uint8_t* out) noexcept {
  std::uint64_t n = lanes_ == kMaxLanes ? get_eights(slots, reach, count, out) : 0;
  for (; n < count; ++n) out[n] = get(slots, reach == nullptr ? 0U : reach[n]);
}

bool RansReader::whole() const noexcept {
  bool fine = !short_ && next_ == end_;
  for (std::uint32_t i = 0; i < lanes_; ++i) fine &= states_[i] == kLow;
  return fine;
}

}  // namespace edgeedit
