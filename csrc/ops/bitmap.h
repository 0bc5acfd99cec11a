#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace recengine {

// Which of some rows are meant: bit row % 64 of word row / 64; bits behind the last row are 0.
using Bitmap = std::vector<uint64_t>;

constexpr int64_t kBitmapWord = 64;

inline int64_t bitmap_words(int64_t rows) { return (rows + kBitmapWord - 1) / kBitmapWord; }

// Without a bitmap, all rows are meant.
inline bool is_set(const uint64_t* words, int64_t row) {
  return words == nullptr || (words[row / kBitmapWord] >> (row % kBitmapWord) & 1) != 0;
}

// How many bits are set, without the instruction for it, which code for every CPU may not use.
inline int64_t count_set(uint64_t bits) {
  constexpr uint64_t kEveryByte = ~uint64_t{0} / 255;
  bits -= bits >> 1 & kEveryByte * 0x55;
  bits = (bits & kEveryByte * 0x33) + (bits >> 2 & kEveryByte * 0x33);
  bits = (bits + (bits >> 4)) & kEveryByte * 0x0f;
  return static_cast<int64_t>(bits * kEveryByte >> 56);
}

inline void set_row(Bitmap& bitmap, int64_t row) {
  bitmap[static_cast<size_t>(row / kBitmapWord)] |= uint64_t{1} << (row % kBitmapWord);
}

inline void clear_row(Bitmap& bitmap, int64_t row) {
  bitmap[static_cast<size_t>(row / kBitmapWord)] &= ~(uint64_t{1} << (row % kBitmapWord));
}

// Makes a bitmap of `before` rows one of `rows`, the new ones set.
inline void grow(Bitmap& bitmap, int64_t before, int64_t rows) {
  bitmap.resize(static_cast<size_t>(bitmap_words(rows)));
  for (int64_t row = before; row < rows; ++row) set_row(bitmap, row);
}

inline Bitmap all_set(int64_t rows) {
  Bitmap bitmap(static_cast<size_t>(bitmap_words(rows)), ~uint64_t{0});
  if (rows % kBitmapWord != 0) bitmap.back() >>= kBitmapWord - rows % kBitmapWord;
  return bitmap;
}

// A bitmap that snapshots share; null means all rows.
using SharedBitmap = std::shared_ptr<const Bitmap>;

inline const uint64_t* words_of(const SharedBitmap& bitmap) {
  return bitmap == nullptr ? nullptr : bitmap->data();
}

inline Bitmap copy_of(const SharedBitmap& bitmap, int64_t rows) {
  return bitmap == nullptr ? all_set(rows) : *bitmap;
}

}  // namespace recengine
