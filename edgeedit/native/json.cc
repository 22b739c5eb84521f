#include "json.h"

#include <algorithm>
#include <cctype>
#include <charconv>

#include "failure.h"
#include "limits.h"

namespace edgeedit::native {
namespace {

[[noreturn]] void wrong(const std::string& what) { refuse("manifest is not JSON: got " + what); }

void append_utf8(std::string& out, std::uint32_t point) {
  if (point < 0x80) {
    out += static_cast<char>(point);
  } else if (point < 0x800) {
    out += static_cast<char>(0xC0 | (point >> 6));
    out += static_cast<char>(0x80 | (point & 0x3F));
  } else if (point < 0x10000) {
    out += static_cast<char>(0xE0 | (point >> 12));
    out += static_cast<char>(0x80 | ((point >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (point & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | (point >> 18));
    out += static_cast<char>(0x80 | ((point >> 12) & 0x3F));
    out += static_cast<char>(0x80 | ((point >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (point & 0x3F));
  }
}

// One code point at `at`, which moves behind it; refuses overlong forms, surrogates and values above U+10FFFF.
std::uint32_t next_point(std::string_view text, std::size_t& at) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(text[i])); };
  const std::uint32_t first = byte(at++);
  if (first < 0x80) return first;
  const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
  if (first < 0xC2 || first > 0xF4 || text.size() - at < static_cast<std::size_t>(more)) wrong("invalid UTF-8");
  std::uint32_t point = first & (0x3FU >> more);
  for (int i = 0; i < more; ++i, ++at) {
    if ((byte(at) & 0xC0) != 0x80) wrong("invalid UTF-8");
    point = (point << 6) | (byte(at) & 0x3F);
  }
  const std::uint32_t least[] = {0, 0x80, 0x800, 0x10000};
  if (point < least[more] || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) wrong("invalid UTF-8");
  return point;
}

class Parser {
 public:
  Parser(std::string_view data, Numbers numbers) : data_(data), numbers_(numbers) {}

  Json whole() {
    space();
    Json value = read(1);
    space();
    if (at_ != data_.size()) wrong("extra data");
    if (value.kind != Json::Kind::kObject) refuse("manifest is wrong: expected an object");
    return value;
  }

 private:
  std::string_view data_;
  Numbers numbers_;
  std::size_t at_ = 0;

  char peek() const { return at_ < data_.size() ? data_[at_] : '\0'; }

  bool take(char c) {
    if (at_ >= data_.size() || data_[at_] != c) return false;
    ++at_;
    return true;
  }

  void expect(char c) {
    if (!take(c)) wrong(std::string("no ") + c + " at byte " + std::to_string(at_));
  }

  void space() {
    while (at_ < data_.size() && (data_[at_] == ' ' || data_[at_] == '\t' || data_[at_] == '\n' || data_[at_] == '\r')) ++at_;
  }

  Json read(std::size_t depth) {
    const char c = peek();
    if ((c == '{' || c == '[') && depth > MAX_JSON_DEPTH) {
      refuse("manifest nests too deep: expected at most " + std::to_string(MAX_JSON_DEPTH));
    }
    if (c == '{') return object(depth);
    if (c == '[') return array(depth);
    Json value;
    if (c == '"') {
      value.kind = Json::Kind::kString;
      value.text = string();
    } else if (word("true") || word("false")) {
      value.kind = Json::Kind::kBool;
      value.integer = c == 't' ? 1 : 0;
    } else if (!word("null")) {
      number(value);
    }
    return value;
  }

  bool word(std::string_view text) {
    if (data_.substr(at_, text.size()) != text) return false;
    at_ += text.size();
    return true;
  }

  Json object(std::size_t depth) {
    Json value;
    value.kind = Json::Kind::kObject;
    expect('{');
    space();
    if (take('}')) return value;
    do {
      space();
      value.keys.push_back(string());
      space();
      expect(':');
      space();
      value.items.push_back(read(depth + 1));
      space();
    } while (take(','));
    expect('}');
    std::vector<std::string_view> sorted(value.keys.begin(), value.keys.end());
    std::sort(sorted.begin(), sorted.end());
    if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) wrong("a duplicate key");
    return value;
  }

  Json array(std::size_t depth) {
    Json value;
    value.kind = Json::Kind::kArray;
    expect('[');
    space();
    if (take(']')) return value;
    do {
      space();
      value.items.push_back(read(depth + 1));
      space();
    } while (take(','));
    expect(']');
    return value;
  }

  std::uint32_t hex4() {
    if (data_.size() - at_ < 4) wrong("a cut escape");
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = data_[at_];
      const std::uint32_t digit = c >= '0' && c <= '9' ? static_cast<std::uint32_t>(c - '0')
                                  : c >= 'a' && c <= 'f' ? static_cast<std::uint32_t>(c - 'a' + 10)
                                  : c >= 'A' && c <= 'F' ? static_cast<std::uint32_t>(c - 'A' + 10)
                                                         : 16;
      if (digit == 16) wrong("a bad escape");
      value = value * 16 + digit;
    }
    return value;
  }

  void escape(std::string& out) {
    const std::string_view from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
    const char c = peek();
    ++at_;
    if (c == 'u') {
      std::uint32_t point = hex4();
      if (point >= 0xD800 && point < 0xDC00 && word("\\u")) {
        const std::uint32_t low = hex4();
        if (low < 0xDC00 || low > 0xDFFF) wrong("a lone surrogate");
        point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
      }
      if (point >= 0xD800 && point < 0xE000) wrong("a lone surrogate");
      append_utf8(out, point);
      return;
    }
    const std::size_t found = from.find(c);
    if (at_ > data_.size() || found == std::string_view::npos) wrong("a bad escape");
    out += to[found];
  }

  std::string string() {
    expect('"');
    std::string out;
    while (!take('"')) {
      if (at_ >= data_.size()) wrong("an open string");
      if (static_cast<unsigned char>(data_[at_]) < 0x20) wrong("a control character");
      if (take('\\')) {
        escape(out);
      } else {
        const std::size_t start = at_;
        (void)next_point(data_, at_);
        out.append(data_.substr(start, at_ - start));
      }
    }
    return out;
  }

  bool digits() {
    const std::size_t start = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ != start;
  }

  void number(Json& value) {
    const std::size_t start = at_;
    (void)take('-');
    if (!take('0') && !digits()) wrong("no value at byte " + std::to_string(start));
    value.kind = Json::Kind::kInteger;
    if (peek() == '.' || peek() == 'e' || peek() == 'E') {
      if (numbers_ == Numbers::kIntegersOnly) wrong("a float");
      value.kind = Json::Kind::kReal;
      if (take('.') && !digits()) wrong("a number without digits");
      if (take('e') || take('E')) {
        if (!take('+')) (void)take('-');
        if (!digits()) wrong("a number without digits");
      }
      return;
    }
    const char* end = data_.data() + at_;
    const auto result = std::from_chars(data_.data() + start, end, value.integer);
    if (result.ec != std::errc() || result.ptr != end) wrong("an integer beyond 64 bits");
  }
};

}  // namespace

const Json* Json::find(std::string_view key) const {
  if (kind != Kind::kObject) return nullptr;
  const auto found = std::find(keys.begin(), keys.end(), key);
  return found == keys.end() ? nullptr : &items[static_cast<std::size_t>(found - keys.begin())];
}

Json parse_json(std::string_view data, Numbers numbers) { return Parser(data, numbers).whole(); }

std::string quote_ascii(std::string_view utf8) {
  const char* const hex = "0123456789abcdef";
  std::string out = "\"";
  const auto unit = [&](std::uint32_t value) {
    out += "\\u";
    for (int shift = 12; shift >= 0; shift -= 4) out += hex[(value >> shift) & 15];
  };
  const std::string_view from = "\"\\\b\f\n\r\t", to = "\"\\bfnrt";
  for (std::size_t at = 0; at < utf8.size();) {
    const std::uint32_t point = next_point(utf8, at);
    const std::size_t found = point < 0x80 ? from.find(static_cast<char>(point)) : std::string_view::npos;
    if (found != std::string_view::npos) {
      out += '\\';
      out += to[found];
    } else if (point >= 0x20 && point < 0x7F) {
      out += static_cast<char>(point);
    } else if (point < 0x10000) {
      unit(point);
    } else {
      unit(0xD800 + ((point - 0x10000) >> 10));
      unit(0xDC00 + ((point - 0x10000) & 0x3FF));
    }
  }
  return out + "\"";
}

}  // namespace edgeedit::native
