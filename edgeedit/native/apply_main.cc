// edgeedit-apply: verifies patches and writes the patched weights file beside its place, flushed and renamed.  There is no
// unverified mode.
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "bundle.h"
#include "failure.h"
#include "json.h"
#include "limits.h"

namespace {

using namespace edgeedit::native;

constexpr const char* kUsage = "edgeedit-apply --bundle BUNDLE --trust KEY.pub [--trust KEY.pub ...] PATCH [PATCH ...] -o weights.bin [--json]";

struct Arguments {
  std::string bundle, out;
  std::vector<std::string> trust, patches;
  bool json = false, help = false;
};

Arguments parse(int count, char** words) {
  Arguments found;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const bool takes = word == "--bundle" || word == "--trust" || word == "-o";
    if (takes && i + 1 == count) throw Failure(kInput, "wrong usage: expected a value after " + word, kUsage);
    if (word == "--bundle") {
      found.bundle = words[++i];
    } else if (word == "--trust") {
      found.trust.emplace_back(words[++i]);
    } else if (word == "-o") {
      found.out = words[++i];
    } else if (word == "--json") {
      found.json = true;
    } else if (word == "--help" || word == "-h") {
      found.help = true;
    } else if (word.size() > 1 && word[0] == '-') {
      throw Failure(kInput, "wrong usage: got the unknown option " + word, kUsage);
    } else {
      found.patches.push_back(word);
    }
  }
  if (!found.help && (found.bundle.empty() || found.out.empty() || found.patches.empty())) {
    throw Failure(kInput, "wrong usage: expected a bundle, patches and -o", kUsage);
  }
  return found;
}

[[noreturn]] void disk(const std::string& path) {
  throw Failure(kRefused, "cannot write " + path + ": " + std::strerror(errno), "free disk space or choose another place");
}

std::string folder_of(const std::string& path) {
  const std::size_t slash = path.find_last_of('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

// A file beside `path` that takes its place when everything is on disk, and vanishes otherwise.
class Replacement {
 public:
  explicit Replacement(const std::string& path)
      : path_(path), temp_(folder_of(path) + "/." + path.substr(path.find_last_of('/') + 1) + "." + std::to_string(::getpid()) + ".tmp") {
    file_ = ::open(temp_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (file_ < 0) disk(path_);
  }
  ~Replacement() {
    if (file_ >= 0) ::close(file_);
    if (!done_ && !temp_.empty()) ::unlink(temp_.c_str());
  }
  Replacement(const Replacement&) = delete;
  Replacement& operator=(const Replacement&) = delete;

  // Offsets ascend; the gap before one is zero.
  void write(std::uint64_t offset, const std::uint8_t* data, std::uint64_t size) {
    static const std::uint8_t zero[4096] = {};
    while (at_ < offset) put(zero, offset - at_ < sizeof(zero) ? offset - at_ : sizeof(zero));
    put(data, size);
  }

  void finish() {
    const int closed = ::fsync(file_) == 0 ? ::close(file_) : -1;
    if (closed != 0) disk(path_);
    file_ = -1;
    if (::rename(temp_.c_str(), path_.c_str()) != 0) disk(path_);
    done_ = true;
    const int folder = ::open(folder_of(path_).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool flushed = folder >= 0 && ::fsync(folder) == 0;
    if (folder >= 0) ::close(folder);
    if (!flushed) disk(path_);
  }

 private:
  void put(const std::uint8_t* data, std::uint64_t size) {
    while (size > 0) {
      const ssize_t wrote = ::write(file_, data, size > (1U << 30) ? (1U << 30) : size);
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote <= 0) disk(path_);
      data += wrote;
      size -= static_cast<std::uint64_t>(wrote);
      at_ += static_cast<std::uint64_t>(wrote);
    }
  }

  std::string path_, temp_;
  int file_ = -1;
  std::uint64_t at_ = 0;
  bool done_ = false;
};

void keep_the_bundle(const Bundle& bundle, const std::string& out) {
  struct stat base {}, target {};
  const bool same = ::stat(bundle.weights_path().c_str(), &base) == 0 && ::stat(out.c_str(), &target) == 0 && base.st_dev == target.st_dev &&
                    base.st_ino == target.st_ino;
  if (same) throw Failure(kRefused, "cannot write " + out + ": expected another file, got the bundle's own weights", "a bundle is immutable");
}

// A file that is too large for a key is the caller's mistake, not a damaged patch.
std::string read_key(const std::string& path) {
  try {
    return read_file(path, 65536);
  } catch (const Failure& failure) {
    throw Failure(kInput, failure.message, "give a .pub file");
  }
}

void run(const Arguments& arguments) {
  if (arguments.trust.empty()) throw Failure(kIntegrity, "no trusted key: expected at least one --trust, got none", "give the signer's public key");
  std::vector<RawKey> trusted;
  for (const std::string& path : arguments.trust) trusted.push_back(key_from_pem(read_key(path)));
  std::vector<Patch> chain;
  for (const std::string& path : arguments.patches) chain.emplace_back(read_file(path, MAX_PATCH_BYTES), trusted);
  const Bundle bundle(arguments.bundle);
  keep_the_bundle(bundle, arguments.out);
  const std::string result = check_chain(bundle, chain);
  Replacement out(arguments.out);
  materialize(bundle, chain, [&](std::uint64_t offset, const std::uint8_t* data, std::uint64_t size) { out.write(offset, data, size); });
  out.finish();
  if (arguments.json) {
    std::printf("{\"fingerprint\": \"%s\", \"parent\": \"%s\", \"patches\": %zu, \"schema_version\": 1, \"weights\": %s}\n", result.c_str(),
                bundle.fingerprint().c_str(), chain.size(), quote_ascii(arguments.out).c_str());
  } else {
    std::printf("wrote %s: fingerprint %s after %zu patches\n", arguments.out.c_str(), result.substr(0, 12).c_str(), chain.size());
  }
  if (std::fflush(stdout) != 0) disk("the result");
}

int fail(int code, const std::string& message, const std::string& hint) {
  std::fprintf(stderr, "error: %s\n", message.c_str());
  if (!hint.empty()) std::fprintf(stderr, "hint: %s\n", hint.c_str());
  return code;
}

}  // namespace

int main(int count, char** words) {
  try {
    const Arguments arguments = parse(count, words);
    if (arguments.help) {
      std::printf("usage: %s\n\nVerifies every patch, applies them in the given order and writes the patched weights file.\n", kUsage);
      return 0;
    }
    run(arguments);
    return 0;
  } catch (const Failure& failure) {
    return fail(failure.code, failure.message, failure.hint);
  } catch (const std::bad_alloc&) {
    return fail(kRefused, "memory is short: an allocation failed", "stop other programs or use a smaller patch");
  } catch (const std::exception& error) {
    return fail(kUnexpected, error.what(), "");
  }
}
