#!/bin/sh
# Cross-build the wheel for aarch64, unpack an arm64 Python beside it, and run the device side there under qemu-user.
#     sh tests/arm64/run.sh PYTHON FOLDER
# PYTHON is 3.11 (that of Debian 12, whose arm64 packages are unpacked into FOLDER, nothing is installed); needs `make test-deps`.
# qemu 7.2 runs onnxruntime up to 1.23; later ones crash there at import.  Nothing here is a timing.
set -eu
python=$1 folder=$2 root=$(pwd)
mkdir -p "$folder" && folder=$(cd "$folder" && pwd)
packages="python3.11 python3.11-minimal libpython3.11-minimal libpython3.11-stdlib libpython3.11-dev libc6 libstdc++6 libgcc-s1 zlib1g
 libssl3 libffi8 libexpat1 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libcrypt1"
if [ ! -e "$folder/.sysroot" ]; then
  rm -rf "$folder/debs" "$folder/sysroot" && mkdir -p "$folder/debs"
  (cd "$folder/debs" && apt-get download -q $(for p in $packages; do echo "$p:arm64"; done))
  for deb in "$folder"/debs/*.deb; do dpkg-deb -x "$deb" "$folder/sysroot"; done
  touch "$folder/.sysroot"
fi
platforms=$(for p in 34 28 27 17; do printf ' --platform manylinux_2_%s_aarch64' $p; done)
if [ ! -e "$folder/.site" ]; then
  "$python" -m pip install -q --target "$folder/site" --upgrade $platforms --platform manylinux2014_aarch64 --python-version 3.11 \
    --implementation cp --only-binary=:all: 'numpy<2.4' onnxruntime==1.23.2 click cryptography
  touch "$folder/.site"
fi
rm -rf "$folder/dist" "$folder/ours"
_PYTHON_HOST_PLATFORM=linux-aarch64 SETUPTOOLS_EXT_SUFFIX=.cpython-311-aarch64-linux-gnu.so \
  CMAKE_ARGS="-DCMAKE_TOOLCHAIN_FILE=$root/devices/toolchains/aarch64-linux-gnu.cmake -DPython_INCLUDE_DIR=$folder/sysroot/usr/include/python3.11 -DCMAKE_CXX_FLAGS=-I$folder/sysroot/usr/include -DPython_SOABI=cpython-311-aarch64-linux-gnu" \
  "$python" -m pip wheel -q . --no-build-isolation --no-deps -w "$folder/dist" --config-settings=build-dir="$folder/cmake"
wheel=$(ls "$folder"/dist/edgeedit-*linux_aarch64.whl)
"$python" -m zipfile -e "$wheel" "$folder/ours"
file=$(ls "$folder"/ours/edgeedit/codec/_core*.so)
readelf -h "$file" | grep -q AArch64 || { echo "$file is not for aarch64"; exit 1; }
rm -rf "$folder/work" && mkdir -p "$folder/work"
"$python" tests/arm64/prepare.py "$folder/work"
PYTHONHOME="$folder/sysroot/usr" PYTHONPATH="$folder/ours:$folder/site" PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1 \
  qemu-aarch64 -cpu cortex-a76 -L "$folder/sysroot" "$folder/sysroot/usr/bin/python3.11" tests/arm64/check.py "$folder/work" \
  "$folder/result.json" "$(basename "$wheel")"
cat "$folder/result.json"
