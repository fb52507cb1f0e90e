// softmax(q k^T / sqrt(width)) v where each query sees the keys of a table, and its gradients.
//
// q, k, v and the result are [batch, length, heads, width] and are read and written in place. Each thread takes one head of one
// sequence at a time, so that no two write to the same numbers. The weights are not kept: the backward pass works them out again
// from the logarithm of each query's sum (Dao et al. 2022).
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "vector.h"

namespace ppvilg {

// Queries with equal distances between their slots, and the keys that some of them see.
struct Tile {
  int64_t first_query, query_step, queries;
  int64_t first_key, keys;  // in Table::keys
  int64_t key_step;         // where the keys' slots have equal distances, else 0
  int64_t mask;             // first of queries x keys in Table::mask, or -1: each query sees each key
};

struct Table {
  const Tile* tiles;
  const int64_t* ranges;  // [masks + 1]: the tiles of each mask
  int64_t masks;
  const int64_t* keys;  // slots
  const uint8_t* mask;
};

struct Shape {
  int64_t batch, length, heads, width;
  int64_t row() const { return heads * width; }  // the distance between slots
};

constexpr float kHidden = -1e30f;

// c [m, n] = scale * a b + (add ? c : 0), row after row at distances lda, ldb, ldc; a and b may be given transposed.
inline void product(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, float scale, const float* a,
                    int64_t lda, const float* b, int64_t ldb, bool add, float* c, int64_t ldc) {
  if (blas().gemm) {
    constexpr int row_major = 101, no = 111, yes = 112;
    blas().gemm(row_major, transpose_a ? yes : no, transpose_b ? yes : no, m, n, k, scale, a, lda, b, ldb, add, c, ldc);
    return;
  }
  const int64_t a_row = transpose_a ? 1 : lda, a_column = transpose_a ? lda : 1;
  const int64_t b_row = transpose_b ? 1 : ldb, b_column = transpose_b ? ldb : 1;
  for (int64_t i = 0; i < m; i++)
    for (int64_t j = 0; j < n; j++) {
      float sum = 0.f;
      for (int64_t l = 0; l < k; l++) sum += a[i * a_row + l * a_column] * b[l * b_row + j * b_column];
      c[i * ldc + j] = scale * sum + (add ? c[i * ldc + j] : 0.f);
    }
}

// One thread's memory for the largest tile.
struct Scratch {
  std::vector<float> scores, other, keys, values, key_bias;

  Scratch(const Table& table, int64_t width) {
    int64_t largest = 0, most = 0;
    for (const Tile* t = table.tiles; t < table.tiles + table.ranges[table.masks]; t++) {
      largest = std::max(largest, t->queries * t->keys);
      most = std::max(most, t->keys);
    }
    scores.resize(largest);
    other.resize(largest);
    keys.resize(most * width);
    values.resize(most * width);
    key_bias.resize(most);
  }
};

// The rows of the tile's keys: where they are if they stand at equal distances, else copied into `buffer`.
inline const float* rows_of(const Tile& tile, const Table& table, const float* x, const Shape& shape, float* buffer,
                            int64_t* distance) {
  const int64_t* slots = table.keys + tile.first_key;
  *distance = tile.key_step ? tile.key_step * shape.row() : shape.width;
  if (tile.key_step) return x + slots[0] * shape.row();
  for (int64_t j = 0; j < tile.keys; j++) std::copy_n(x + slots[j] * shape.row(), shape.width, buffer + j * shape.width);
  return buffer;
}

// dx of the tile's keys += a^T b, where a is [queries, keys] and b has the queries' rows.
inline void add_to_rows(const Tile& tile, const Table& table, const float* a, const float* b, int64_t b_distance, float* dx,
                        const Shape& shape, float* buffer) {
  const int64_t* slots = table.keys + tile.first_key;
  const int64_t width = shape.width;
  if (tile.key_step) {
    product(true, false, tile.keys, width, tile.queries, 1.f, a, tile.keys, b, b_distance, true, dx + slots[0] * shape.row(),
            tile.key_step * shape.row());
    return;
  }
  product(true, false, tile.keys, width, tile.queries, 1.f, a, tile.keys, b, b_distance, false, buffer, width);
  for (int64_t j = 0; j < tile.keys; j++) {
    float* row = dx + slots[j] * shape.row();
#pragma omp simd
    for (int64_t l = 0; l < width; l++) row[l] += buffer[j * width + l];
  }
}

// Sets what query i may not see of its scores to kHidden; `key_bias` is 0 or kHidden for each key.
inline void hide(const Tile& tile, const Table& table, int64_t i, const float* key_bias, float* scores) {
  if (tile.mask < 0) {
#pragma omp simd
    for (int64_t j = 0; j < tile.keys; j++) scores[j] = key_bias[j] < 0.f ? kHidden : scores[j];
    return;
  }
  const uint8_t* mask = table.mask + tile.mask + i * tile.keys;
#pragma omp simd
  for (int64_t j = 0; j < tile.keys; j++) scores[j] = mask[j] == 0 || key_bias[j] < 0.f ? kHidden : scores[j];
}

inline void look_up_key_bias(const Tile& tile, const Table& table, const bool* key_mask, float* key_bias) {
  const int64_t* slots = table.keys + tile.first_key;
  for (int64_t j = 0; j < tile.keys; j++) key_bias[j] = key_mask[slots[j]] ? 0.f : kHidden;
}

// Calls function(sequence, head, scratch) for every head of every sequence.
template <typename Function>
void for_each_head(const Shape& shape, const Table& table, Function function) {
  const int64_t count = shape.batch * shape.heads;
  const int threads = std::min<int64_t>(threads_for(count * shape.length * shape.width), std::max<int64_t>(count, 1));
  std::atomic<int64_t> next{0};  // the masks' work differs; paddle's OpenMP library does not share out loops dynamically
#pragma omp parallel num_threads(threads)
  {
    const int before = blas().set_threads ? blas().set_threads(1) : 0;
    Scratch scratch(table, shape.width);
    for (int64_t i = next++; i < count; i = next++) function(i / shape.heads, i % shape.heads, scratch);
    if (blas().set_threads) blas().set_threads(before);
  }
}

// `key_mask` is [batch, length]; keeps log_sums [batch, heads, length], -kHidden where a query sees no key.
inline void attention(const float* q, const float* k, const float* v, const Table& table, const bool* key_mask, float* out,
                      float* log_sums, const Shape& shape) {
  const int64_t width = shape.width, row = shape.row();
  const float scale = 1.f / std::sqrt(static_cast<float>(width));
  for_each_head(shape, table, [&](int64_t sequence, int64_t head, Scratch& scratch) {
    const int64_t start = sequence * shape.length * row + head * width;
    const int64_t mask = sequence * table.masks / shape.batch;
    float* logs = log_sums + (sequence * shape.heads + head) * shape.length;
    for (int64_t t = table.ranges[mask]; t < table.ranges[mask + 1]; t++) {
      const Tile& tile = table.tiles[t];
      int64_t key_distance, value_distance;
      const float* keys = rows_of(tile, table, k + start, shape, scratch.keys.data(), &key_distance);
      const float* values = rows_of(tile, table, v + start, shape, scratch.values.data(), &value_distance);
      const int64_t first = start + tile.first_query * row, distance = tile.query_step * row;
      look_up_key_bias(tile, table, key_mask + sequence * shape.length, scratch.key_bias.data());
      product(false, true, tile.queries, tile.keys, width, scale, q + first, distance, keys, key_distance, false,
              scratch.scores.data(), tile.keys);
      for (int64_t i = 0; i < tile.queries; i++) {
        float* scores = scratch.scores.data() + i * tile.keys;
        hide(tile, table, i, scratch.key_bias.data(), scores);
        float largest = kHidden, sum = 0.f;
#pragma omp simd reduction(max : largest)
        for (int64_t j = 0; j < tile.keys; j++) largest = scores[j] > largest ? scores[j] : largest;
        const float shift = largest > kHidden ? largest : 0.f;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < tile.keys; j++) {
          scores[j] = exp_(scores[j] - shift);
          sum += scores[j];
        }
        const float share = sum == 0.f ? 0.f : 1.f / sum;
#pragma omp simd
        for (int64_t j = 0; j < tile.keys; j++) scores[j] *= share;
        logs[tile.first_query + i * tile.query_step] = sum == 0.f ? -kHidden : shift + std::log(sum);
      }
      product(false, false, tile.queries, width, tile.keys, 1.f, scratch.scores.data(), tile.keys, values, value_distance,
              false, out + first, distance);
    }
  });
}

// With weights p and dp = dout v^T: ds = p (dp - sum of out dout) / sqrt(width), dq = ds k, dk = ds^T q, dv = p^T dout.
// dk and dv have to be zeros.
inline void attention_grad(const float* q, const float* k, const float* v, const Table& table, const bool* key_mask,
                           const float* out, const float* log_sums, const float* dout, float* dq, float* dk, float* dv,
                           const Shape& shape) {
  const int64_t width = shape.width, row = shape.row();
  const float scale = 1.f / std::sqrt(static_cast<float>(width));
  for_each_head(shape, table, [&](int64_t sequence, int64_t head, Scratch& scratch) {
    const int64_t start = sequence * shape.length * row + head * width;
    const int64_t mask = sequence * table.masks / shape.batch;
    const float* logs = log_sums + (sequence * shape.heads + head) * shape.length;
    for (int64_t t = table.ranges[mask]; t < table.ranges[mask + 1]; t++) {
      const Tile& tile = table.tiles[t];
      int64_t key_distance, value_distance;
      const float* keys = rows_of(tile, table, k + start, shape, scratch.keys.data(), &key_distance);
      const float* values = rows_of(tile, table, v + start, shape, scratch.values.data(), &value_distance);
      const int64_t first = start + tile.first_query * row, distance = tile.query_step * row;
      look_up_key_bias(tile, table, key_mask + sequence * shape.length, scratch.key_bias.data());
      product(false, true, tile.queries, tile.keys, width, scale, q + first, distance, keys, key_distance, false,
              scratch.scores.data(), tile.keys);
      product(false, true, tile.queries, tile.keys, width, 1.f, dout + first, distance, values, value_distance, false,
              scratch.other.data(), tile.keys);
      for (int64_t i = 0; i < tile.queries; i++) {
        float *weights = scratch.scores.data() + i * tile.keys, *gradients = scratch.other.data() + i * tile.keys;
        const float *result = out + first + i * distance, *gradient = dout + first + i * distance;
        const float log_sum = logs[tile.first_query + i * tile.query_step];
        hide(tile, table, i, scratch.key_bias.data(), weights);
        float along = 0.f;
#pragma omp simd reduction(+ : along)
        for (int64_t l = 0; l < width; l++) along += result[l] * gradient[l];
#pragma omp simd
        for (int64_t j = 0; j < tile.keys; j++) {
          weights[j] = exp_(weights[j] - log_sum);
          gradients[j] = weights[j] * (gradients[j] - along) * scale;
        }
      }
      product(false, false, tile.queries, width, tile.keys, 1.f, scratch.other.data(), tile.keys, keys, key_distance, false,
              dq + first, distance);
      // The copies of keys and values are not needed any more.
      add_to_rows(tile, table, scratch.other.data(), q + first, distance, dk + start, shape, scratch.keys.data());
      add_to_rows(tile, table, scratch.scores.data(), dout + first, distance, dv + start, shape, scratch.values.data());
    }
  });
}

}  // namespace ppvilg
