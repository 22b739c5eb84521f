#include "kernels.h"

#include <atomic>
#include <cstring>

#include "scalar.h"
#include "wide.h"

namespace edgeedit {
namespace {

// The rule itself.  These bodies are inlined into each form, where the compiler widens them as far as the form's instructions allow.
template <class Element>
EDGEEDIT_INLINE bool add_entries_body(const void* old, void* out, const std::uint32_t* columns, const std::int16_t* q, std::uint64_t length,
                                      float step) noexcept {
  const auto* const from = static_cast<const typename Element::Stored*>(old);
  auto* const to = static_cast<typename Element::Stored*>(out);
  bool fine = true;
  for (std::uint64_t n = 0; n < length; ++n) {
    const auto made = Element::store(Element::load(from[columns[n]]) + step * static_cast<float>(q[n]));
    to[columns[n]] = made;
    fine &= Element::finite(made);
  }
  return fine;
}

template <class Element>
EDGEEDIT_INLINE bool add_sums_body(const void* old, void* out, std::uint64_t length, const std::int16_t* q, float step, const std::int32_t* sums,
                                   float scale) noexcept {
  const auto* const __restrict from = static_cast<const typename Element::Stored*>(old);
  auto* const __restrict to = static_cast<typename Element::Stored*>(out);
  bool fine = true;
  for (std::uint64_t j = 0; j < length; ++j) {
    float value = Element::load(from[j]);
    // Where q is 0 this adds +0, which changes -0 alone; the sum that follows is never -0 and would change it too.
    if (q != nullptr) value = value + step * static_cast<float>(q[j]);
    const auto made = Element::store(value + scale * static_cast<float>(sums[j]));
    to[j] = made;
    fine &= Element::finite(made);
  }
  return fine;
}

EDGEEDIT_INLINE void products_body(const std::int8_t* a, const std::int8_t* b, std::uint64_t rank, std::uint64_t stride, std::uint64_t length,
                                   std::int32_t* __restrict sums) noexcept {
  constexpr std::uint64_t kBlock = 64;  // few enough to stay in registers where they are wide
  for (std::uint64_t first = 0; first < length; first += kBlock) {
    std::int32_t block[kBlock] = {};
    const std::uint64_t size = length - first < kBlock ? length - first : kBlock;
    for (std::uint64_t k = 0; k < rank; ++k) {
      const std::int32_t factor = a[k];
      const std::int8_t* const line = b + k * stride + first;
      if (size == kBlock) {
        for (std::uint64_t j = 0; j < kBlock; ++j) block[j] += factor * line[j];
      } else {
        for (std::uint64_t j = 0; j < size; ++j) block[j] += factor * line[j];
      }
    }
    std::memcpy(sums + first, block, size * sizeof(*sums));
  }
}

template <class Element>
bool add_entries_scalar(const void* old, void* out, const std::uint32_t* columns, const std::int16_t* q, std::uint64_t length, float step) noexcept {
  return add_entries_body<Element>(old, out, columns, q, length, step);
}

template <class Element>
bool add_sums_scalar(const void* old, void* out, std::uint64_t length, const std::int16_t* q, float step, const std::int32_t* sums,
                     float scale) noexcept {
  return add_sums_body<Element>(old, out, length, q, step, sums, scale);
}

void products_scalar(const std::int8_t* a, const std::int8_t* b, std::uint64_t rank, std::uint64_t stride, std::uint64_t length,
                     std::int32_t* sums) noexcept {
  for (std::uint64_t j = 0; j < length; ++j) {
    std::int32_t sum = 0;
    for (std::uint64_t k = 0; k < rank; ++k) sum += a[k] * b[k * stride + j];
    sums[j] = sum;
  }
}

std::uint64_t list_bits_scalar(const std::uint32_t* order, const std::uint8_t* bits, std::uint64_t groups, std::uint32_t* listed) noexcept {
  std::uint32_t* next = listed;
  for (std::uint64_t g = 0; g < groups; g += 8, order += 64) {
    std::uint64_t left = 0;
    for (int i = 7; i >= 0; --i) left = left << 8 | bits[g + static_cast<std::uint64_t>(i)];
    for (; left != 0; left &= left - 1) *next++ = order[lowest_bit(left)];
  }
  return static_cast<std::uint64_t>(next - listed);
}

constexpr Kernels kScalar = {{add_entries_scalar<Single>, add_entries_scalar<Half>, add_entries_scalar<Bfloat16>},
                             {add_sums_scalar<Single>, add_sums_scalar<Half>, add_sums_scalar<Bfloat16>},
                             products_scalar,
                             eights_scalar,
                             list_bits_scalar};

#if defined(EDGEEDIT_AVX2) || defined(EDGEEDIT_NEON)

template <class Element>
EDGEEDIT_WIDE bool add_entries_wide(const void* old, void* out, const std::uint32_t* columns, const std::int16_t* q, std::uint64_t length,
                                    float step) noexcept {
  return add_entries_body<Element>(old, out, columns, q, length, step);
}

template <class Element>
EDGEEDIT_WIDE bool add_sums_wide(const void* old, void* out, std::uint64_t length, const std::int16_t* q, float step, const std::int32_t* sums,
                                 float scale) noexcept {
  return q == nullptr ? add_sums_body<Element>(old, out, length, nullptr, step, sums, scale)
                      : add_sums_body<Element>(old, out, length, q, step, sums, scale);
}

EDGEEDIT_WIDE void products_wide(const std::int8_t* a, const std::int8_t* b, std::uint64_t rank, std::uint64_t stride, std::uint64_t length,
                                 std::int32_t* sums) noexcept {
  products_body(a, b, rank, stride, length, sums);
}

#endif

#if defined(EDGEEDIT_AVX2)

// Eight halves at once by the processor's conversions, which keep subnormals and round to nearest even whatever the control register.
struct Eight {
  EDGEEDIT_WIDE static EDGEEDIT_INLINE __m128i add(__m128i halves, __m256 change) noexcept {
    return _mm256_cvtps_ph(_mm256_add_ps(_mm256_cvtph_ps(halves), change), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // All ones in the lanes that are not finite.
  EDGEEDIT_WIDE static EDGEEDIT_INLINE __m128i wild(__m128i halves) noexcept {
    const __m128i exponent = _mm_set1_epi16(0x7C00);
    return _mm_cmpeq_epi16(_mm_and_si128(halves, exponent), exponent);
  }
  EDGEEDIT_WIDE static EDGEEDIT_INLINE __m256 steps(const std::int16_t* q, __m256 step) noexcept {
    const __m128i eight = _mm_loadu_si128(static_cast<const __m128i*>(static_cast<const void*>(q)));
    return _mm256_mul_ps(step, _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(eight)));
  }
};

// The set bits of every byte, lowest first, one in each byte.
struct Positions {
  std::uint64_t of[256];
};

constexpr Positions make_positions() noexcept {
  Positions positions{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    int found = 0;
    for (std::uint64_t k = 0; k < 8; ++k) {
      if ((byte >> k & 1U) != 0) positions.of[byte] |= k << (8 * found++);
    }
  }
  return positions;
}

constexpr Positions kPositions = make_positions();

// Every group writes eight numbers, of which the next overwrites what was too many; so there is no branch on the bits.
EDGEEDIT_WIDE std::uint64_t list_bits_wide(const std::uint32_t* order, const std::uint8_t* bits, std::uint64_t groups,
                                           std::uint32_t* listed) noexcept {
  std::uint32_t* next = listed;
  for (std::uint64_t g = 0; g < groups; ++g) {
    const __m256i eight = _mm256_loadu_si256(static_cast<const __m256i*>(static_cast<const void*>(order + 8 * g)));
    const __m128i places = _mm_loadl_epi64(static_cast<const __m128i*>(static_cast<const void*>(&kPositions.of[bits[g]])));
    _mm256_storeu_si256(static_cast<__m256i*>(static_cast<void*>(next)), _mm256_permutevar8x32_epi32(eight, _mm256_cvtepu8_epi32(places)));
    next += _mm_popcnt_u32(bits[g]);
  }
  return static_cast<std::uint64_t>(next - listed);
}

// Adds eight entries; the same column may come more than once with the same q.
EDGEEDIT_WIDE EDGEEDIT_INLINE __m128i add_eight(const std::uint16_t* from, std::uint16_t* to, const std::uint32_t* c, const std::int16_t* q,
                                                __m256 step) noexcept {
  __m128i halves = _mm_cvtsi32_si128(from[c[0]]);
  halves = _mm_insert_epi16(halves, from[c[1]], 1);
  halves = _mm_insert_epi16(halves, from[c[2]], 2);
  halves = _mm_insert_epi16(halves, from[c[3]], 3);
  halves = _mm_insert_epi16(halves, from[c[4]], 4);
  halves = _mm_insert_epi16(halves, from[c[5]], 5);
  halves = _mm_insert_epi16(halves, from[c[6]], 6);
  halves = _mm_insert_epi16(halves, from[c[7]], 7);
  const __m128i made = Eight::add(halves, Eight::steps(q, step));
  to[c[0]] = static_cast<std::uint16_t>(_mm_extract_epi16(made, 0));
  to[c[1]] = static_cast<std::uint16_t>(_mm_extract_epi16(made, 1));
  to[c[2]] = static_cast<std::uint16_t>(_mm_extract_epi16(made, 2));
  to[c[3]] = static_cast<std::uint16_t>(_mm_extract_epi16(made, 3));
  to[c[4]] = static_cast<std::uint16_t>(_mm_extract_epi16(made, 4));
  to[c[5]] = static_cast<std::uint16_t>(_mm_extract_epi16(made, 5));
  to[c[6]] = static_cast<std::uint16_t>(_mm_extract_epi16(made, 6));
  to[c[7]] = static_cast<std::uint16_t>(_mm_extract_epi16(made, 7));
  return Eight::wild(made);
}

EDGEEDIT_WIDE bool add_entries_half(const void* old, void* out, const std::uint32_t* columns, const std::int16_t* q, std::uint64_t length,
                                    float step) noexcept {
  const auto* const from = static_cast<const std::uint16_t*>(old);
  auto* const to = static_cast<std::uint16_t*>(out);
  const __m256 wide_step = _mm256_set1_ps(step);
  __m128i wild = _mm_setzero_si128();
  std::uint64_t n = 0;
  for (; n + 8 <= length; n += 8) wild = _mm_or_si128(wild, add_eight(from, to, columns + n, q + n, wide_step));
  if (n < length) {  // the last entry fills the eight up
    std::uint32_t rest[8];
    std::int16_t steps[8];
    for (std::uint64_t k = 0; k < 8; ++k) {
      rest[k] = columns[n + k < length ? n + k : length - 1];
      steps[k] = q[n + k < length ? n + k : length - 1];
    }
    wild = _mm_or_si128(wild, add_eight(from, to, rest, steps, wide_step));
  }
  return _mm_movemask_epi8(wild) == 0;
}

EDGEEDIT_WIDE bool add_sums_half(const void* old, void* out, std::uint64_t length, const std::int16_t* q, float step, const std::int32_t* sums,
                                 float scale) noexcept {
  const auto* const from = static_cast<const std::uint16_t*>(old);
  auto* const to = static_cast<std::uint16_t*>(out);
  const __m256 wide_step = _mm256_set1_ps(step), wide_scale = _mm256_set1_ps(scale);
  __m128i wild = _mm_setzero_si128();
  std::uint64_t j = 0;
  for (; j + 8 <= length; j += 8) {
    __m256 value = _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(static_cast<const void*>(from + j))));
    if (q != nullptr) value = _mm256_add_ps(value, Eight::steps(q + j, wide_step));
    const __m256i whole = _mm256_loadu_si256(static_cast<const __m256i*>(static_cast<const void*>(sums + j)));
    value = _mm256_add_ps(value, _mm256_mul_ps(wide_scale, _mm256_cvtepi32_ps(whole)));
    const __m128i made = _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    wild = _mm_or_si128(wild, Eight::wild(made));
    _mm_storeu_si128(static_cast<__m128i*>(static_cast<void*>(to + j)), made);
  }
  const bool fine = _mm_movemask_epi8(wild) == 0;
  return add_sums_scalar<Half>(from + j, to + j, length - j, q == nullptr ? nullptr : q + j, step, sums + j, scale) && fine;
}

bool offered() noexcept {
  unsigned int a = 0, b = 0, c = 0, d = 0;
  const bool fine = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & (1U << 29)) != 0 && (c & (1U << 23)) != 0;  // F16C, POPCNT
  return fine && __builtin_cpu_supports("avx2");  // asks the system too whether it saves the wide registers
}

#elif defined(EDGEEDIT_NEON)

constexpr auto list_bits_wide = list_bits_scalar;

// Every aarch64 processor converts between half and single precision; FPCR is 0 here, so nothing is flushed.
EDGEEDIT_INLINE float32x4_t wide_steps(int16x4_t q, float step) noexcept { return vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(q)), step); }

EDGEEDIT_INLINE uint16x4_t wild_of(uint16x4_t halves) noexcept {
  const uint16x4_t exponent = vdup_n_u16(0x7C00);
  return vceq_u16(vand_u16(halves, exponent), exponent);
}

bool add_entries_half(const void* old, void* out, const std::uint32_t* columns, const std::int16_t* q, std::uint64_t length, float step) noexcept {
  const auto* const from = static_cast<const std::uint16_t*>(old);
  auto* const to = static_cast<std::uint16_t*>(out);
  uint16x4_t wild = vdup_n_u16(0);
  std::uint64_t n = 0;
  for (; n + 4 <= length; n += 4) {
    const std::uint32_t* const c = columns + n;
    uint16x4_t halves = vdup_n_u16(from[c[0]]);
    halves = vld1_lane_u16(from + c[1], halves, 1);
    halves = vld1_lane_u16(from + c[2], halves, 2);
    halves = vld1_lane_u16(from + c[3], halves, 3);
    const float32x4_t value = vaddq_f32(vcvt_f32_f16(vreinterpret_f16_u16(halves)), wide_steps(vld1_s16(q + n), step));
    const uint16x4_t made = vreinterpret_u16_f16(vcvt_f16_f32(value));
    wild = vorr_u16(wild, wild_of(made));
    vst1_lane_u16(to + c[0], made, 0);
    vst1_lane_u16(to + c[1], made, 1);
    vst1_lane_u16(to + c[2], made, 2);
    vst1_lane_u16(to + c[3], made, 3);
  }
  const bool fine = vmaxv_u16(wild) == 0;
  return add_entries_scalar<Half>(old, out, columns + n, q + n, length - n, step) && fine;
}

bool add_sums_half(const void* old, void* out, std::uint64_t length, const std::int16_t* q, float step, const std::int32_t* sums,
                   float scale) noexcept {
  const auto* const from = static_cast<const std::uint16_t*>(old);
  auto* const to = static_cast<std::uint16_t*>(out);
  uint16x4_t wild = vdup_n_u16(0);
  std::uint64_t j = 0;
  for (; j + 4 <= length; j += 4) {
    float32x4_t value = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + j)));
    if (q != nullptr) value = vaddq_f32(value, wide_steps(vld1_s16(q + j), step));
    value = vaddq_f32(value, vmulq_n_f32(vcvtq_f32_s32(vld1q_s32(sums + j)), scale));
    const uint16x4_t made = vreinterpret_u16_f16(vcvt_f16_f32(value));
    wild = vorr_u16(wild, wild_of(made));
    vst1_u16(to + j, made);
  }
  const bool fine = vmaxv_u16(wild) == 0;
  return add_sums_scalar<Half>(from + j, to + j, length - j, q == nullptr ? nullptr : q + j, step, sums + j, scale) && fine;
}

bool offered() noexcept { return true; }

#endif

#if defined(EDGEEDIT_AVX2) || defined(EDGEEDIT_NEON)
constexpr Kernels kWide = {{add_entries_wide<Single>, add_entries_half, add_entries_wide<Bfloat16>},
                           {add_sums_wide<Single>, add_sums_half, add_sums_wide<Bfloat16>},
                           products_wide,
                           eights_wide,
                           list_bits_wide};
#else
constexpr Kernels kWide = kScalar;
bool offered() noexcept { return false; }
#endif

std::atomic<bool> scalar_only{false};

}  // namespace

const Kernels& kernels() noexcept {
  static const bool wide = offered();
  return wide && !scalar_only.load(std::memory_order_relaxed) ? kWide : kScalar;
}

void use_scalar(bool only) noexcept { scalar_only.store(only, std::memory_order_relaxed); }

}  // namespace edgeedit
