# FOLDER/include with ONNX Runtime's C headers from Debian's libonnxruntime-dev (unpacked, not installed; an API of any older version
# runs in a newer library), FOLDER/lib with links to the library inside the installed Python package.  Needs no root.
# Usage: ort_headers.sh FOLDER PYTHON
set -eu
folder=$1 python=$2
if [ ! -f "$folder/include/onnxruntime_c_api.h" ]; then
  echo "== download: ONNX Runtime's C headers, a Debian package list (10 MB) and 85 kB"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  chmod 755 "$work"
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
  # trixie is the first release with the package; the system's own lists stay as they are.
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian trixie main" > "$work/sources.list"
  options="-q -o Dir::Etc::sourcelist=$work/sources.list -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists=$work/lists -o Dir::Cache=$work/cache"
  options="$options -o APT::Architectures=amd64 -o Acquire::Languages=none -o APT::Sandbox::User=$(id -un)"
  (cd "$work" && apt-get $options update && apt-get $options download libonnxruntime-dev && dpkg-deb -x libonnxruntime-dev_*.deb unpacked) \
    > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
  mkdir -p "$folder/include"
  cp "$work"/unpacked/usr/include/onnxruntime/*.h "$folder/include/"
fi
mkdir -p "$folder/lib"
library=$("$python" -c "import pathlib, onnxruntime; print(*pathlib.Path(onnxruntime.__file__).parent.glob('capi/libonnxruntime.so.*'))")
[ -n "$library" ] || { echo "the installed onnxruntime holds no libonnxruntime.so"; exit 1; }
for name in libonnxruntime.so libonnxruntime.so.1; do ln -sf "$library" "$folder/lib/$name"; done
