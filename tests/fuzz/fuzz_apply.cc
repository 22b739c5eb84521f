// libFuzzer target: arbitrary bytes as sizes, indices, steps and factors; the core must refuse or stay inside its buffers.
#include <cstring>
#include <vector>

#include "core.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 8) return 0;
  const std::uint64_t height = 1 + data[0] % 16, width = 1 + data[1] % 64, elements = height * width, rank = data[2];
  const int dtype = data[3] % 4;
  const std::uint64_t count = data[4], row_count = data[5], col_count = data[6];
  const bool bitmap = (data[7] & 1) != 0;
  const std::uint64_t bytes = (elements + 7) / 8;
  std::vector<std::uint8_t> old(elements * 4), out(elements * 4), bits(bytes), a(row_count * rank + 1), b(rank * col_count + 1);
  std::vector<std::int64_t> index(count + 1), rows(row_count + 1), cols(col_count + 1);
  std::vector<std::int16_t> q(count + 1);
  float scales[2] = {dtype == 3 ? 1.0F : 0.5F, 0.5F};
  const std::uint8_t* at = data + 8;
  std::size_t left = size - 8;
  const auto fill = [&](void* target, std::size_t length) {
    const std::size_t taken = length < left ? length : left;
    if (taken != 0) std::memcpy(target, at, taken);
    at += taken;
    left -= taken;
  };
  if ((data[7] & 2) != 0) fill(scales, sizeof(scales));
  for (auto* list : {&index, &rows, &cols}) {
    std::int64_t last = -1;
    for (auto& value : *list) {
      std::int8_t step = 1;
      fill(&step, 1);
      value = last += step;
    }
  }
  fill(q.data(), q.size() * 2);
  fill(bits.data(), bits.size());
  fill(a.data(), a.size());
  fill(b.data(), b.size());
  fill(old.data(), old.size());
  const edgeedit::Sparse sparse{bitmap ? nullptr : index.data(), bitmap ? bits.data() : nullptr, bytes, q.data(), count, scales[0]};
  const edgeedit::LowRank low{rows.data(), row_count, cols.data(), col_count, reinterpret_cast<const std::int8_t*>(a.data()),
                              reinterpret_cast<const std::int8_t*>(b.data()), rank, scales[1]};
  (void)edgeedit::apply(static_cast<edgeedit::Dtype>(dtype), old.data(), out.data(), height, width, (data[7] & 4) != 0 ? nullptr : &sparse,
                        (data[7] & 8) != 0 ? nullptr : &low);
  return 0;
}
