#!/usr/bin/env bash
# Measures mmesh on the GPU of this machine; see check.py. Needs what requirements/gpu-check.txt lists.
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
export PYTORCH_NVML_BASED_CUDA_CHECK=1  # imports must not touch the device: sections are forked
exec "${PYTHON:-python3}" "$root/benchmarks/gpu/check.py" "$@"
