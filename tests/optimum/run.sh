#!/bin/sh
# A model exported by `optimum-cli export onnx`, in an environment that has the extra [optimum], becomes a Bundle mapped by content.
#     sh tests/optimum/run.sh PYTHON DEVELOPMENT-PYTHON FOLDER
# optimum-onnx wants transformers 4, the development environment has 5: so each has its own; torch and the rest are borrowed.
set -eu
python=$1 ours=$2 folder=$3
mkdir -p "$folder" && folder=$(cd "$folder" && pwd)
if [ ! -e "$folder/env/.installed" ]; then
  "$python" -m venv "$folder/env"
  "$ours" -c "import sys; print(*(p for p in sys.path if p.endswith('site-packages')), sep='\n')" > "$("$folder/env/bin/python" -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")/libraries.pth"
  "$folder/env/bin/pip" install -q "$("$ours" -c "
import re, sys, pathlib
text = pathlib.Path('pyproject.toml').read_text()
print(re.search(r'^optimum = \[\"(.+?)\"\]', text, re.M)[1])")"
  touch "$folder/env/.installed"
fi
rm -rf "$folder/model" "$folder/onnx" "$folder/bundle" "$folder/other"
HF_HUB_OFFLINE=1 "$folder/env/bin/python" "$(dirname "$0")/make.py" "$folder/model"
HF_HUB_OFFLINE=1 "$folder/env/bin/optimum-cli" export onnx --model "$folder/model" --task feature-extraction "$folder/onnx" > "$folder/export.log" 2>&1 \
  || { tail -20 "$folder/export.log"; exit 1; }
"$ours" -m edgeedit.cli.main export "$folder/model" --recipe siglip --size 28 --onnx "$folder/onnx/model.onnx" -o "$folder/bundle"
"$ours" "$(dirname "$0")/check.py" "$folder"
