// Products of small matrices whose rows lie anywhere. A matrix library copies its operands first, which costs as much as such a
// product itself.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

namespace ppvilg {

// A vector register, and a block of a result that fits the registers: kRows rows of kWide vectors.
#ifdef __AVX512F__
constexpr int kLanes = 16, kRows = 6, kWide = 4;
#else
constexpr int kLanes = 8, kRows = 4, kWide = 2;
#endif
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Indices __attribute__((vector_size(kLanes * sizeof(int32_t))));

inline Vector load(const float* x) {
  Vector v;
  std::memcpy(&v, x, sizeof v);
  return v;
}

inline void store(const Vector& v, float* x) { std::memcpy(x, &v, sizeof v); }

// Rows at equal distances, and rows of a tensor at given slots; `rows(i)` is the address of row i.
template <typename T>
struct Matrix {
  T* start;
  int64_t distance;
  T* operator()(int64_t i) const { return start + i * distance; }
};

template <typename T>
struct SlotRows {
  T* start;
  int64_t distance;
  const int64_t* slots;
  T* operator()(int64_t i) const { return start + slots[i] * distance; }
};

template <int rows, int wide, typename A, typename B, typename C>
inline void product_block(int64_t i, int64_t j, int64_t inner, A a, int64_t a_step, B b, C c, bool add) {
  const float* left[rows];
  Vector sums[rows][wide];
  for (int r = 0; r < rows; r++) {
    left[r] = a(i + r);
    for (int w = 0; w < wide; w++) sums[r][w] = add ? load(c(i + r) + j + w * kLanes) : Vector{};
  }
  for (int64_t l = 0; l < inner; l++) {
    const float* right = b(l) + j;
    Vector v[wide];
    for (int w = 0; w < wide; w++) v[w] = load(right + w * kLanes);
    for (int r = 0; r < rows; r++)
      for (int w = 0; w < wide; w++) sums[r][w] += left[r][l * a_step] * v[w];
  }
  for (int r = 0; r < rows; r++)
    for (int w = 0; w < wide; w++) store(sums[r][w], c(i + r) + j + w * kLanes);
}

// All rows of `wide` vectors of columns: blocks of kRows rows, then one block of those that are left over.
template <int wide, typename... Operands>
inline void product_columns(int64_t rows, Operands... operands) {
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) product_block<kRows, wide>(i, operands...);
  switch (rows - i) {
    case 5:
      return product_block<5, wide>(i, operands...);
    case 4:
      return product_block<4, wide>(i, operands...);
    case 3:
      return product_block<3, wide>(i, operands...);
    case 2:
      return product_block<2, wide>(i, operands...);
    case 1:
      return product_block<1, wide>(i, operands...);
  }
}

// c [rows, columns] = a b + (add ? c : 0), a [rows, inner] with `a_step` between the values of a row, b [inner, columns].
template <typename A, typename B, typename C>
void product(int64_t rows, int64_t columns, int64_t inner, A a, int64_t a_step, B b, C c, bool add) {
  int64_t j = 0;
  for (; j + kWide * kLanes <= columns; j += kWide * kLanes)
    product_columns<kWide>(rows, j, inner, a, a_step, b, c, add);
  for (; j + 2 * kLanes <= columns; j += 2 * kLanes) product_columns<2>(rows, j, inner, a, a_step, b, c, add);
  for (; j + kLanes <= columns; j += kLanes) product_columns<1>(rows, j, inner, a, a_step, b, c, add);
  for (int64_t i = 0; i < rows && j < columns; i++)
    for (int64_t k = j; k < columns; k++) {
      float sum = add ? c(i)[k] : 0.f;
      for (int64_t l = 0; l < inner; l++) sum += a(i)[l * a_step] * b(l)[k];
      c(i)[k] = sum;
    }
}

// Swaps rows and columns of a square: in turn of its quarters' blocks of 1, 2, 4, ... values.
template <int size>
inline void swap_blocks(Vector (&rows)[kLanes]) {
  Indices low, high;
  for (int l = 0; l < kLanes; l++) {
    low[l] = l & size ? kLanes + (l ^ size) : l;
    high[l] = l & size ? kLanes + l : l ^ size;
  }
  for (int i = 0; i < kLanes; i++)
    if (!(i & size)) {
      const Vector first = rows[i], second = rows[i | size];
      rows[i] = __builtin_shuffle(first, second, low);
      rows[i | size] = __builtin_shuffle(first, second, high);
    }
  if constexpr (2 * size < kLanes) swap_blocks<2 * size>(rows);
}

// Writes x [rows, columns] as [columns, distance], where distance >= rows is a multiple of kLanes; zeros after the rows.
template <typename X>
void transpose(int64_t rows, int64_t columns, X x, float* result, int64_t distance) {
  for (int64_t i = 0; i < rows; i += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, rows - i);
    int64_t j = 0;
    for (; j + kLanes <= columns; j += kLanes) {
      Vector square[kLanes];
      for (int r = 0; r < kLanes; r++) square[r] = r < count ? load(x(i + r) + j) : Vector{};
      swap_blocks<1>(square);
      for (int r = 0; r < kLanes; r++) store(square[r], result + (j + r) * distance + i);
    }
    for (; j < columns; j++)
      for (int64_t r = 0; r < kLanes; r++) result[j * distance + i + r] = r < count ? x(i + r)[j] : 0.f;
  }
}

}  // namespace ppvilg
