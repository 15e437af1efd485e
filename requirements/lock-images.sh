#!/usr/bin/env bash
# Writes requirements/images/*.txt: every package of an image with its hashes, for Linux and Python 3.11.
# The CPU images take the versions that the tests run with (constraints.txt).
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${1:-uv}
compile() {
  "$uv" pip compile --quiet --generate-hashes --no-emit-index-url --no-header --no-annotate \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 "$@"
}
cpu() {
  local lock=$1; shift
  compile pyproject.toml "${@/#/--extra=}" --extra tracing -c requirements/constraints.txt -o "requirements/images/$lock.txt"
}

cpu gateway gateway
cpu index index
cpu lite encoder reranker  # one layer of both images
compile pyproject.toml --extra encoder --extra models --extra tracing -o requirements/images/encoder-gpu.txt
compile pyproject.toml --extra reranker --extra vllm --extra tracing -o requirements/images/reranker-gpu.txt
echo 'hatchling>=1.27' | compile - -o requirements/images/build.txt
