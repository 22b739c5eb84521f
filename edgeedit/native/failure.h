// How native code fails inside the library: one exception type with an exit code, a sentence and a hint.  It never crosses the C ABI.
#ifndef EDGEEDIT_NATIVE_FAILURE_H_
#define EDGEEDIT_NATIVE_FAILURE_H_

#include <exception>
#include <string>
#include <utility>

namespace edgeedit::native {

// Exit codes of edgeedit/errors.py that native code can produce.
enum Code : int { kUnexpected = 1, kInput = 2, kMismatch = 4, kIntegrity = 5, kRefused = 6 };

class Failure : public std::exception {
 public:
  Failure(Code who, std::string sentence, std::string advice = {}) : code(who), message(std::move(sentence)), hint(std::move(advice)) {}
  const char* what() const noexcept override { return message.c_str(); }

  Code code;
  std::string message;
  std::string hint;
};

constexpr const char* kAskAgain = "get the patch again from whoever made it";

[[noreturn]] inline void refuse(std::string message, std::string hint = kAskAgain) {
  throw Failure(kIntegrity, std::move(message), std::move(hint));
}

}  // namespace edgeedit::native

#endif  // EDGEEDIT_NATIVE_FAILURE_H_
