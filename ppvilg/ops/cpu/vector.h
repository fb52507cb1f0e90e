// Functions that the compiler turns into vector instructions inside `#pragma omp simd` loops, and the number of threads.
#pragma once

#include <dlfcn.h>
#include <omp.h>

#include <cstdint>
#include <cstring>

namespace ppvilg {

// e^x to about one unit in the last place; 0 below -87. NaN stays NaN.
inline float exp_(float x) {
  const float limited = x > 88.f ? 88.f : x;
  // x = n ln 2 + r with |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds to the integer n and leaves it in the low bits.
  const float shifted = limited * 1.44269504f + 12582912.f;
  const float n = shifted - 12582912.f;
  const float r = (limited - n * 0.693145751953125f) - n * 1.42860682030941723212e-6f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.f;
  int32_t exponent, bits;
  std::memcpy(&exponent, &shifted, 4);
  std::memcpy(&bits, &p, 4);
  bits = static_cast<int32_t>(static_cast<uint32_t>(bits) + (static_cast<uint32_t>(exponent) << 23));
  float result;
  std::memcpy(&result, &bits, 4);
  return x < -87.f ? 0.f : (x != x ? x : result);
}

// Threads for work on `values` numbers: as many as paddle's matrix products use, one where starting them takes longer.
inline int threads_for(int64_t values) {
  using Count = int (*)();
  static const auto count = [] {
    void* library = dlopen("libmklml_intel.so", RTLD_NOW);  // the copy that paddle uses
    return library ? reinterpret_cast<Count>(dlsym(library, "MKL_Get_Max_Threads")) : nullptr;
  }();
  if (values < 16384) return 1;
  return count ? count() : omp_get_max_threads();
}

}  // namespace ppvilg
