// The arithmetic of the rule on runs of elements, and the reading of coded symbols, in a scalar form and in forms for AVX2 + F16C and for NEON, chosen at run time.
//
// All forms give the same bits: the sums are integers, every product with a step or a scale is exact, and additions and the one rounding
// are IEEE operations in the order of core.h; so width and instruction set are free.  Callers hold a FloatEnvironment.
// Only the bits of elements that stay finite are defined; the answer is false when a new element is not finite.
#ifndef EDGEEDIT_KERNELS_H_
#define EDGEEDIT_KERNELS_H_

#include <cstdint>

#include "core.h"
#include "rans.h"

namespace edgeedit {

constexpr std::uint64_t kSumsAtOnce = 1024;  // columns whose integer sums lie on the stack at once
constexpr std::uint64_t kListedBehind = 8;   // room behind what list_bits lists

struct Kernels {
  // out[c] = round(old[c] + step * q[n]) for each c = columns[n]; a column occurs once.
  using AddEntries = bool (*)(const void* old, void* out, const std::uint32_t* columns, const std::int16_t* q, std::uint64_t length,
                              float step) noexcept;
  // out[j] = round((old[j] + step * q[j]) + scale * sums[j]) for every j; without `q` no step is added.
  using AddSums = bool (*)(const void* old, void* out, std::uint64_t length, const std::int16_t* q, float step, const std::int32_t* sums,
                           float scale) noexcept;
  // sums[j] = sum over k of a[k] * b[k * stride + j] for j < length <= kSumsAtOnce; |sum| <= 1024 * 128 * 128 = 2^24.
  using Products = void (*)(const std::int8_t* a, const std::int8_t* b, std::uint64_t rank, std::uint64_t stride, std::uint64_t length,
                            std::int32_t* sums) noexcept;
  // Writes order[8 g + k] for every set bit k of bits[g], g < groups, and up to 8 numbers behind; returns how many it listed.  Behind the last group
  // bits are 0 up to a multiple of 8.
  using ListBits = std::uint64_t (*)(const std::uint32_t* order, const std::uint8_t* bits, std::uint64_t groups, std::uint32_t* listed) noexcept;
  AddEntries add_entries[3];  // by Dtype; float types only
  AddSums add_sums[3];
  Products products;
  Eights eights;  // rans.h
  ListBits list_bits;
};

// What the processor offers, looked up once; the scalar form after use_scalar(true), which tests call to compare the two.
const Kernels& kernels() noexcept;
void use_scalar(bool only) noexcept;

}  // namespace edgeedit

#endif  // EDGEEDIT_KERNELS_H_
