// libFuzzer target: arbitrary bytes as JSON, strict and with real numbers; what is read can be quoted and read again.
#include <cstdlib>

#include "failure.h"
#include "json.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const auto numbers : {edgeedit::native::Numbers::kIntegersOnly, edgeedit::native::Numbers::kAny}) {
    try {
      const auto value = edgeedit::native::parse_json(text, numbers);
      for (const auto& key : value.keys) {
        const auto again = edgeedit::native::parse_json("{\"k\":" + edgeedit::native::quote_ascii(key) + "}");
        if (again.items[0].text != key) std::abort();
      }
    } catch (const edgeedit::native::Failure&) {
    }
  }
  return 0;
}
