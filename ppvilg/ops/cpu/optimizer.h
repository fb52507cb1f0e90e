// Passes over the weights of a model, each reading and writing its numbers once.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "vector.h"

namespace ppvilg {

constexpr int64_t kPiece = 1 << 15;  // numbers that are worth a thread's while

// A piece of one parameter, of its gradient and of its moments, with what AdamW does to it.
struct Update {
  float *weights, *first, *second;
  const float* gradients;
  int64_t count;
  float rate, epsilon, kept;  // corrected by the powers of the betas; 1 - rate * decay
};

// One step of AdamW (Loshchilov & Hutter 2019), with paddle's order of operations.
inline void adamw(const std::vector<Update>& updates, float beta1, float beta2) {
  const int64_t count = updates.size();
#pragma omp parallel for num_threads(threads_for(count * kPiece))
  for (int64_t p = 0; p < count; p++) {
    const Update u = updates[p];
#pragma omp simd
    for (int64_t i = 0; i < u.count; i++) {
      const float g = u.gradients[i];
      const float m = beta1 * u.first[i] + (1.f - beta1) * g;
      const float v = beta2 * u.second[i] + (1.f - beta2) * g * g;
      u.first[i] = m;
      u.second[i] = v;
      u.weights[i] = u.weights[i] * u.kept - u.rate * (m / (std::sqrt(v) + u.epsilon));
    }
  }
}

// A piece of a tensor, and of another one or null.
struct Piece {
  float* x;
  const float* y;
  int64_t count;
};

inline void cut(float* x, const float* y, int64_t count, std::vector<Piece>* pieces) {
  for (int64_t i = 0; i < count; i += kPiece) pieces->push_back({x + i, y ? y + i : nullptr, std::min(kPiece, count - i)});
}

// x += share * (y - x).
inline void lerp(const std::vector<Piece>& pieces, float share) {
  const int64_t count = pieces.size();
#pragma omp parallel for num_threads(threads_for(count * kPiece))
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
#pragma omp parallel for num_threads(threads_for(count * kPiece))
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
#pragma omp parallel for num_threads(threads_for(count * kPiece))
  for (int64_t p = 0; p < count; p++) {
    float* x = pieces[p].x;
#pragma omp simd
    for (int64_t i = 0; i < pieces[p].count; i++) x[i] *= factor;
  }
}

}  // namespace ppvilg
