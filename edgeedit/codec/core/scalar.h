// Scalars of the core: the default floating-point environment for a scope, and conversions in integer arithmetic.
#ifndef EDGEEDIT_SCALAR_H_
#define EDGEEDIT_SCALAR_H_

#include <cfloat>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__SSE__) || defined(__x86_64__)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

static_assert(std::numeric_limits<float>::is_iec559 && sizeof(float) == 4, "the rule is written for IEEE single precision");
static_assert(FLT_EVAL_METHOD == 0, "float expressions must be evaluated in float");

#if defined(__GNUC__)
#define EDGEEDIT_INLINE inline __attribute__((always_inline))
#define EDGEEDIT_NOINLINE __attribute__((noinline))
#else
#define EDGEEDIT_INLINE inline
#define EDGEEDIT_NOINLINE
#endif

namespace edgeedit {

// Default environment (nearest even, no flush-to-zero, exceptions masked) for a scope; the caller's comes back at its end.
// The barriers keep loads and stores of weights, and so the arithmetic between them, inside the scope.
class FloatEnvironment {
 public:
  FloatEnvironment() noexcept {
#if defined(__SSE__) || defined(__x86_64__)
    saved_ = _mm_getcsr();
    _mm_setcsr(0x1F80);
    __asm__ volatile("" ::: "memory");
#elif defined(__aarch64__)
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_)::"memory");
    const std::uint64_t plain = 0;
    __asm__ volatile("msr fpcr, %0" ::"r"(plain) : "memory");
#else
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
#endif
  }
  ~FloatEnvironment() noexcept {
#if defined(__SSE__) || defined(__x86_64__)
    __asm__ volatile("" ::: "memory");
    _mm_setcsr(saved_);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" ::"r"(saved_) : "memory");
#else
    std::fesetenv(&saved_);
#endif
  }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
#if defined(__SSE__) || defined(__x86_64__)
  unsigned int saved_;
#elif defined(__aarch64__)
  std::uint64_t saved_;
#else
  std::fenv_t saved_;
#endif
};

EDGEEDIT_INLINE float as_float(std::uint32_t bits) noexcept {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

EDGEEDIT_INLINE std::uint32_t as_bits(float value) noexcept {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

EDGEEDIT_INLINE std::uint64_t lowest_bit(std::uint64_t bits) noexcept {
#if defined(__GNUC__)
  return static_cast<std::uint64_t>(__builtin_ctzll(bits));
#else
  std::uint64_t place = 0;
  while (((bits >> place) & 1U) == 0) ++place;
  return place;
#endif
}

EDGEEDIT_INLINE std::uint32_t widen_half(std::uint32_t half) noexcept {
  const std::uint32_t sign = (half & 0x8000U) << 16;
  const std::uint32_t magnitude = half & 0x7FFFU;
  if (magnitude >= 0x7C00U) return sign | 0x7F800000U | ((magnitude & 0x3FFU) << 13);
  if (magnitude >= 0x0400U) return sign | ((magnitude << 13) + 0x38000000U);
  if (magnitude == 0) return sign;
  // Subnormal: magnitude * 2^-24; move the leading bit to position 10 and lower the exponent by as much.
  std::uint32_t significand = magnitude;
  std::uint32_t exponent = 113;
  while ((significand & 0x400U) == 0) {
    significand <<= 1;
    --exponent;
  }
  return sign | (exponent << 23) | ((significand & 0x3FFU) << 13);
}

EDGEEDIT_INLINE std::uint16_t narrow_half(std::uint32_t bits) noexcept {
  const std::uint32_t sign = (bits >> 16) & 0x8000U;
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  std::uint32_t half;
  if (magnitude - 0x38800000U < 0x477FF000U - 0x38800000U) {
    // Normal half; a carry out of the significand rightly raises the exponent.
    half = (magnitude - 0x38000000U + 0xFFFU + ((magnitude >> 13) & 1U)) >> 13;
  } else if (magnitude > 0x7F800000U) {
    half = 0x7E00U | ((magnitude >> 13) & 0x3FFU);
  } else if (magnitude >= 0x477FF000U) {
    half = 0x7C00U;  // 65520 and above round to infinity
  } else if (magnitude < 0x33000000U) {
    half = 0;  // below half of the smallest subnormal
  } else {
    const std::uint32_t shift = 126U - (magnitude >> 23);  // 14..24
    const std::uint32_t significand = (magnitude & 0x7FFFFFU) | 0x800000U;
    half = (significand + (1U << (shift - 1)) - 1U + ((significand >> shift) & 1U)) >> shift;
  }
  return static_cast<std::uint16_t>(sign | half);
}

EDGEEDIT_INLINE std::uint16_t narrow_bfloat16(std::uint32_t bits) noexcept {
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

// One element type: how it is stored, widened to float and rounded; `finite` looks at the stored bits.
struct Single {
  using Stored = std::uint32_t;
  static EDGEEDIT_INLINE float load(Stored bits) noexcept { return as_float(bits); }
  static EDGEEDIT_INLINE Stored store(float value) noexcept { return as_bits(value); }
  static EDGEEDIT_INLINE bool finite(Stored bits) noexcept { return (bits & 0x7F800000U) != 0x7F800000U; }
};

struct Half {
  using Stored = std::uint16_t;
  static EDGEEDIT_INLINE float load(Stored bits) noexcept { return as_float(widen_half(bits)); }
  static EDGEEDIT_INLINE Stored store(float value) noexcept { return narrow_half(as_bits(value)); }
  static EDGEEDIT_INLINE bool finite(Stored bits) noexcept { return (bits & 0x7C00U) != 0x7C00U; }
};

struct Bfloat16 {
  using Stored = std::uint16_t;
  static EDGEEDIT_INLINE float load(Stored bits) noexcept { return as_float(static_cast<std::uint32_t>(bits) << 16); }
  static EDGEEDIT_INLINE Stored store(float value) noexcept { return narrow_bfloat16(as_bits(value)); }
  static EDGEEDIT_INLINE bool finite(Stored bits) noexcept { return (bits & 0x7F80U) != 0x7F80U; }
};

}  // namespace edgeedit

#endif  // EDGEEDIT_SCALAR_H_
