// libFuzzer target: arbitrary bytes as a patch file under a trusted key; whatever verifies is what that key once signed.
#include <cstdlib>
#include <set>

#include "container.h"
#include "failure.h"

// The first public test key, and SHA-256 of everything but the signature slots of the golden files that it signed.
static const edgeedit::native::RawKey kKey = {0x79, 0xb5, 0x56, 0x2e, 0x8f, 0xe6, 0x54, 0xf9, 0x40, 0x78, 0xb1, 0x12, 0xe8, 0xa9, 0x8b, 0xa7, 0x90, 0x1f, 0x85, 0x3a, 0xe6, 0x95, 0xbe, 0xd7, 0xe0, 0xe3, 0x91, 0x0b, 0xad, 0x04, 0x96, 0x64};
static const std::set<std::string> kSigned = {
    "0166e83fa12da213b33f7d9c3195965f83457a39856c08050e5efaa97a30d394",
    "34e08c18de798152754918f614e4250f19bb8a3884cd81203500fc1fae8ee7a9",
    "4212114fe842e2a1e8defd040d39b4d0205e3f5df438b0e40d3c42539e36727d",
    "5ffc6359aedbc44469873c677b5a73cfb92e7854b417dfda0c457a1ea5199b4a",
    "6a9c61ca6a8cc121ce548c03ceb330b75825807729447fb471cb445fa3d1f72f",
    "8747656ce5769d626256c59b7c8b3c50a37c9db6913fe552b1a930ae96be636e",
    "a9cab4948adac696d2aebb9f35fd33956978a911527587d8c473c0c7f608a30d",
    "c06bc885eb3aa9b40b1e05c9cf41a46ccd33a28efa5f14be5b23570b831d0826",
    "c6301dbe91952c013cfd3d4df1c9bbdf333331d8c4195c940a4d4528618db834",
    "f488a6f3a37759007b57f7fc3a95fd84461e6366390d6fed327c4692ba2888e1",
};

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string file(reinterpret_cast<const char*>(data), size);
  try {
    const auto header = edgeedit::native::read_header(file);
    (void)edgeedit::native::verified_signers(file, header, {kKey}, true);
    const std::string covered = file.substr(0, 24) + file.substr(408, header.manifest_bytes);
    if (kSigned.count(edgeedit::native::sha256_hex(covered.data(), covered.size())) == 0) std::abort();
    (void)edgeedit::native::Patch(file, {kKey}, true);
  } catch (const edgeedit::native::Failure&) {
  }
  return 0;
}
