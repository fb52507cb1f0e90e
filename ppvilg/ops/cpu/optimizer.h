// Passes over the weights of a model, each reading and writing its numbers once.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "vector.h"

namespace ppvilg {

struct AdamW {
  float rate, beta1, beta2, epsilon, decay;
  float beta1_power, beta2_power;  // beta^t in step t
};

// One step of AdamW (Loshchilov & Hutter 2019), with paddle's order of operations.
inline void adamw(float* weights, const float* gradients, float* first, float* second, int64_t count, const AdamW& a) {
  const float root = std::sqrt(1.f - a.beta2_power);
  const float rate = a.rate * root / (1.f - a.beta1_power), epsilon = a.epsilon * root;
  const float kept = 1.f - a.rate * a.decay;
#pragma omp parallel for simd num_threads(threads_for(count))
  for (int64_t i = 0; i < count; i++) {
    const float g = gradients[i];
    const float m = a.beta1 * first[i] + (1.f - a.beta1) * g;
    const float v = a.beta2 * second[i] + (1.f - a.beta2) * g * g;
    first[i] = m;
    second[i] = v;
    weights[i] = weights[i] * kept - rate * (m / (std::sqrt(v) + epsilon));
  }
}

// Parts of many tensors that are worth a thread's while; y may be null.
struct Piece {
  float* x;
  const float* y;
  int64_t count;
};

inline void cut(float* x, const float* y, int64_t count, std::vector<Piece>* pieces) {
  constexpr int64_t most = 1 << 15;
  for (int64_t i = 0; i < count; i += most) pieces->push_back({x + i, y ? y + i : nullptr, std::min(most, count - i)});
}

// x += share * (y - x).
inline void lerp(const std::vector<Piece>& pieces, float share) {
  const int64_t count = pieces.size();
#pragma omp parallel for num_threads(threads_for(count << 15))
  for (int64_t p = 0; p < count; p++) {
    float* x = pieces[p].x;
    const float* y = pieces[p].y;
#pragma omp simd
    for (int64_t i = 0; i < pieces[p].count; i++) x[i] += share * (y[i] - x[i]);
  }
}

// The sum of all squares; the same for any number of threads.
inline float squared_sum(const std::vector<Piece>& pieces) {
  const int64_t count = pieces.size();
  std::vector<double> sums(count);
#pragma omp parallel for num_threads(threads_for(count << 15))
  for (int64_t p = 0; p < count; p++) {
    const float* x = pieces[p].x;
    float sum = 0.f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < pieces[p].count; i++) sum += x[i] * x[i];
    sums[p] = sum;
  }
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

// x *= factor.
inline void scale(const std::vector<Piece>& pieces, float factor) {
  const int64_t count = pieces.size();
#pragma omp parallel for num_threads(threads_for(count << 15))
  for (int64_t p = 0; p < count; p++) {
    float* x = pieces[p].x;
#pragma omp simd
    for (int64_t i = 0; i < pieces[p].count; i++) x[i] *= factor;
  }
}

}  // namespace ppvilg
