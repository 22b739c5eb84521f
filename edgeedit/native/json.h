// Strict JSON (FORMAT 3): bounded nesting, 64-bit integers, no duplicate key, valid UTF-8, nothing behind the value.
// Guarantees: every byte is read behind a bounds check; a text that breaks a rule is a Failure of exit code 5.
#ifndef EDGEEDIT_NATIVE_JSON_H_
#define EDGEEDIT_NATIVE_JSON_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace edgeedit::native {

struct Json {
  // kReal is only produced for bundle.json; a manifest with a fraction or an exponent is refused.
  enum class Kind { kNull, kBool, kInteger, kReal, kString, kArray, kObject };

  Kind kind = Kind::kNull;
  std::int64_t integer = 0;  // kInteger, and 0 or 1 for kBool
  std::string text;          // kString, as UTF-8
  std::vector<Json> items;   // kArray, and the values of kObject
  std::vector<std::string> keys;

  // The value of a key of an object, or null.
  const Json* find(std::string_view key) const;
};

enum class Numbers { kIntegersOnly, kAny };

// The outermost object.
Json parse_json(std::string_view data, Numbers numbers = Numbers::kIntegersOnly);

// The text as a JSON string of ASCII only, the way Python's json.dumps writes it.
std::string quote_ascii(std::string_view utf8);

}  // namespace edgeedit::native

#endif  // EDGEEDIT_NATIVE_JSON_H_
