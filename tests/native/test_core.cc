// Native tests of the core: conversions, rounding ties, the caller's floating-point control register, cursors, refusals.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "core.h"

#if defined(__SSE__) || defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace {

std::atomic<int> failures{0};

#define CHECK(condition)                                                     \
  do {                                                                       \
    if (!(condition)) {                                                      \
      std::printf("%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);    \
      ++failures;                                                            \
    }                                                                        \
  } while (false)

using edgeedit::Dtype;
using edgeedit::LowRank;
using edgeedit::Sparse;
using edgeedit::Status;

std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

double half_value(std::uint16_t half) {
  const int exponent = (half >> 10) & 0x1F;
  const int significand = half & 0x3FF;
  const double magnitude = exponent == 0 ? std::ldexp(significand, -24) : std::ldexp(significand + 1024, exponent - 25);
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

void test_every_half_is_widened_exactly_and_comes_back() {
  for (std::uint32_t pattern = 0; pattern < 0x10000U; ++pattern) {
    const auto half = static_cast<std::uint16_t>(pattern);
    const std::uint32_t wide = edgeedit::float_from_half(half);
    if ((half & 0x7C00) == 0x7C00) {
      CHECK((wide & 0x7F800000U) == 0x7F800000U && ((wide & 0x7FFFFFU) != 0) == ((half & 0x3FF) != 0));
    } else {
      float value;
      std::memcpy(&value, &wide, sizeof(value));
      CHECK(static_cast<double>(value) == half_value(half) && std::signbit(value) == ((half & 0x8000) != 0));
      CHECK(edgeedit::half_from_float(wide) == half);
    }
  }
}

void test_ties_between_halves_go_to_even() {
  for (std::uint32_t pattern = 0; pattern < 0x7BFFU; ++pattern) {
    const auto low = static_cast<std::uint16_t>(pattern);
    const auto high = static_cast<std::uint16_t>(pattern + 1);
    const auto middle = static_cast<float>((half_value(low) + half_value(high)) / 2);  // exact in float
    const std::uint16_t even = (low & 1) != 0 ? high : low;
    CHECK(edgeedit::half_from_float(bits_of(middle)) == even);
    CHECK(edgeedit::half_from_float(bits_of(-middle)) == (even | 0x8000));
    CHECK(edgeedit::half_from_float(bits_of(std::nextafterf(middle, 0.0F))) == low);
    CHECK(edgeedit::half_from_float(bits_of(std::nextafterf(middle, 1e9F))) == high);
  }
  CHECK(edgeedit::half_from_float(bits_of(65519.996F)) == 0x7BFF);
  CHECK(edgeedit::half_from_float(bits_of(65520.0F)) == 0x7C00);
  CHECK(edgeedit::half_from_float(0x7F800000U) == 0x7C00);
  CHECK((edgeedit::half_from_float(0x7F800001U) & 0x3FF) != 0);
}

void test_bfloat16_rounds_to_even_and_keeps_nan() {
  CHECK(edgeedit::bfloat16_from_float(0x3F808000U) == 0x3F80);  // tie, even below
  CHECK(edgeedit::bfloat16_from_float(0x3F818000U) == 0x3F82);  // tie, even above
  CHECK(edgeedit::bfloat16_from_float(0x3F808001U) == 0x3F81);
  CHECK(edgeedit::bfloat16_from_float(0x7F7FFFFFU) == 0x7F80);
  CHECK((edgeedit::bfloat16_from_float(0x7F800001U) & 0x7F) != 0);
  for (std::uint32_t pattern = 0; pattern < 0x7F80U; ++pattern) {
    const auto value = static_cast<std::uint16_t>(pattern);
    CHECK(edgeedit::bfloat16_from_float(edgeedit::float_from_bfloat16(value)) == value);
  }
}

// The value of a bfloat16 pattern by the definition of the format, in double.
double bfloat16_value(std::uint16_t pattern) {
  const int exponent = (pattern >> 7) & 0xFF;
  const int significand = pattern & 0x7F;
  const double magnitude = exponent == 0 ? std::ldexp(significand, -133) : std::ldexp(significand + 128, exponent - 134);
  return (pattern & 0x8000) != 0 ? -magnitude : magnitude;
}

void test_every_bfloat16_and_every_tie_between_two() {
  for (std::uint32_t pattern = 0; pattern < 0x10000U; ++pattern) {
    const auto low = static_cast<std::uint16_t>(pattern);
    const std::uint32_t wide = edgeedit::float_from_bfloat16(low);
    if ((low & 0x7F80) == 0x7F80) {
      CHECK((wide & 0x7F800000U) == 0x7F800000U && ((wide & 0x7FFFFFU) != 0) == ((low & 0x7F) != 0));
      continue;
    }
    float value;
    std::memcpy(&value, &wide, sizeof(value));
    CHECK(static_cast<double>(value) == bfloat16_value(low) && std::signbit(value) == ((low & 0x8000) != 0));
    CHECK(edgeedit::bfloat16_from_float(wide) == low);
    if ((low & 0x7FFF) == 0x7F7F) continue;  // the next one up is infinity
    const auto high = static_cast<std::uint16_t>(low + 1);
    const auto middle = static_cast<float>((bfloat16_value(low) + bfloat16_value(high)) / 2);  // exact in float
    CHECK(edgeedit::bfloat16_from_float(bits_of(middle)) == ((low & 1) != 0 ? high : low));
    CHECK(edgeedit::bfloat16_from_float(bits_of(middle) - 1) == low);
    CHECK(edgeedit::bfloat16_from_float(bits_of(middle) + 1) == high);
  }
}

Sparse by_index(const std::int64_t* index, const std::int16_t* q, std::uint64_t count, float step) { return {index, nullptr, 0, q, count, step}; }

void test_the_callers_control_register_has_no_influence_and_comes_back() {
#if defined(__SSE__) || defined(__x86_64__)
  // 2^-130 is subnormal.  Steps are at least 2^-60, so the one way for it to stay is a low-rank sum of 0, which must not flush it;
  // 1 + 2^-60 shows the rounding mode.
  const float old[2] = {std::ldexp(1.0F, -130), 1.0F};
  const std::int64_t row[1] = {0};
  const std::int64_t cols[2] = {0, 1};
  const std::int8_t a[1] = {1};
  const std::int8_t b[2] = {0, 1};
  const LowRank part{row, 1, cols, 2, a, b, 1, std::ldexp(1.0F, -60)};
  const unsigned int saved = _mm_getcsr();
  const unsigned int strange[] = {0x1F80U | 0x8040U, 0x1F80U | 0x2000U, 0x1F80U | 0x4000U | 0x8000U, 0x1F80U | 0x6000U};
  for (const unsigned int control : strange) {
    float out[2];
    _mm_setcsr(control);
    const Status status = edgeedit::apply(Dtype::kFloat32, old, out, 1, 2, nullptr, &part);
    const unsigned int after = _mm_getcsr();
    _mm_setcsr(saved);
    CHECK(status == Status::kOk && after == control);
    CHECK(std::memcmp(out, old, sizeof(out)) == 0);
  }
#elif defined(__aarch64__)
  // The same with FPCR: flush to zero (bit 24), default NaN (25), rounding mode (22 and 23).
  const float old[2] = {std::ldexp(1.0F, -130), 1.0F};
  const std::int64_t row[1] = {0};
  const std::int64_t cols[2] = {0, 1};
  const std::int8_t a[1] = {1};
  const std::int8_t b[2] = {0, 1};
  const LowRank part{row, 1, cols, 2, a, b, 1, std::ldexp(1.0F, -60)};
  std::uint64_t saved;
  __asm__ volatile("mrs %0, fpcr" : "=r"(saved)::"memory");
  const std::uint64_t strange[] = {1U << 24, 1U << 22, (1U << 23) | (1U << 24), 3U << 22, 1U << 25};
  for (const std::uint64_t control : strange) {
    float out[2];
    std::uint64_t after;
    __asm__ volatile("msr fpcr, %0" ::"r"(control) : "memory");
    const Status status = edgeedit::apply(Dtype::kFloat32, old, out, 1, 2, nullptr, &part);
    __asm__ volatile("mrs %0, fpcr" : "=r"(after)::"memory");
    __asm__ volatile("msr fpcr, %0" ::"r"(saved) : "memory");
    CHECK(status == Status::kOk && after == control);
    CHECK(std::memcmp(out, old, sizeof(out)) == 0);
  }
#endif
}

void test_many_threads_make_the_same_bits() {
  const std::uint64_t height = 64, width = 64;
  std::vector<std::uint16_t> old(height * width);
  std::vector<std::int64_t> index(old.size());
  std::vector<std::int16_t> q(old.size());
  std::vector<std::int8_t> a(height * 8), b(8 * width);
  for (std::size_t i = 0; i < old.size(); ++i) {
    old[i] = static_cast<std::uint16_t>(i % 0x3C00);
    index[i] = static_cast<std::int64_t>(i);
    q[i] = static_cast<std::int16_t>(i % 2 == 0 ? 1 + i % 255 : -3);
  }
  for (std::size_t i = 0; i < a.size(); ++i) a[i] = b[i] = static_cast<std::int8_t>(i % 251);
  const Sparse sparse = by_index(index.data(), q.data(), q.size(), 0.001953125F);
  const LowRank low{index.data(), height, index.data(), width, a.data(), b.data(), 8, std::ldexp(1.0F, -20)};
  std::vector<std::vector<std::uint16_t>> made(9, std::vector<std::uint16_t>(old.size()));
  const auto work = [&](std::size_t slot) {
    for (int round = 0; round < 20; ++round) {
      CHECK(edgeedit::apply(Dtype::kFloat16, old.data(), made[slot].data(), height, width, &sparse, &low) == Status::kOk);
    }
  };
  work(0);
  std::vector<std::thread> threads;
  for (std::size_t slot = 1; slot < made.size(); ++slot) threads.emplace_back(work, slot);
  for (std::thread& thread : threads) thread.join();
  for (const auto& one : made) CHECK(one == made[0]);
}

void test_bitmap_and_index_agree_and_overlap_is_rounded_once() {
  const std::uint64_t height = 5, width = 27;  // 135 elements: a bitmap that ends inside a byte and a word
  std::vector<std::uint16_t> old(height * width), first(old.size()), second(old.size());
  for (std::size_t i = 0; i < old.size(); ++i) old[i] = static_cast<std::uint16_t>(0x2000 + 37 * i);
  std::vector<std::int64_t> index;
  std::vector<std::uint8_t> bitmap((old.size() + 7) / 8, 0);
  std::vector<std::int16_t> q;
  for (std::size_t i = 0; i < old.size(); i += (i % 5) + 1) {
    index.push_back(static_cast<std::int64_t>(i));
    bitmap[i / 8] = static_cast<std::uint8_t>(bitmap[i / 8] | (1U << (i % 8)));
    q.push_back(static_cast<std::int16_t>(i % 2 == 0 ? 255 : -3));
  }
  const std::int64_t rows[2] = {1, 4};
  const std::int64_t cols[3] = {0, 13, 26};
  const std::int8_t a[2] = {127, -128};
  const std::int8_t b[3] = {-128, 5, 127};
  const LowRank low{rows, 2, cols, 3, a, b, 1, std::ldexp(1.0F, -20)};
  const Sparse one = by_index(index.data(), q.data(), q.size(), 0.001953125F);
  const Sparse two{nullptr, bitmap.data(), bitmap.size(), q.data(), q.size(), 0.001953125F};
  CHECK(edgeedit::apply(Dtype::kFloat16, old.data(), first.data(), height, width, &one, &low) == Status::kOk);
  CHECK(edgeedit::apply(Dtype::kFloat16, old.data(), second.data(), height, width, &two, &low) == Status::kOk);
  CHECK(first == second);
  std::uint64_t count = 0;
  CHECK(edgeedit::count_bits(bitmap.data(), bitmap.size(), old.size(), &count) == Status::kOk && count == q.size());
  std::vector<std::int64_t> found(count);
  CHECK(edgeedit::expand_bitmap(bitmap.data(), bitmap.size(), found.data(), count) == Status::kOk && found == index);
  CHECK(edgeedit::expand_bitmap(bitmap.data(), bitmap.size(), found.data(), count - 1) == Status::kBadArgument);
  CHECK(edgeedit::count_bits(bitmap.data(), bitmap.size(), old.size() - 1, &count) == ((old.size() - 1) % 8 == 0 ? Status::kBadArgument : Status::kOk));
  bitmap.back() = static_cast<std::uint8_t>(bitmap.back() | 0x80U);
  CHECK(edgeedit::count_bits(bitmap.data(), bitmap.size(), old.size(), &count) == Status::kBadIndex);
}

void test_refusals() {
  const float old[4] = {1.0F, std::numeric_limits<float>::infinity(), 3e38F, -0.0F};
  float out[4];
  const std::int64_t at[2] = {0, 3};
  std::int16_t q[2] = {1, 1};
  const auto run = [&](const Sparse& sparse) { return edgeedit::apply(Dtype::kFloat32, old, out, 1, 4, &sparse, nullptr); };
  CHECK(run(by_index(at, q, 2, 0.5F)) == Status::kOk);
  CHECK(std::memcmp(out + 1, old + 1, 2 * sizeof(float)) == 0);  // unnamed elements keep their bits, also infinity
  const std::int64_t twice[2] = {3, 3}, behind[2] = {0, 4}, negative[2] = {-1, 3}, infinite[1] = {1};
  CHECK(run(by_index(twice, q, 2, 0.5F)) == Status::kBadIndex);
  CHECK(run(by_index(behind, q, 2, 0.5F)) == Status::kBadIndex);
  CHECK(run(by_index(negative, q, 2, 0.5F)) == Status::kBadIndex);
  CHECK(run(by_index(infinite, q, 1, 0.5F)) == Status::kNotFinite);
  CHECK(run(by_index(at, q, 5, 0.5F)) == Status::kTooLarge);
  CHECK(run(by_index(at, q, 0, 0.5F)) == Status::kBadArgument);
  CHECK(run(by_index(nullptr, q, 2, 0.5F)) == Status::kBadArgument);
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (const float step : {0.0F, -0.5F, nan, inf, std::ldexp(1.0F, -61), 1048577.0F, 1.0F + std::ldexp(1.0F, -16)}) {
    CHECK(run(by_index(at, q, 2, step)) == Status::kBadScale);
  }
  CHECK(run(by_index(at, q, 2, 1048576.0F)) == Status::kOk && run(by_index(at, q, 2, 1.0F + std::ldexp(1.0F, -15))) == Status::kOk);
  for (const int wrong : {0, 256, -256, -32768}) {
    q[1] = static_cast<std::int16_t>(wrong);
    CHECK(run(by_index(at, q, 2, 0.5F)) == Status::kBadStep);
  }
  const std::int8_t a[2] = {1, 1};
  const LowRank three{at, 1, at, 1, a, a, 1, 0.75F}, deep{at, 1, at, 1, a, a, 1025, 0.5F};
  CHECK(edgeedit::apply(Dtype::kFloat32, old, out, 1, 4, nullptr, &three) == Status::kBadScale);
  CHECK(edgeedit::apply(Dtype::kFloat32, old, out, 1, 4, nullptr, &deep) == Status::kTooLarge);
  CHECK(edgeedit::apply(Dtype::kFloat32, old, out, 1, 4, nullptr, nullptr) == Status::kBadArgument);
  CHECK(edgeedit::apply(static_cast<Dtype>(7), old, out, 1, 4, nullptr, &three) == Status::kBadArgument);
  const std::uint64_t huge = std::numeric_limits<std::uint64_t>::max() / 2 + 1;  // height * width wraps to 0
  CHECK(edgeedit::apply(Dtype::kFloat32, old, out, huge, 2, nullptr, &three) == Status::kTooLarge);
  const std::uint16_t half[1] = {0x7BFF};
  std::uint16_t made[1];
  q[0] = 100;
  const Sparse big = by_index(at, q, 1, 1000.0F);
  CHECK(edgeedit::apply(Dtype::kFloat16, half, made, 1, 1, &big, nullptr) == Status::kNotFinite);
  // In float between: the half overflows on the way, not at the end.
  const std::int8_t minus[1] = {-100}, ten[1] = {1};
  const LowRank back{at, 1, at, 1, minus, ten, 1, 1024.0F};
  CHECK(edgeedit::apply(Dtype::kFloat16, half, made, 1, 1, &big, &back) == Status::kOk);
  CHECK(edgeedit::half_from_float(bits_of(65504.0F + 100000.0F - 102400.0F)) == made[0]);
}

}  // namespace

int main() {
  test_every_half_is_widened_exactly_and_comes_back();
  test_ties_between_halves_go_to_even();
  test_bfloat16_rounds_to_even_and_keeps_nan();
  test_every_bfloat16_and_every_tie_between_two();
  test_many_threads_make_the_same_bits();
  test_the_callers_control_register_has_no_influence_and_comes_back();
  test_bitmap_and_index_agree_and_overlap_is_rounded_once();
  test_refusals();
  std::printf(failures == 0 ? "core: ok\n" : "core: %d failures\n", failures.load());
  return failures == 0 ? 0 : 1;
}
