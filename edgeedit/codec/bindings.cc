// Python face of the core: checks that lengths agree, releases the GIL, returns status codes.  Arrays are never converted or
// copied on the way in; a wrong dtype or a read-only target is a TypeError before anything runs.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include <nanobind/stl/optional.h>

#include "core.h"
#include "density.h"
#include "kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T>
using In = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

struct SparseInput {
  std::optional<In<std::int64_t>> index;
  std::optional<In<std::uint8_t>> bitmap;
  In<std::int16_t> q;
  float step;
};

struct LowRankInput {
  In<std::int64_t> rows;
  In<std::int64_t> cols;
  In<std::int8_t> a;
  In<std::int8_t> b;
  std::uint64_t rank;
  float scale;
};

constexpr int kBadArgument = static_cast<int>(edgeedit::Status::kBadArgument);

// False when the factors do not have the lengths that rank, rows and columns say.
bool low_rank_of(const LowRankInput& part, edgeedit::LowRank& made) {
  if (part.rank == 0 || part.rank > edgeedit::kMaxRank) return false;
  if (part.a.size() != part.rows.size() * part.rank || part.b.size() != part.cols.size() * part.rank) return false;
  made = {part.rows.data(), part.rows.size(), part.cols.data(), part.cols.size(), part.a.data(), part.b.data(), part.rank, part.scale};
  return true;
}

int apply(int dtype, const In<std::uint8_t>& old, const Out<std::uint8_t>& out, std::uint64_t height, std::uint64_t width,
          const std::optional<SparseInput>& sparse, const std::optional<LowRankInput>& low_rank) {
  const std::uint64_t item = edgeedit::item_size(static_cast<edgeedit::Dtype>(dtype));
  if (height == 0 || width == 0 || height > edgeedit::kMaxElements || width > edgeedit::kMaxElements / height) return kBadArgument;
  if (old.size() != height * width * item || out.size() != old.size()) return kBadArgument;
  edgeedit::Sparse sparse_part{};
  if (sparse) {
    if (sparse->index && sparse->index->size() != sparse->q.size()) return kBadArgument;
    sparse_part = {sparse->index ? sparse->index->data() : nullptr,
                   sparse->bitmap ? sparse->bitmap->data() : nullptr,
                   sparse->bitmap ? sparse->bitmap->size() : 0,
                   sparse->q.data(),
                   sparse->q.size(),
                   sparse->step};
  }
  edgeedit::LowRank low_rank_part{};
  if (low_rank && !low_rank_of(*low_rank, low_rank_part)) return kBadArgument;
  const nb::gil_scoped_release release;
  return static_cast<int>(edgeedit::apply(static_cast<edgeedit::Dtype>(dtype), old.data(), out.data(), height, width,
                                          sparse ? &sparse_part : nullptr, low_rank ? &low_rank_part : nullptr));
}

int expand_bitmap(const In<std::uint8_t>& bitmap, const Out<std::int64_t>& index) {
  const nb::gil_scoped_release release;
  return static_cast<int>(edgeedit::expand_bitmap(bitmap.data(), bitmap.size(), index.data(), index.size()));
}

std::pair<int, std::uint64_t> density_count(const In<std::uint8_t>& data, std::uint64_t rows, std::uint64_t cols) {
  std::uint64_t count = 0;
  const auto status = edgeedit::density_count(data.data(), data.size(), rows, cols, &count);
  return {static_cast<int>(status), count};
}

int density_decode(const In<std::uint8_t>& data, std::uint64_t rows, std::uint64_t cols, const Out<std::uint8_t>& bitmap,
                   const Out<std::int16_t>& q, const Out<std::uint8_t>& workspace) {
  if (edgeedit::density_workspace(rows, cols) == 0 || bitmap.size() != (rows * cols + 7) / 8) return kBadArgument;
  const nb::gil_scoped_release release;
  return static_cast<int>(edgeedit::density_decode(data.data(), data.size(), rows, cols, bitmap.data(), q.data(), q.size(), workspace.data(),
                                                   workspace.size()));
}

int density_apply(int dtype, const In<std::uint8_t>& old, const Out<std::uint8_t>& out, std::uint64_t rows, std::uint64_t cols,
                  const In<std::uint8_t>& section, double step, const std::optional<LowRankInput>& low_rank, const Out<std::uint8_t>& workspace) {
  const std::uint64_t item = edgeedit::item_size(static_cast<edgeedit::Dtype>(dtype));
  if (edgeedit::density_workspace(rows, cols) == 0 || old.size() != rows * cols * item || out.size() != old.size()) return kBadArgument;
  edgeedit::LowRank low_rank_part{};
  if (low_rank && !low_rank_of(*low_rank, low_rank_part)) return kBadArgument;
  const edgeedit::CodedSparse coded{section.data(), section.size(), static_cast<float>(step)};
  const nb::gil_scoped_release release;
  return static_cast<int>(edgeedit::density_apply(static_cast<edgeedit::Dtype>(dtype), old.data(), out.data(), rows, cols, coded,
                                                  low_rank ? &low_rank_part : nullptr, workspace.data(), workspace.size()));
}

std::pair<int, std::uint64_t> density_encode(const In<std::int64_t>& index, const In<std::int16_t>& q, std::uint64_t rows, std::uint64_t cols,
                                             const In<std::uint8_t>& row_class, const In<std::uint8_t>& col_class,
                                             const Out<std::uint8_t>& out) {
  if (index.size() != q.size() || row_class.size() != rows || col_class.size() != cols) return {kBadArgument, 0};
  std::uint64_t size = 0;
  const nb::gil_scoped_release release;
  const auto status = edgeedit::density_encode(index.data(), q.data(), q.size(), rows, cols, row_class.data(), col_class.data(), out.data(),
                                               out.size(), &size);
  return {static_cast<int>(status), size};
}

// All lengths are checked before the first byte is written.
int copy_tensors(const std::vector<std::pair<Out<std::uint8_t>, In<std::uint8_t>>>& pairs) {
  for (const auto& pair : pairs) {
    if (pair.first.size() != pair.second.size()) return kBadArgument;
  }
  const nb::gil_scoped_release release;
  // memmove: a caller may hand in the same memory twice.
  for (const auto& pair : pairs) std::memmove(pair.first.data(), pair.second.data(), pair.second.size());
  return 0;
}

template <class From, class To, To (*convert)(From) noexcept>
bool convert_all(const In<From>& source, const Out<To>& target) {
  if (source.size() != target.size()) return false;
  const nb::gil_scoped_release release;
  for (std::size_t i = 0; i < source.size(); ++i) target.data()[i] = convert(source.data()[i]);
  return true;
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "C++ core of the codec room; use edgeedit.codec.apply and .sections instead.";
  nb::class_<SparseInput>(m, "SparseInput")
      .def(
          "__init__",
          [](SparseInput* self, std::optional<In<std::int64_t>> index, std::optional<In<std::uint8_t>> bitmap, In<std::int16_t> q, double step) {
            new (self) SparseInput{std::move(index), std::move(bitmap), std::move(q), static_cast<float>(step)};
          },
          nb::arg("index").noconvert().none(), nb::arg("bitmap").noconvert().none(), nb::arg("q").noconvert(), nb::arg("step"));
  nb::class_<LowRankInput>(m, "LowRankInput")
      .def(
          "__init__",
          [](LowRankInput* self, In<std::int64_t> rows, In<std::int64_t> cols, In<std::int8_t> a, In<std::int8_t> b, std::uint64_t rank,
             double scale) {
            new (self) LowRankInput{std::move(rows), std::move(cols), std::move(a), std::move(b), rank, static_cast<float>(scale)};
          },
          nb::arg("rows").noconvert(), nb::arg("cols").noconvert(), nb::arg("a").noconvert(), nb::arg("b").noconvert(), nb::arg("rank"),
          nb::arg("scale"));
  m.def("apply", &apply, nb::arg("dtype"), nb::arg("old").noconvert(), nb::arg("out").noconvert(), nb::arg("height"), nb::arg("width"),
        nb::arg("sparse").none(), nb::arg("low_rank").none());
  m.def("expand_bitmap", &expand_bitmap, nb::arg("bitmap").noconvert(), nb::arg("index").noconvert());
  m.def("density_count", &density_count, nb::arg("data").noconvert(), nb::arg("rows"), nb::arg("cols"));
  m.def("density_workspace", &edgeedit::density_workspace, nb::arg("rows"), nb::arg("cols"));
  m.def("density_decode", &density_decode, nb::arg("data").noconvert(), nb::arg("rows"), nb::arg("cols"), nb::arg("bitmap").noconvert(),
        nb::arg("q").noconvert(), nb::arg("workspace").noconvert());
  m.def("density_apply", &density_apply, nb::arg("dtype"), nb::arg("old").noconvert(), nb::arg("out").noconvert(), nb::arg("rows"),
        nb::arg("cols"), nb::arg("section").noconvert(), nb::arg("step"), nb::arg("low_rank").none(), nb::arg("workspace").noconvert());
  m.def("use_scalar", &edgeedit::use_scalar, nb::arg("only"));
  m.def("density_encode", &density_encode, nb::arg("index").noconvert(), nb::arg("q").noconvert(), nb::arg("rows"), nb::arg("cols"),
        nb::arg("row_class").noconvert(), nb::arg("col_class").noconvert(), nb::arg("out").noconvert());
  m.def("copy_tensors", &copy_tensors, nb::arg("pairs").noconvert());
  m.def("widen_half", &convert_all<std::uint16_t, std::uint32_t, edgeedit::float_from_half>, nb::arg("source").noconvert(),
        nb::arg("target").noconvert());
  m.def("narrow_half", &convert_all<std::uint32_t, std::uint16_t, edgeedit::half_from_float>, nb::arg("source").noconvert(),
        nb::arg("target").noconvert());
  m.def("widen_bfloat16", &convert_all<std::uint16_t, std::uint32_t, edgeedit::float_from_bfloat16>, nb::arg("source").noconvert(),
        nb::arg("target").noconvert());
  m.def("narrow_bfloat16", &convert_all<std::uint32_t, std::uint16_t, edgeedit::bfloat16_from_float>, nb::arg("source").noconvert(),
        nb::arg("target").noconvert());
}
