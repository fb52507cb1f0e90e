// Passes over the rows of float32 matrices, each reading and writing its numbers once.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "vector.h"

namespace ppvilg {

// Calls row_range(first, last, partial) on every thread, where `partial` are `width` zeros of its own, and writes the sum of
// the partial results to `sums`.
template <typename Function>
void sum_over_rows(int64_t rows, int64_t columns, int64_t width, float* sums, Function row_range) {
  const int threads = std::min<int64_t>(threads_for(rows * columns), std::max<int64_t>(rows, 1));
  std::vector<float> partial(threads * width, 0.f);
#pragma omp parallel num_threads(threads)
  {
    // The team may be smaller than asked for, never larger.
    const int64_t t = omp_get_thread_num(), team = omp_get_num_threads();
    row_range(rows * t / team, rows * (t + 1) / team, partial.data() + t * width);
  }
  std::copy(partial.begin(), partial.begin() + width, sums);
  for (int t = 1; t < threads; t++) {
    const float* other = partial.data() + t * width;
#pragma omp simd
    for (int64_t j = 0; j < width; j++) sums[j] += other[j];
  }
}

// x [rows, width] += bias [width].
inline void add_bias(float* x, const float* bias, int64_t rows, int64_t width) {
#pragma omp parallel for num_threads(threads_for(rows* width))
  for (int64_t i = 0; i < rows; i++) {
    float* row = x + i * width;
#pragma omp simd
    for (int64_t j = 0; j < width; j++) row[j] += bias[j];
  }
}

// sums [width] = the sum of x's rows.
inline void column_sums(const float* x, float* sums, int64_t rows, int64_t width) {
  sum_over_rows(rows, width, width, sums, [=](int64_t first, int64_t last, float* sum) {
    int64_t i = first;
    for (; i + 4 <= last; i += 4) {
      const float *a = x + i * width, *b = a + width, *c = b + width, *d = c + width;
#pragma omp simd
      for (int64_t j = 0; j < width; j++) sum[j] += (a[j] + b[j]) + (c[j] + d[j]);
    }
    for (; i < last; i++) {
      const float* a = x + i * width;
#pragma omp simd
      for (int64_t j = 0; j < width; j++) sum[j] += a[j];
    }
  });
}

// x [planes, size] += the bias [channels] of each plane's channel.
inline void add_channel_bias(float* x, const float* bias, int64_t planes, int64_t channels, int64_t size) {
#pragma omp parallel for num_threads(threads_for(planes* size))
  for (int64_t i = 0; i < planes; i++) {
    float* plane = x + i * size;
    const float b = bias[i % channels];
#pragma omp simd
    for (int64_t j = 0; j < size; j++) plane[j] += b;
  }
}

// sums [channels] = the sums of x's planes of each channel.
inline void channel_sums(const float* x, float* sums, int64_t planes, int64_t channels, int64_t size) {
#pragma omp parallel for num_threads(threads_for(planes* size))
  for (int64_t c = 0; c < channels; c++) {
    float total = 0.f;
    for (int64_t i = c; i < planes; i += channels) {
      const float* plane = x + i * size;
      float sum = 0.f;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < size; j++) sum += plane[j];
      total += sum;
    }
    sums[c] = total;
  }
}

// y = (x - mean) * rate * weight + bias, where rate = 1 / sqrt(variance + epsilon); keeps mean and rate [rows].
inline void layer_norm(const float* x, const float* weight, const float* bias, float epsilon, float* y, float* means,
                       float* rates, int64_t rows, int64_t width) {
#pragma omp parallel for num_threads(threads_for(rows* width))
  for (int64_t i = 0; i < rows; i++) {
    const float* row = x + i * width;
    float* out = y + i * width;
    float sum = 0.f, squares = 0.f;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < width; j++) sum += row[j];
    const float mean = sum / width;
#pragma omp simd reduction(+ : squares)
    for (int64_t j = 0; j < width; j++) squares += (row[j] - mean) * (row[j] - mean);
    const float rate = 1.f / std::sqrt(squares / width + epsilon);
#pragma omp simd
    for (int64_t j = 0; j < width; j++) out[j] = (row[j] - mean) * rate * weight[j] + bias[j];
    means[i] = mean;
    rates[i] = rate;
  }
}

// With n the normalised x and g = dy * weight: dx = rate * (g - mean(g) - n * mean(g * n)); dweight = sum of dy * n over the
// rows, dbias = sum of dy, which follow each other in `sums` [2 * width].
inline void layer_norm_grad(const float* x, const float* weight, const float* means, const float* rates, const float* dy,
                            float* dx, float* sums, int64_t rows, int64_t width) {
  sum_over_rows(rows, width, 2 * width, sums, [=](int64_t first, int64_t last, float* dweight) {
    float* dbias = dweight + width;
    for (int64_t i = first; i < last; i++) {
      const float *row = x + i * width, *gradient = dy + i * width;
      float* out = dx + i * width;
      const float mean = means[i], rate = rates[i];
      float along = 0.f, total = 0.f;
#pragma omp simd reduction(+ : along, total)
      for (int64_t j = 0; j < width; j++) {
        const float n = (row[j] - mean) * rate, g = gradient[j] * weight[j];
        along += g * n;
        total += g;
        dweight[j] += gradient[j] * n;
        dbias[j] += gradient[j];
      }
      along /= width;
      total /= width;
#pragma omp simd
      for (int64_t j = 0; j < width; j++) {
        const float n = (row[j] - mean) * rate, g = gradient[j] * weight[j];
        out[j] = rate * (g - total - n * along);
      }
    }
  });
}

// gelu(x) = x / (1 + e^-z), z = 2 sqrt(2 / pi) (x + 0.044715 x^3): the tanh form, since (1 + tanh(z / 2)) / 2 = 1 / (1 + e^-z).
constexpr float kGelu = 1.5957691216f, kCubic = 0.044715f;

inline void gelu(const float* x, float* y, int64_t count) {
#pragma omp parallel for simd num_threads(threads_for(count))
  for (int64_t i = 0; i < count; i++) {
    const float v = x[i];
    y[i] = v / (1.f + exp_(-kGelu * v * (1.f + kCubic * v * v)));
  }
}

inline void gelu_grad(const float* x, const float* dy, float* dx, int64_t count) {
#pragma omp parallel for simd num_threads(threads_for(count))
  for (int64_t i = 0; i < count; i++) {
    const float v = x[i];
    const float s = 1.f / (1.f + exp_(-kGelu * v * (1.f + kCubic * v * v)));
    dx[i] = dy[i] * (s + v * s * (1.f - s) * kGelu * (1.f + 3.f * kCubic * v * v));
  }
}

// losses[i] = log(sum of e^logits[i]) - logits[i, labels[i]]; keeps the logarithms [rows].
inline void cross_entropy(const float* logits, const int64_t* labels, float* losses, float* log_sums, int64_t rows,
                          int64_t width) {
#pragma omp parallel for num_threads(threads_for(rows* width))
  for (int64_t i = 0; i < rows; i++) {
    const float* row = logits + i * width;
    float largest = row[0], sum = 0.f;
#pragma omp simd reduction(max : largest)
    for (int64_t j = 0; j < width; j++) largest = row[j] > largest ? row[j] : largest;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < width; j++) sum += exp_(row[j] - largest);
    log_sums[i] = largest + std::log(sum);
    losses[i] = log_sums[i] - row[labels[i]];
  }
}

// dlogits = (softmax - one at the label) * dlosses.
inline void cross_entropy_grad(const float* logits, const int64_t* labels, const float* log_sums, const float* dlosses,
                               float* dlogits, int64_t rows, int64_t width) {
#pragma omp parallel for num_threads(threads_for(rows* width))
  for (int64_t i = 0; i < rows; i++) {
    const float* row = logits + i * width;
    float* out = dlogits + i * width;
    const float log_sum = log_sums[i], scale = dlosses[i];
#pragma omp simd
    for (int64_t j = 0; j < width; j++) out[j] = scale * exp_(row[j] - log_sum);
    out[labels[i]] -= scale;
  }
}

}  // namespace ppvilg
