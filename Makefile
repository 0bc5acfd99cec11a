# Everything a developer, a newcomer and CI do. `make demo` and `make test` need only Python >= 3.10, a
# C++17 compiler and a package registry.
PYTHON ?= python3
# Where to get the CPU build of torch, when the registry's own torch is a CUDA build:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q install --no-compile -c constraints.txt $(PIP_ARGS)
# Of two processes that share two cores: threads that spin while they wait take the cores from each other.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
DATA := data/ml-100k
CHECKPOINT := artifacts/checkpoint
BUNDLE := artifacts/bundle
REPOSITORY := model_repository
CXX_FILES = $(shell find csrc bench tests -name '*.h' -o -name '*.cc' -o -name '*.cu')

.PHONY: setup demo test test-cuda-emulated check sanitize sanitize-build stubs format bench-serving bench-overload bench-coalescing bench-ops bench-catalog bench-scale bench-gpu clean
.DELETE_ON_ERROR:

setup: $(VENV)/installed

# ---- set-up -------------------------------------------------------------------------------------

$(VENV)/requirements: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) cmake ninja scikit-build-core pybind11 nlohmann-json openvino
	# The wheel that carries a tritonserver pins numpy < 2 for a Python layer that is not used here.
	$(PIP) --no-deps nvidia-pytriton==0.7.0
	touch $@

$(VENV)/installed: $(VENV)/requirements CMakeLists.txt $(shell find csrc -type f)
	CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc) $(PIP) --no-build-isolation -e '.[dev]' -C cmake.define.RECENGINE_WERROR=ON
	touch $@

$(VENV)/perf_analyzer/perf_analyzer: bench/serving/setup_perf_analyzer.py | $(VENV)/installed
	$(BIN)/python $< $(VENV)/perf_analyzer

# ---- the demo: MovieLens-100K from ratings to recommendations -----------------------------------

$(DATA)/ml-100k.inter: | $(VENV)/installed
	$(BIN)/python -m recengine.data.movielens $(DATA)

$(CHECKPOINT)/recommender.json: $(DATA)/ml-100k.inter $(wildcard recengine/data/*.py recengine/models/*.py recengine/training/*.py) | $(VENV)/installed
	$(BIN)/recengine train $(DATA) --out $(CHECKPOINT)

$(BUNDLE)/manifest.json: $(CHECKPOINT)/recommender.json recengine/bundle.py $(wildcard recengine/export/*.py) | $(VENV)/installed
	$(BIN)/recengine export $(CHECKPOINT) --out $(BUNDLE)

$(REPOSITORY)/.compiled: $(BUNDLE)/manifest.json $(wildcard recengine/compile/*.py) | $(VENV)/installed
	$(BIN)/recengine compile $(BUNDLE) --target cpu --out $(REPOSITORY)
	touch $@

demo: $(REPOSITORY)/.compiled $(VENV)/perf_analyzer/perf_analyzer
	$(BIN)/python examples/demo.py --repository $(REPOSITORY) --bundle $(BUNDLE) --data $(DATA)

# ---- checks -------------------------------------------------------------------------------------

test: $(REPOSITORY)/.compiled $(VENV)/perf_analyzer/perf_analyzer test-cuda-emulated
	$(ONE_THREAD) $(BIN)/python -m pytest tests -m "not alone" -n 2 --dist loadfile
	$(BIN)/python -m pytest tests -m alone
	git diff --exit-code -- $(REPOSITORY)

test-cuda-emulated: $(VENV)/installed
	$(ONE_THREAD) bash tools/cuda_emulated.sh $(VENV)

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/python tools/stubs.py --check
	bash tools/check_cuda.sh $(VENV)

sanitize: $(VENV)/installed
	$(ONE_THREAD) bash tools/sanitize.sh $(VENV)

sanitize-build: $(VENV)/requirements
	bash tools/sanitize.sh $(VENV) --build

stubs: $(VENV)/installed
	$(BIN)/python tools/stubs.py

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CXX_FILES)

# ---- benches: not in CI; results go to bench/results ---------------------------------------------

bench-serving: $(REPOSITORY)/.compiled $(VENV)/perf_analyzer/perf_analyzer
	$(BIN)/python -m bench.serving.compare --repository $(REPOSITORY) --bundle $(BUNDLE)

bench-overload: $(VENV)/perf_analyzer/perf_analyzer
	$(BIN)/python -m bench.serving.overload

bench-coalescing: $(VENV)/perf_analyzer/perf_analyzer
	$(BIN)/python -m bench.serving.coalescing

bench-ops: $(DATA)/ml-100k.inter
	$(BIN)/python -m bench.ops.cosine_topk $(BENCH_ARGS)
	$(BIN)/python -m bench.ops.embedding_bag $(BENCH_ARGS)

bench-catalog: $(VENV)/installed
	$(BIN)/python -m bench.ops.large_catalog

bench-scale: $(VENV)/perf_analyzer/perf_analyzer
	$(BIN)/python -m bench.scale

# On a GPU host with nvcc: builds the CUDA parts, checks them on the GPU, measures them beside torch.
bench-gpu: $(VENV)/installed
	failed=0; \
	bash tools/gpu_checks.sh $(VENV) || failed=1; \
	$(BIN)/python -m bench.gpu.embedding_bag $(BENCH_ARGS) || failed=1; \
	$(BIN)/python -m bench.gpu.cosine_topk $(BENCH_ARGS) || failed=1; \
	exit $$failed

clean:
	rm -rf build $(VENV) artifacts $(DATA) $(REPOSITORY)/.compiled $(REPOSITORY)/*/[0-9]* $(REPOSITORY)/*/failed-* $(REPOSITORY)/*/warmup
