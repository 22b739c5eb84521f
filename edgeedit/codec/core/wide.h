// Which wide instructions a file may use beside the scalar forms; whether the processor has them is asked at run time, in kernels.cc.
#ifndef EDGEEDIT_WIDE_H_
#define EDGEEDIT_WIDE_H_

#if defined(__x86_64__) && defined(__GNUC__)
#define EDGEEDIT_AVX2 1
#include <cpuid.h>
#include <immintrin.h>
#define EDGEEDIT_WIDE __attribute__((target("avx2,f16c,popcnt")))
#elif defined(__aarch64__) && defined(__GNUC__)
#define EDGEEDIT_NEON 1
#include <arm_neon.h>
#define EDGEEDIT_WIDE
#endif

#endif  // EDGEEDIT_WIDE_H_
