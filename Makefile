# Each target sets up what it needs in .venv; nothing is installed outside the project's folder.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-distributed test-torch test-web test-serving lint install clean

demo: .venv/installed
	$(BIN)/python tools/demo.py

test: .venv/installed-dev lint
	$(BIN)/python -m pytest -q

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -q -m slow

# All layouts of several processes, over gloo on the CPU: about half an hour on two cores.
test-distributed: .venv/installed-dev
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/parallel

# The comparisons with PyTorch code: taming-transformers, ruDALL-E, EfficientNet-Lite0, pytorch-fid, and the same transformer written there.
test-torch: .venv/installed-torch
	$(BIN)/python -m pytest -q tests/vqgan tests/convert tests/benchmark tests/evaluation/test_efficientnet.py tests/evaluation/test_inception.py

# Against the real Paddle Serving; two servers behind nginx (apt install nginx-light); the manifest by the schemas of Kubernetes.
test-serving: .venv/installed-deploy-test
	$(BIN)/python -m pytest -q -m "slow or not slow" \
		tests/server/test_conformance.py tests/server/test_replicas.py tests/server/test_kubernetes.py

# The web page in Debian's Chromium (apt install chromium chromium-driver), against a server of the tests' and the real one.
test-web: .venv/installed-dev requirements-web-test.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-web-test.txt
	$(BIN)/python -m pytest -q -m "slow or not slow" tests/web

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

install: .venv/installed

clean:
	rm -rf .venv build *.egg-info

.venv/installed: requirements.txt constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt requirements-data.txt requirements-eval.txt requirements-onnx.txt requirements-serving.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

.venv/installed-torch: .venv/installed-dev requirements-convert.txt requirements-bench.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-convert.txt -r requirements-bench.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps taming-transformers-rom1504==0.0.6 \
		efficientnet_lite_pytorch==0.1.0 pytorch-fid==0.3.0 torchvision==0.28.0 rudalle==1.1.3
	touch $@

.venv/installed-deploy-test: .venv/installed-dev requirements-deploy-test.txt requirements-paddle-serving.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-deploy-test.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps paddle-serving-server==0.9.0 paddle-serving-app==0.9.0
	touch $@
