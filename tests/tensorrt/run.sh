#!/bin/sh
# Published TensorRT bindings against the fake of our tests, and the CPU-only parser of TensorRT-RTX against Bundles of ours.
#     sh tests/tensorrt/run.sh PYTHON FOLDER
# PYTHON has edgeedit, torch and onnx; FOLDER keeps the packages (bindings 5 MB each, TensorRT-RTX 120 MB to download).  Nothing needs a GPU;
# nothing is built or refitted here, because both do need one.
set -eu
python=$1 folder=$2
mkdir -p "$folder" && folder=$(cd "$folder" && pwd)
here=$(dirname "$0")
install() { [ -e "$folder/$1/.installed" ] || { "$python" -m pip install -q --no-deps --target "$folder/$1" "$2" && touch "$folder/$1/.installed"; }; }
sh "$here/stubs.sh" "$folder/stubs" 10
sh "$here/stubs.sh" "$folder/stubs" 11
for package in tensorrt-cu12-bindings==10.3.0 tensorrt-cu13-bindings==10.13.3.9 tensorrt-cu13-bindings==10.16.1.11 tensorrt-cu13-bindings==11.4.0.106; do
  install "$package" "$package"
  PYTHONPATH="$folder/$package" LD_LIBRARY_PATH="$folder/stubs" "$python" "$here/signatures.py" tensorrt_bindings
done
install rtx tensorrt-rtx-cu13-bindings==1.7.1.116
[ -e "$folder/rtx/tensorrt_rtx_libs" ] || "$python" -m pip install -q --no-deps --target "$folder/rtx" tensorrt-rtx-cu13-libs==1.7.1.116
PYTHONPATH="$folder/rtx" "$python" "$here/signatures.py" tensorrt_rtx_bindings
PYTHONPATH="$folder/rtx" "$python" "$here/parser.py" tensorrt_rtx_bindings
