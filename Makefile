# Everything runs from one virtual environment, made by the first command that needs it.
VENV ?= .venv
JOBS ?= $(shell nproc)
PYTHON_IN := $(VENV)/bin/python
export VENV TORCH REQUIREMENTS PYTHON MAX_JOBS

.DEFAULT_GOAL := help
.PHONY: help setup test-setup demo demo-seg demo-cls demo-trained web test test-all test-isa test-asan mutation lint

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## make the environment (.venv); does nothing when it is there
	@tools/support/setup.sh

demo: setup  ## train and evaluate Mask R-CNN RMT-T on a built-in dataset, or on DATA=path/to/coco
	$(PYTHON_IN) tools/quickstart.py detection $(if $(DATA),--data "$(DATA)")

demo-seg: setup  ## the same for semantic segmentation
	$(PYTHON_IN) tools/quickstart.py segmentation

demo-cls: setup  ## train a classifier on crops of these scenes; what it leaves starts a detector
	$(PYTHON_IN) tools/quickstart.py classification

DEMO := work_dirs/demo
demo-trained:
	@test -f $(DEMO)/iter_330.pth || \
	    { echo "make web: $(DEMO)/iter_330.pth is not there; run make demo first" >&2; exit 2; }

web: demo-trained setup  ## try what `make demo` trained, on a page in the browser; ARGS="--port 8000"
	@$(call HAS,gradio) || $(INSTALL) requirements-web.txt
	$(PYTHON_IN) tools/web_demo.py $(DEMO)/mask_rcnn_rmt_t_fpn_shapes.py $(DEMO)/iter_330.pth $(ARGS)

# a CUDA build of torch brings the Triton that it was made for: never another one over it
HAS = $(PYTHON_IN) -c 'import importlib.util as i, sys; sys.exit(i.find_spec("$(1)") is None)'
INSTALL := $(PYTHON_IN) -m pip install --quiet --no-deps -r
test-setup: setup
	@$(call HAS,labelformat) || $(INSTALL) requirements-own-data.txt
	@$(call HAS,openvino) || $(INSTALL) requirements-export.txt
	@$(call HAS,gradio) || $(INSTALL) requirements-web.txt
	@$(call HAS,selenium) || $(INSTALL) requirements-browser.txt
	@$(call HAS,nbclient) || $(INSTALL) requirements-notebook.txt
	@$(call HAS,triton) || $(INSTALL) requirements-test.txt

test: test-setup  ## run the tests, on all cores (JOBS=1 for one); ARGS=... goes to pytest
	$(PYTHON_IN) -m pytest -n $(JOBS) --dist loadfile $(ARGS)
	$(if $(ARGS),,$(OPENVINO_TESTS) -m 'openvino and not slow')

OPENVINO_TESTS := $(PYTHON_IN) -m pytest tests/tools/exported tests/tools/exporting \
	tests/tools/test_export_onnx.py

test-all: test-setup  ## the slow tests too
	@$(call HAS,mlxtend) || $(INSTALL) requirements-test-all.txt
	$(PYTHON_IN) -m pytest -n $(JOBS) --dist loadfile -m "not openvino" $(ARGS)
	$(if $(ARGS),,$(OPENVINO_TESTS) -m openvino)

KERNEL_TESTS := -m pytest -q -p no:cacheprovider tests/kernels/test_attention_kernel.py \
	tests/kernels/test_convolution.py $(ARGS)
# the last one: the lanes of AVX-512, on any processor
ISAS := -mno-avx512f -march=x86-64 -DRMT_LANES=16

test-isa: setup  ## the kernels' tests, compiled for other processors
	for flags in $(ISAS); do \
	    echo "RMT_KERNEL_FLAGS=$$flags"; RMT_KERNEL_FLAGS=$$flags $(PYTHON_IN) $(KERNEL_TESTS) || exit; \
	done

SANITIZE := -O1 -fsanitize=address,undefined -fno-sanitize-recover=all
LIBRARY = $(shell $(CXX) -print-file-name=$(1))

# compiled before: Python is run with the sanitizers, the compiler is not
test-asan: setup  ## the kernels' tests, every memory access and integer checked
	RMT_KERNEL_FLAGS="$(SANITIZE)" $(PYTHON_IN) -c "from backbone.kernels import build; build.compiled()"
	RMT_KERNEL_FLAGS="$(SANITIZE)" ASAN_OPTIONS=detect_leaks=0 \
	    LD_PRELOAD="$(call LIBRARY,libasan.so) $(call LIBRARY,libubsan.so)" $(PYTHON_IN) $(KERNEL_TESTS)

mutation: test-setup  ## what share of small faults in backbone/ the tests notice; half an hour
	$(PYTHON_IN) tests/mutants.py $(ARGS)

lint: setup  ## check style and formatting
	$(PYTHON_IN) -m ruff check .
	$(PYTHON_IN) -m ruff format --check .
