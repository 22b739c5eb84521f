# Cross-compile for a 64-bit ARM Linux (Jetson, Raspberry Pi 4 and later) on Debian or Ubuntu, and run the result under qemu-user:
#     dpkg --add-architecture arm64; apt-get install g++-aarch64-linux-gnu qemu-user libssl-dev:arm64 zlib1g-dev:arm64
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH /usr/lib/aarch64-linux-gnu /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(OPENSSL_CRYPTO_LIBRARY /usr/lib/aarch64-linux-gnu/libcrypto.so CACHE FILEPATH "")
set(OPENSSL_SSL_LIBRARY /usr/lib/aarch64-linux-gnu/libssl.so CACHE FILEPATH "")
set(OPENSSL_INCLUDE_DIR /usr/include CACHE PATH "")
set(ZLIB_LIBRARY /usr/lib/aarch64-linux-gnu/libz.so CACHE FILEPATH "")
set(ZLIB_INCLUDE_DIR /usr/include CACHE PATH "")
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64)
# The C++ library goes into the programs, so that a device needs none of this machine's version.
set(CMAKE_EXE_LINKER_FLAGS_INIT "-static-libstdc++ -static-libgcc")
