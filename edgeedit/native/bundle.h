// A Bundle folder (edgeedit/bundle.py): its table and its weights, mapped read-only.
// Guarantees: offsets, lengths and the fingerprint are checked against the table; the Bundle on disk is never written.
#ifndef EDGEEDIT_NATIVE_BUNDLE_H_
#define EDGEEDIT_NATIVE_BUNDLE_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "container.h"

namespace edgeedit::native {

struct MappedTensor {
  TensorId id;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
};

class Bundle {
 public:
  explicit Bundle(const std::string& folder);
  ~Bundle();
  Bundle(const Bundle&) = delete;
  Bundle& operator=(const Bundle&) = delete;

  const std::vector<MappedTensor>& tensors() const { return tensors_; }  // in ascending order of offset
  const std::string& fingerprint() const { return fingerprint_; }
  const std::string& precision() const { return precision_; }
  std::string weights_path() const { return folder_ + "/weights.bin"; }
  const std::uint8_t* bytes(const MappedTensor& tensor) const { return data_ + tensor.offset; }

 private:
  void read_table();
  void map_weights();

  std::string folder_;
  std::string fingerprint_;
  std::string precision_;
  std::vector<MappedTensor> tensors_;
  const std::uint8_t* data_ = nullptr;
  std::uint64_t size_ = 0;
};

// The content of a file of at most `limit` bytes; Failure of exit code 2 when it cannot be read, 5 when it is larger.
std::string read_file(const std::string& path, std::uint64_t limit);

// Checks that the chain starts at the Bundle and that every link fits; returns the last fingerprint.  Reads no weights.
std::string check_chain(const Bundle& bundle, const std::vector<Patch>& chain);

// Runs the chain tensor by tensor, in ascending order of offset; `write` gets (offset, bytes, length).  Every tensor of the Bundle,
// changed or not, has its digest checked before it is handed out.
using Writer = std::function<void(std::uint64_t, const std::uint8_t*, std::uint64_t)>;
void materialize(const Bundle& bundle, const std::vector<Patch>& chain, const Writer& write);

}  // namespace edgeedit::native

#endif  // EDGEEDIT_NATIVE_BUNDLE_H_
