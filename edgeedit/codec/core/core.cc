#include "core.h"

#include <cstring>
#include <limits>

#include "checks.h"
#include "kernels.h"
#include "low_rank_rows.h"
#include "scalar.h"

namespace edgeedit {
namespace {

constexpr std::uint64_t kEnd = std::numeric_limits<std::uint64_t>::max();

// Walks over the sparse positions in ascending order; `position` is kEnd behind the last.
class IndexCursor {
 public:
  explicit IndexCursor(const Sparse& sparse) noexcept : index_(sparse.index), count_(sparse.count) { load(); }
  std::uint64_t position() const noexcept { return position_; }
  std::uint64_t number() const noexcept { return number_; }
  EDGEEDIT_INLINE void advance() noexcept {
    ++number_;
    load();
  }

 private:
  EDGEEDIT_INLINE void load() noexcept { position_ = number_ < count_ ? static_cast<std::uint64_t>(index_[number_]) : kEnd; }
  const std::int64_t* index_;
  std::uint64_t count_;
  std::uint64_t number_ = 0;
  std::uint64_t position_ = kEnd;
};

EDGEEDIT_INLINE std::uint64_t load_word(const std::uint8_t* bitmap, std::uint64_t bytes, std::uint64_t word) noexcept {
  std::uint64_t bits = 0;
  const std::uint64_t start = word * 8;
  const std::uint64_t length = bytes - start < 8 ? bytes - start : 8;
  for (std::uint64_t i = 0; i < length; ++i) bits |= static_cast<std::uint64_t>(bitmap[start + i]) << (8 * i);
  return bits;
}

EDGEEDIT_INLINE std::uint64_t ones(std::uint64_t bits) noexcept {
  bits -= (bits >> 1) & 0x5555555555555555ULL;
  bits = (bits & 0x3333333333333333ULL) + ((bits >> 2) & 0x3333333333333333ULL);
  return (((bits + (bits >> 4)) & 0x0F0F0F0F0F0F0F0FULL) * 0x0101010101010101ULL) >> 56;
}

class BitmapCursor {
 public:
  explicit BitmapCursor(const Sparse& sparse) noexcept : bitmap_(sparse.bitmap), bytes_(sparse.bitmap_bytes) {
    words_ = (bytes_ + 7) / 8;
    bits_ = words_ != 0 ? load_word(bitmap_, bytes_, 0) : 0;
    find();
  }
  std::uint64_t position() const noexcept { return position_; }
  std::uint64_t number() const noexcept { return number_; }
  EDGEEDIT_INLINE void advance() noexcept {
    ++number_;
    bits_ &= bits_ - 1;
    find();
  }

 private:
  EDGEEDIT_INLINE void find() noexcept {
    while (bits_ == 0 && word_ + 1 < words_) bits_ = load_word(bitmap_, bytes_, ++word_);
    position_ = bits_ == 0 ? kEnd : word_ * 64 + lowest_bit(bits_);
  }
  const std::uint8_t* bitmap_;
  std::uint64_t bytes_;
  std::uint64_t words_ = 0;
  std::uint64_t word_ = 0;
  std::uint64_t bits_ = 0;
  std::uint64_t number_ = 0;
  std::uint64_t position_ = kEnd;
};

Status check_sparse(const Sparse& sparse, std::uint64_t elements) noexcept {
  if ((sparse.index == nullptr) == (sparse.bitmap == nullptr) || sparse.q == nullptr || sparse.count == 0) return Status::kBadArgument;
  if (sparse.count > elements) return Status::kTooLarge;
  if (!legal_scale(sparse.step, kMaxScaleBits)) return Status::kBadScale;
  if (sparse.index != nullptr) {
    if (!ascending(sparse.index, sparse.count, elements)) return Status::kBadIndex;
  } else {
    std::uint64_t found = 0;
    const Status status = count_bits(sparse.bitmap, sparse.bitmap_bytes, elements, &found);
    if (status != Status::kOk) return status;
    if (found != sparse.count) return Status::kBadArgument;
  }
  bool fine = true;
  for (std::uint64_t i = 0; i < sparse.count; ++i) {
    const int q = sparse.q[i];
    fine &= (q != 0) & (q <= kMaxSquashStep) & (q >= -kMaxSquashStep);
  }
  return fine ? Status::kOk : Status::kBadStep;
}

// Merges the two ascending walks; every named element is read from `old`, computed, rounded once and written once.
template <class Element, class Cursor>
class Applier {
 public:
  using Stored = typename Element::Stored;
  Applier(const void* old, void* out, Cursor cursor, const Sparse* sparse) noexcept
      : old_(static_cast<const Stored*>(old)), out_(static_cast<Stored*>(out)), cursor_(cursor), sparse_(sparse) {}

  void low_rank(const LowRank& part, std::uint64_t width) noexcept {
    std::int32_t sums[kSumsAtOnce];
    const Kernels::Products products = kernels().products;
    for (std::uint64_t i = 0; i < part.row_count; ++i) {
      const std::uint64_t base = static_cast<std::uint64_t>(part.rows[i]) * width;
      for (std::uint64_t first = 0; first < part.col_count; first += kSumsAtOnce) {
        const std::uint64_t length = part.col_count - first < kSumsAtOnce ? part.col_count - first : kSumsAtOnce;
        products(part.a + i * part.rank, part.b + first, part.rank, part.col_count, length, sums);
        add_sums(base, part.cols + first, length, sums, part.scale);
      }
    }
  }

  // Sparse elements in front of position `end`.
  void sparse_until(std::uint64_t end) noexcept {
    Cursor cursor = cursor_;  // a local copy lives in registers
    bool fine = finite_;
    for (; cursor.position() < end; cursor.advance()) {
      const std::uint64_t at = cursor.position();
      const Stored made = Element::store(Element::load(old_[at]) + change(cursor.number()));
      out_[at] = made;
      fine &= Element::finite(made);
    }
    cursor_ = cursor;
    finite_ = fine;
  }

  bool finite() const noexcept { return finite_; }

 private:
  EDGEEDIT_INLINE float change(std::uint64_t number) const noexcept { return sparse_->step * static_cast<float>(sparse_->q[number]); }

  void add_sums(std::uint64_t base, const std::int64_t* cols, std::uint64_t length, const std::int32_t* sums, float scale) noexcept {
    std::uint64_t j = 0;
    while (j < length) {
      sparse_until(base + static_cast<std::uint64_t>(cols[j]));
      const std::uint64_t next = cursor_.position();
      // Columns in front of the next sparse element need no look at the cursor.
      for (; j < length && base + static_cast<std::uint64_t>(cols[j]) < next; ++j) put(base + static_cast<std::uint64_t>(cols[j]), 0.0F, false, scale, sums[j]);
      if (j < length && base + static_cast<std::uint64_t>(cols[j]) == next) {
        put(next, change(cursor_.number()), true, scale, sums[j]);
        cursor_.advance();
        ++j;
      }
    }
  }

  EDGEEDIT_INLINE void put(std::uint64_t at, float step, bool both, float scale, std::int32_t sum) noexcept {
    float value = Element::load(old_[at]);
    if (both) value = value + step;
    value = value + scale * static_cast<float>(sum);
    const Stored made = Element::store(value);
    out_[at] = made;
    finite_ &= Element::finite(made);
  }

  const Stored* old_;
  Stored* out_;
  Cursor cursor_;
  const Sparse* sparse_;
  bool finite_ = true;
};

template <class Element, class Cursor>
EDGEEDIT_NOINLINE bool run(const void* old, void* out, std::uint64_t width, const Sparse& sparse, const LowRank* low_rank) noexcept {
  Applier<Element, Cursor> applier(old, out, Cursor(sparse), &sparse);
  if (low_rank != nullptr) applier.low_rank(*low_rank, width);
  applier.sparse_until(kEnd);
  return applier.finite();
}

template <class Element>
bool run_element(const void* old, void* out, std::uint64_t width, const Sparse& sparse, const LowRank* low_rank) noexcept {
  if (sparse.bitmap != nullptr) return run<Element, BitmapCursor>(old, out, width, sparse, low_rank);
  return run<Element, IndexCursor>(old, out, width, sparse, low_rank);
}

template <class Cursor>
bool add_codes_at(std::int8_t* codes, Cursor cursor, const std::int16_t* q) noexcept {
  bool fine = true;
  for (; cursor.position() != kEnd; cursor.advance()) {
    const int sum = codes[cursor.position()] + q[cursor.number()];
    fine &= (sum >= -128) & (sum <= 127);
    codes[cursor.position()] = static_cast<std::int8_t>(static_cast<std::uint8_t>(sum));
  }
  return fine;
}

// Codes of an int8 tensor, which `codes` holds already, plus q.
Status add_codes(std::int8_t* codes, const Sparse* sparse, const LowRank* low_rank) noexcept {
  if (low_rank != nullptr || sparse == nullptr || as_bits(sparse->step) != 0x3F800000U) return Status::kBadCode;
  const bool fine = sparse->bitmap != nullptr ? add_codes_at(codes, BitmapCursor(*sparse), sparse->q) : add_codes_at(codes, IndexCursor(*sparse), sparse->q);
  return fine ? Status::kOk : Status::kBadCode;
}

}  // namespace

Status apply(Dtype dtype, const void* old, void* out, std::uint64_t height, std::uint64_t width, const Sparse* sparse,
             const LowRank* low_rank) noexcept {
  if (old == nullptr || out == nullptr || height == 0 || width == 0 || (sparse == nullptr && low_rank == nullptr)) return Status::kBadArgument;
  if (dtype != Dtype::kFloat32 && dtype != Dtype::kFloat16 && dtype != Dtype::kBfloat16 && dtype != Dtype::kInt8) return Status::kBadArgument;
  if (height > kMaxElements || width > kMaxElements / height) return Status::kTooLarge;
  const std::uint64_t elements = height * width;
  Status status = sparse != nullptr ? check_sparse(*sparse, elements) : Status::kOk;
  if (status == Status::kOk && low_rank != nullptr) status = check_low_rank(*low_rank, height, width);
  if (status != Status::kOk) return status;
  std::memcpy(out, old, static_cast<std::size_t>(elements * item_size(dtype)));
  if (dtype == Dtype::kInt8) return add_codes(static_cast<std::int8_t*>(out), sparse, low_rank);
  const FloatEnvironment plain;
  if (sparse == nullptr) return add_low_rank(dtype, old, out, width, *low_rank) ? Status::kOk : Status::kNotFinite;
  bool finite = false;
  switch (dtype) {
    case Dtype::kFloat32: finite = run_element<Single>(old, out, width, *sparse, low_rank); break;
    case Dtype::kFloat16: finite = run_element<Half>(old, out, width, *sparse, low_rank); break;
    case Dtype::kBfloat16: finite = run_element<Bfloat16>(old, out, width, *sparse, low_rank); break;
    case Dtype::kInt8: break;
  }
  return finite ? Status::kOk : Status::kNotFinite;
}

Status count_bits(const std::uint8_t* bitmap, std::uint64_t bytes, std::uint64_t elements, std::uint64_t* count) noexcept {
  if (bitmap == nullptr || count == nullptr || elements == 0) return Status::kBadArgument;
  if (elements > kMaxElements) return Status::kTooLarge;
  if (bytes != (elements + 7) / 8) return Status::kBadArgument;
  if (elements % 8 != 0 && (bitmap[bytes - 1] >> (elements % 8)) != 0) return Status::kBadIndex;
  std::uint64_t found = 0;
  for (std::uint64_t word = 0; word * 8 < bytes; ++word) found += ones(load_word(bitmap, bytes, word));
  *count = found;
  return Status::kOk;
}

Status expand_bitmap(const std::uint8_t* bitmap, std::uint64_t bytes, std::int64_t* index, std::uint64_t count) noexcept {
  if (bitmap == nullptr || (index == nullptr && count != 0)) return Status::kBadArgument;
  if (bytes > kMaxElements / 8) return Status::kTooLarge;
  std::uint64_t number = 0;
  for (std::uint64_t word = 0; word * 8 < bytes; ++word) {
    for (std::uint64_t bits = load_word(bitmap, bytes, word); bits != 0; bits &= bits - 1) {
      if (number == count) return Status::kBadArgument;
      index[number++] = static_cast<std::int64_t>(word * 64 + lowest_bit(bits));
    }
  }
  return number == count ? Status::kOk : Status::kBadArgument;
}

std::uint32_t float_from_half(std::uint16_t bits) noexcept { return widen_half(bits); }
std::uint16_t half_from_float(std::uint32_t bits) noexcept { return narrow_half(bits); }
std::uint32_t float_from_bfloat16(std::uint16_t bits) noexcept { return static_cast<std::uint32_t>(bits) << 16; }
std::uint16_t bfloat16_from_float(std::uint32_t bits) noexcept { return narrow_bfloat16(bits); }

}  // namespace edgeedit
