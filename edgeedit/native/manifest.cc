#include "manifest.h"

#include <zlib.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <map>
#include <set>

#include "failure.h"
#include "json.h"
#include "limits.h"

namespace edgeedit::native {
namespace {

using Kind = Json::Kind;
using Free = std::map<std::string, std::size_t, std::less<>>;  // sections that nothing uses yet

[[noreturn]] void wrong(const std::string& what, const std::string& expected) { refuse(what + " is wrong: expected " + expected); }

const Json& field(const Json& row, std::string_view key, const std::string& what) {
  const Json* value = row.find(key);
  if (value == nullptr) wrong(what, "the field " + std::string(key));
  return *value;
}

void closed(const Json& row, const std::string& what, std::initializer_list<std::string_view> known) {
  if (row.kind != Kind::kObject) wrong(what, "an object");
  for (const std::string& key : row.keys) {
    if (std::find(known.begin(), known.end(), key) == known.end()) wrong(what, "no unknown field");
  }
}

const std::vector<Json>& rows(const Json& value, const std::string& what, std::size_t limit) {
  const bool objects = std::all_of(value.items.begin(), value.items.end(), [](const Json& row) { return row.kind == Kind::kObject; });
  if (value.kind != Kind::kArray || value.items.empty() || value.items.size() > limit || !objects) {
    wrong(what, "1.." + std::to_string(limit) + " objects");
  }
  return value.items;
}

std::string name(const Json& value, const std::string& what) {
  const bool control = std::any_of(value.text.begin(), value.text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7F; });
  if (value.kind != Kind::kString || value.text.empty() || value.text.size() > MAX_NAME_BYTES || control) {
    wrong(what, "a name of 1.." + std::to_string(MAX_NAME_BYTES) + " bytes without control characters");
  }
  return value.text;
}

std::string digest(const Json& value, const std::string& what) {
  if (value.kind != Kind::kString || !is_digest(value.text)) wrong(what, "64 hexadecimal digits");
  return value.text;
}

std::string dtype(const Json& value, const std::string& what) {
  if (value.kind != Kind::kString || item_bytes(value.text) == 0) wrong(what, "float32, float16, bfloat16 or int8");
  return value.text;
}

std::uint64_t integer(const Json& value, const std::string& what, std::uint64_t low, std::uint64_t high) {
  const bool inside = value.kind == Kind::kInteger && value.integer >= 0 && static_cast<std::uint64_t>(value.integer) >= low &&
                      static_cast<std::uint64_t>(value.integer) <= high;
  if (!inside) wrong(what, "an integer in " + std::to_string(low) + ".." + std::to_string(high));
  return static_cast<std::uint64_t>(value.integer);
}

bool all_digits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// `0x1.` 13 lower-case hexadecimal digits `p` sign decimal exponent; taken apart as integers, so no locale and no rounding.
float scale(const Json& value, const std::string& what, int significant_bits) {
  const std::string& text = value.text;
  const bool framed = value.kind == Kind::kString && text.size() >= 20 && text.size() <= 23 && text.compare(0, 4, "0x1.") == 0 &&
                      text[17] == 'p' && (text[18] == '+' || text[18] == '-');
  if (!framed) wrong(what, "a hex-float");
  std::uint64_t fraction = 0;
  for (std::size_t i = 4; i < 17; ++i) {
    const char c = text[i];
    const bool legal = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
    if (!legal) wrong(what, "a hex-float");
    fraction = fraction * 16 + static_cast<std::uint64_t>(c <= '9' ? c - '0' : c - 'a' + 10);
  }
  const std::string_view power = std::string_view(text).substr(19);
  if (!all_digits(power) || (power.size() > 1 && power[0] == '0')) wrong(what, "a hex-float");
  int exponent = 0;
  (void)std::from_chars(power.data(), power.data() + power.size(), exponent);
  if (text[18] == '-') exponent = -exponent;
  if (exponent < MIN_SCALE_EXP || exponent > MAX_SCALE_EXP || (exponent == MAX_SCALE_EXP && fraction != 0)) {
    refuse("scale out of range: expected 2^-60..2^20, got " + text);
  }
  const std::uint64_t spare = (std::uint64_t{1} << (53 - significant_bits)) - 1;
  if ((fraction & spare) != 0) {
    refuse("scale has too many significant bits: expected at most " + std::to_string(significant_bits) + ", got " + text);
  }
  return static_cast<float>(std::ldexp(static_cast<double>(fraction + (std::uint64_t{1} << 52)), exponent - 52));  // exact
}

std::size_t take(Free& free, const Json& value, const std::string& what) {
  const auto found = value.kind == Kind::kString ? free.find(value.text) : free.end();
  if (found == free.end()) wrong(what, "the name of a section that nothing else uses");
  const std::size_t index = found->second;
  free.erase(found);
  return index;
}

// Every value is bounded by the payload's size before it is added, so nothing overflows.
std::vector<Section> read_sections(const Json& table, std::uint64_t payload_bytes, Free& free) {
  std::vector<Section> found;
  std::uint64_t end = 0;
  for (const Json& row : rows(table, "sections", MAX_SECTIONS)) {
    closed(row, "section row", {"name", "offset", "length", "sha256"});
    Section section;
    section.name = name(field(row, "name", "section row"), "section name");
    section.offset = integer(field(row, "offset", "section row"), "offset of section " + section.name, end, end);
    section.length = integer(field(row, "length", "section row"), "length of section " + section.name, 1, payload_bytes - end);
    section.sha256 = digest(field(row, "sha256", "section row"), "digest of section " + section.name);
    end += section.length;
    if (!free.emplace(section.name, found.size()).second) wrong("section " + section.name, "a unique name");
    found.push_back(std::move(section));
  }
  if (end != payload_bytes) wrong("section table", "an end at payload byte " + std::to_string(payload_bytes));
  return found;
}

std::vector<std::uint64_t> shape(const Json& value, const std::string& what) {
  if (value.kind != Kind::kArray || value.items.empty() || value.items.size() > MAX_DIMS) {
    wrong(what, "1.." + std::to_string(MAX_DIMS) + " dimensions");
  }
  std::vector<std::uint64_t> found;
  std::uint64_t product = 1;
  for (const Json& item : value.items) {
    found.push_back(integer(item, what, 1, MAX_TENSOR_ELEMENTS));
    if (found.back() > MAX_TENSOR_ELEMENTS / product) wrong(what, "at most " + std::to_string(MAX_TENSOR_ELEMENTS) + " elements");
    product *= found.back();
  }
  return found;
}

PatchTensor tensor(const Json& row, Free& free) {
  closed(row, "tensor row", {"name", "dtype", "shape", "before", "after", "step", "sparse", "dense", "scale", "low_rank", "exact"});
  PatchTensor found;
  found.name = name(field(row, "name", "tensor row"), "tensor name");
  found.shape = shape(field(row, "shape", "tensor row"), "shape of " + found.name);
  const Json *step = row.find("step"), *sparse = row.find("sparse"), *factor = row.find("scale"), *low_rank = row.find("low_rank");
  const Json *dense = row.find("dense"), *exact = row.find("exact");
  const bool both = sparse != nullptr && dense != nullptr;
  if (both || (step == nullptr) != (sparse == nullptr && dense == nullptr) || (factor == nullptr) != (low_rank == nullptr) ||
      (step == nullptr && factor == nullptr && exact == nullptr)) {
    wrong("tensor " + found.name, "step with sparse or dense, scale with low_rank, one part at least");
  }
  if (low_rank != nullptr && found.shape.size() != 2) wrong("shape of " + found.name, "2 dimensions for a low-rank part");
  if (dense != nullptr && found.elements() > MAX_DENSE_ELEMENTS) {
    wrong("shape of " + found.name, "at most " + std::to_string(MAX_DENSE_ELEMENTS) + " elements for a dense part");
  }
  found.dtype = dtype(field(row, "dtype", "tensor row"), "dtype of " + found.name);
  found.before = digest(field(row, "before", "tensor row"), "digest of " + found.name + " before");
  found.after = digest(field(row, "after", "tensor row"), "digest of " + found.name + " after");
  if (found.dtype == "int8" && (low_rank != nullptr || exact != nullptr || step->text != "0x1.0000000000000p+0")) {
    wrong("int8 tensor " + found.name, "integers with step 0x1.0000000000000p+0 alone");
  }
  if (step != nullptr) found.step = scale(*step, "step of " + found.name, MAX_SCALE_BITS);
  if (factor != nullptr) found.scale = scale(*factor, "scale of " + found.name, 1);
  if (sparse != nullptr) found.sparse = take(free, *sparse, "sparse part of " + found.name);
  if (low_rank != nullptr) found.low_rank = take(free, *low_rank, "low-rank part of " + found.name);
  if (dense != nullptr) found.dense = take(free, *dense, "dense part of " + found.name);
  if (exact != nullptr) found.exact = take(free, *exact, "corrections of " + found.name);
  return found;
}

// Digits, optionally `.` digits, optionally `e` sign digits; 32 characters at most; positive and finite.
bool positive_decimal(std::string_view text) {
  if (text.empty() || text.size() > 32) return false;
  const std::size_t e = text.find('e');
  const std::string_view mantissa = text.substr(0, e);
  const std::size_t dot = mantissa.find('.');
  bool legal = all_digits(mantissa.substr(0, dot)) && (dot == std::string_view::npos || all_digits(mantissa.substr(dot + 1)));
  if (e != std::string_view::npos) {
    const std::string_view power = text.substr(e + 1);
    legal = legal && power.size() > 1 && (power[0] == '+' || power[0] == '-') && all_digits(power.substr(1));
  }
  double value = 0;
  const auto read = std::from_chars(text.data(), text.data() + text.size(), value);
  return legal && read.ec == std::errc() && read.ptr == text.data() + text.size() && value > 0 && std::isfinite(value);
}

void check_probe(const Json& row, Free& free) {
  closed(row, "probe table", {"count", "width", "tolerance", "section", "step"});
  const std::uint64_t count = integer(field(row, "count", "probe table"), "number of probes", 1, MAX_PROBES);
  (void)integer(field(row, "width", "probe table"), "width of probes", 1, static_cast<std::uint64_t>(MAX_PROBE_VALUES) / count);
  const Json& tolerance = field(row, "tolerance", "probe table");
  if (tolerance.kind != Kind::kString || !positive_decimal(tolerance.text)) wrong("probe tolerance", "a positive decimal string");
  if (const Json* step = row.find("step")) (void)scale(*step, "step of probes", 1);
  (void)take(free, field(row, "section", "probe table"), "section of probes");
}

}  // namespace

std::uint64_t PatchTensor::elements() const {
  std::uint64_t product = 1;
  for (const std::uint64_t length : shape) product *= length;
  return product;
}

std::uint64_t PatchTensor::bytes() const { return elements() * item_bytes(dtype); }

Dtype core_dtype(std::string_view word) {
  return word == "float32" ? Dtype::kFloat32 : word == "float16" ? Dtype::kFloat16 : word == "bfloat16" ? Dtype::kBfloat16 : Dtype::kInt8;
}

std::uint64_t item_bytes(std::string_view word) {
  return word == "float32" || word == "float16" || word == "bfloat16" || word == "int8" ? item_size(core_dtype(word)) : 0;
}

bool is_digest(std::string_view text) {
  return text.size() == 64 && std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

std::string plain_manifest(std::string_view stored) {
  if (stored.empty() || stored[0] != '\x78') return std::string(stored);  // no JSON begins with it
  z_stream stream;
  std::memset(&stream, 0, sizeof(stream));
  if (inflateInit(&stream) != Z_OK) throw Failure(kRefused, "memory is short: cannot unpack the manifest", "stop other programs");
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(stored.data()));
  stream.avail_in = static_cast<uInt>(stored.size());
  std::string data;
  int status = Z_OK;
  while (status == Z_OK && data.size() <= MAX_MANIFEST_BYTES) {
    const std::size_t start = data.size();
    data.resize(start + 65536);
    stream.next_out = reinterpret_cast<Bytef*>(&data[start]);
    stream.avail_out = 65536;
    status = inflate(&stream, Z_NO_FLUSH);
    data.resize(data.size() - stream.avail_out);
    if (status == Z_OK && stream.avail_out != 0) status = Z_BUF_ERROR;  // the input ends before the stream
  }
  const bool whole = status == Z_STREAM_END && stream.avail_in == 0 && data.size() <= MAX_MANIFEST_BYTES;
  inflateEnd(&stream);
  if (!whole) wrong("manifest", "one zlib stream of at most " + std::to_string(MAX_MANIFEST_BYTES) + " bytes");
  return data;
}

Manifest parse_manifest(std::string_view data, std::uint64_t payload_bytes) {
  const Json value = parse_json(data);
  Manifest manifest;
  Free free;
  manifest.sections = read_sections(field(value, "sections", "manifest"), payload_bytes, free);
  std::set<std::string_view> names;
  const std::vector<Json>& tensors = rows(field(value, "tensors", "manifest"), "tensors", MAX_TENSORS);
  manifest.tensors.reserve(tensors.size());  // so that `names` may look into it
  for (const Json& row : tensors) {
    manifest.tensors.push_back(tensor(row, free));
    if (!names.insert(manifest.tensors.back().name).second) wrong("tensor " + manifest.tensors.back().name, "a unique name");
  }
  check_probe(field(value, "probe", "manifest"), free);
  if (!free.empty()) wrong("section " + free.begin()->first, "a tensor or the probe table that uses it");
  if (field(value, "provenance", "manifest").kind != Kind::kObject) wrong("provenance", "an object");
  manifest.parent = digest(field(value, "parent", "manifest"), "parent");
  manifest.result = digest(field(value, "result", "manifest"), "result");
  manifest.precision = dtype(field(value, "precision", "manifest"), "precision");
  manifest.recipe = name(field(value, "recipe", "manifest"), "recipe");
  return manifest;
}

}  // namespace edgeedit::native
