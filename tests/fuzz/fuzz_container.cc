// libFuzzer target: arbitrary bytes as a patch file under a trusted key; whatever verifies is what that key once signed.
#include <cstdlib>
#include <set>

#include "container.h"
#include "failure.h"

// The first public test key, and SHA-256 of everything but the signature slots of the golden files that it signed.
static const edgeedit::native::RawKey kKey = {0x79, 0xb5, 0x56, 0x2e, 0x8f, 0xe6, 0x54, 0xf9, 0x40, 0x78, 0xb1, 0x12, 0xe8, 0xa9, 0x8b, 0xa7, 0x90, 0x1f, 0x85, 0x3a, 0xe6, 0x95, 0xbe, 0xd7, 0xe0, 0xe3, 0x91, 0x0b, 0xad, 0x04, 0x96, 0x64};
static const std::set<std::string> kSigned = {
    "0659adb48c7819a0c1d0f96782c5fa891503a96997b4c0f8b233a28cb1f1a8a3",
    "2c70ab61bc573485f5f4cbf57873f00480229abc4126e5290bfed2f3bfa152ed",
    "3224ed6e5e9931f88870394b41286c6413a16e006f02f8a92862e362fdcff61b",
    "391005a8c8ef64f47a9ef91662fc2677f5a76dd353e63f672ff4b40d622df6f9",
    "44176bf8c7cb5c54dc579e51cdf6b59c4cfa1733f9f3e9d96a377bda0228aa53",
    "4f0f53bbc083d9fae1626a994294dd68cad2dd3b66f4050fa80fe77ad0897d41",
    "58ffae3f399166852d494f874dadbf074e1a525486d9e53afff7199e6166f9d5",
    "60404b94da206906d5ddb0f316b90dace39b0f59102302f94d0e33170a21cff4",
    "6281380e4b0bf2d2416ba1e428ed59c3cf02cd9fe8aa86290f5a7e5a3ba6e845",
    "6519cbed3891fefc95d687312e996ea840afe5f2495ff18d9af149807e8ea928",
    "65ec5d1b421625783db640ea4b42838ff2af02fe1e0b9052a0d91d09be0028e3",
    "869c55dc17900d47a7e0829063f85bed100092c605e5f49aa60a85ed48f7fb7c",
    "970549043d92ad40f989f3188a420d8a6e22f50ac20b56ddbb15862c71abf777",
    "c12e556250ad67f7f3e2abe60b761cbd914a591f960ed8df72927afd25c4ebaf",
    "c2c2343ae431aafdbd0babe5b3971b8c45e44a9d441109bc7f9d73a55d21b122",
    "c6c98fa5c849fa00f420b97585f3996c20909d2ed563982f5fe91395a8c47c44",
    "cac1b9799b5471a0b6041bf5ba03d5535e28d92565130cc8e86bfacba50c108d",
    "cc891c507420ed2c3ded37f6e15fe63a7e9058c2dcedd27d2af39c21e1b33b57",
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
