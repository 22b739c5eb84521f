#!/bin/sh
# Empty libraries in FOLDER for the nine functions that the bindings of major version MAJOR want when they are imported; they return 0.
#     sh tests/tensorrt/stubs.sh FOLDER MAJOR
set -eu
mkdir -p "$1"
make_stub() {
  out=$1 && shift
  for name in "$@"; do echo "void* $name(void) { return 0; }"; done > "$out.c"
  cc -shared -fPIC -Wl,-soname,"$(basename "$out")" -o "$out" "$out.c" && rm "$out.c"
}
make_stub "$1/libnvinfer.so.$2" createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL getPluginRegistry \
  getBuilderPluginRegistry
make_stub "$1/libnvonnxparser.so.$2" createNvOnnxParser_INTERNAL createNvOnnxParserRefitter_INTERNAL getNvOnnxParserVersion
make_stub "$1/libnvinfer_plugin.so.$2" initLibNvInferPlugins
