// softmax(q k^T / sqrt(width)) v where each query sees the keys of a table, and its gradients.
//
// q, k, v and the result are [batch, length, heads, width] and are read and written in place. Each thread takes one head of
// one sequence at a time, so that no two write to the same numbers. The weights are not kept: the backward pass works them
// out again from the logarithm of each query's sum (Dao et al. 2022).
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "product.h"
#include "vector.h"

namespace ppvilg {

// Some queries and the keys that any of them sees.
struct Tile {
  int64_t first_query, queries, first_key, keys;  // in Table::slots
  int64_t mask;  // the first of queries x keys in Table::mask, or -1: each query sees each key
};

struct Table {
  const Tile* tiles;
  const int64_t* ranges;  // [masks + 1]: the tiles of each mask
  int64_t masks;
  const int64_t* slots;
  const uint8_t* mask;
};

struct Shape {
  int64_t batch, length, heads, width;
};

constexpr float kHidden = -1e30f;

inline int64_t padded(int64_t keys) { return (keys + kLanes - 1) / kLanes * kLanes; }

// What a thread needs for the largest tile.
struct Scratch {
  std::vector<float> scores, other, transposed;
  std::vector<uint8_t> real;

  Scratch(const Table& table, int64_t width) {
    int64_t largest = 0, keys = 0;
    for (const Tile* tile = table.tiles; tile < table.tiles + table.ranges[table.masks]; tile++) {
      largest = std::max(largest, tile->queries * padded(tile->keys));
      keys = std::max(keys, padded(tile->keys));
    }
    scores.resize(largest);
    other.resize(largest);
    transposed.resize(width * keys);
    real.resize(keys);
  }
};

// One tile of one head of one sequence.
struct Part {
  const Tile& tile;
  const int64_t *queries, *keys;  // slots
  const uint8_t* mask;            // [queries, keys], or null
  int64_t distance;               // between the rows of scores
  int64_t start, row;             // of slot 0 in the tensors, and between slots

  template <typename T>
  SlotRows<T> query_rows(T* x) const {
    return {x + start, row, queries};
  }
  template <typename T>
  SlotRows<T> key_rows(T* x) const {
    return {x + start, row, keys};
  }

  // scores [queries, keys] = (rows of x at the queries) (rows of y at the keys)^T.
  void products(const float* x, const float* y, int64_t width, float* scores, Scratch& scratch) const {
    float* transposed = scratch.transposed.data();
    transpose(tile.keys, width, key_rows(y), transposed, distance);
    product(tile.queries, distance, width, query_rows(x), 1, Matrix<const float>{transposed, distance},
            Matrix<float>{scores, distance}, false);
  }

  // Scales the scores of query i and sets those of keys that it does not see to kHidden.
  void hide(int64_t i, const uint8_t* real, float scale, float* scores) const {
    if (mask) {
      const uint8_t* seen = mask + i * tile.keys;
#pragma omp simd
      for (int64_t j = 0; j < tile.keys; j++) scores[j] = seen[j] & real[j] ? scale * scores[j] : kHidden;
    } else {
#pragma omp simd
      for (int64_t j = 0; j < tile.keys; j++) scores[j] = real[j] ? scale * scores[j] : kHidden;
    }
  }
};

// Calls function(part, log_sums, scratch) for every tile of every head of every sequence, where `log_sums` [length] are the
// head's and scratch.real says which of the tile's keys are no padding. `key_mask` is [batch, length].
template <typename Function>
void for_each_part(const Shape& shape, const Table& table, const bool* key_mask, float* log_sums, Function function) {
  const int64_t count = shape.batch * shape.heads;
  const int threads = std::min<int64_t>(threads_for(count * shape.length * shape.width), std::max<int64_t>(count, 1));
  std::atomic<int64_t> next{0};  // the masks' work differs; paddle's OpenMP library does not share out loops dynamically
#pragma omp parallel num_threads(threads)
  {
    Scratch scratch(table, shape.width);
    for (int64_t head = next++; head < count; head = next++) {
      const int64_t sequence = head / shape.heads, mask = sequence * table.masks / shape.batch;
      const int64_t row = shape.heads * shape.width;
      const int64_t start = sequence * shape.length * row + head % shape.heads * shape.width;
      const bool* real = key_mask + sequence * shape.length;
      for (int64_t t = table.ranges[mask]; t < table.ranges[mask + 1]; t++) {
        const Tile& tile = table.tiles[t];
        const Part part{tile,  table.slots + tile.first_query,
                        table.slots + tile.first_key, tile.mask < 0 ? nullptr : table.mask + tile.mask,
                        padded(tile.keys), start, row};
        for (int64_t j = 0; j < tile.keys; j++) scratch.real[j] = real[part.keys[j]];
        function(part, log_sums + head * shape.length, scratch);
      }
    }
  }
}

// Keeps log_sums [batch, heads, length], -kHidden where a query sees no key.
inline void attention(const float* q, const float* k, const float* v, const Table& table, const bool* key_mask, float* out,
                      float* log_sums, const Shape& shape) {
  const int64_t width = shape.width;
  const float scale = 1.f / std::sqrt(static_cast<float>(width));
  for_each_part(shape, table, key_mask, log_sums, [=](const Part& part, float* logs, Scratch& scratch) {
    const int64_t queries = part.tile.queries, keys = part.tile.keys;
    const Matrix<float> scores{scratch.scores.data(), part.distance};
    part.products(q, k, width, scores.start, scratch);
    for (int64_t i = 0; i < queries; i++) {
      float* row = scores(i);
      part.hide(i, scratch.real.data(), scale, row);
      float largest = kHidden, sum = 0.f;
#pragma omp simd reduction(max : largest)
      for (int64_t j = 0; j < keys; j++) largest = row[j] > largest ? row[j] : largest;
      const float shift = largest > kHidden ? largest : 0.f;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < keys; j++) {
        row[j] = exp_(row[j] - shift);
        sum += row[j];
      }
      const float share = sum == 0.f ? 0.f : 1.f / sum;
#pragma omp simd
      for (int64_t j = 0; j < keys; j++) row[j] *= share;
      logs[part.queries[i]] = sum == 0.f ? -kHidden : shift + std::log(sum);
    }
    product(queries, width, keys, scores, 1, part.key_rows(v), part.query_rows(out), false);
  });
}

// With weights p and dp = dout v^T: ds = p (dp - sum of out dout) / sqrt(width), dq = ds k, dk = ds^T q, dv = p^T dout.
// dk and dv have to be zeros.
inline void attention_grad(const float* q, const float* k, const float* v, const Table& table, const bool* key_mask,
                           const float* out, float* log_sums, const float* dout, float* dq, float* dk, float* dv,
                           const Shape& shape) {
  const int64_t width = shape.width;
  const float scale = 1.f / std::sqrt(static_cast<float>(width));
  for_each_part(shape, table, key_mask, log_sums, [=](const Part& part, const float* logs, Scratch& scratch) {
    const int64_t queries = part.tile.queries, keys = part.tile.keys;
    const Matrix<float> weights{scratch.scores.data(), part.distance}, gradients{scratch.other.data(), part.distance};
    part.products(q, k, width, weights.start, scratch);
    part.products(dout, v, width, gradients.start, scratch);
    for (int64_t i = 0; i < queries; i++) {
      float *weight = weights(i), *gradient = gradients(i);
      const float *result = part.query_rows(out)(i), *of_result = part.query_rows(dout)(i);
      const float log_sum = logs[part.queries[i]];
      part.hide(i, scratch.real.data(), scale, weight);
      float along = 0.f;
#pragma omp simd reduction(+ : along)
      for (int64_t l = 0; l < width; l++) along += result[l] * of_result[l];
#pragma omp simd
      for (int64_t j = 0; j < keys; j++) {
        weight[j] = exp_(weight[j] - log_sum);
        gradient[j] = weight[j] * (gradient[j] - along) * scale;
      }
    }
    product(queries, width, keys, gradients, 1, part.key_rows(k), part.query_rows(dq), false);
    const Matrix<float> weight_columns{weights.start, 1}, gradient_columns{gradients.start, 1};
    product(keys, width, queries, gradient_columns, part.distance, part.query_rows(q), part.key_rows(dk), true);
    product(keys, width, queries, weight_columns, part.distance, part.query_rows(dout), part.key_rows(dv), true);
  });
}

}  // namespace ppvilg
