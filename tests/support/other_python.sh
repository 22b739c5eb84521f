#!/bin/sh
# Run the device-side suite on another interpreter: INTERPRETER VENV ONNXRUNTIME TESTS
set -eu
"$1" -m venv "$2"
"$2/bin/pip" install -q scikit-build-core nanobind cmake ninja numpy click cryptography tomli "$3" onnx pytest pytest-timeout hypothesis 'tuf>=7,<8' 'securesystemslib[crypto]' urllib3 'sqlalchemy>=2' 'alembic>=1.13' scipy prometheus-client 'paho-mqtt>=2.1' pillow \
	'river; python_version >= "3.11"'
# Stubs only: with its dependencies it would ask for the vendor's libraries.
"$2/bin/pip" install -q --no-deps -c requirements/constraints.txt tensorrt-stubs
# The wheel is built for this interpreter and installed without the source tree on the path.
rm -rf "build/$2" && mkdir -p "build/$2"
"$2/bin/pip" wheel -q . --no-build-isolation --no-deps -w "build/$2"
"$2/bin/pip" install -q --no-deps --force-reinstall "build/$2"/edgeedit-*.whl
root=$(pwd)
# Started elsewhere, so that the source tree does not shadow the wheel.
tests=""
for test in $4; do tests="$tests $root/$test"; done
cd / && "$root/$2/bin/python" -m pytest -q -p no:cacheprovider -c "$root/pyproject.toml" --rootdir "$root" $tests
