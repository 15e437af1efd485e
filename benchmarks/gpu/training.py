"""How fast Qwen3-VL-Embedding's real shape trains on a GPU: random weights, LoRA, cached gradients.

Each step embeds queries and illustrated candidates without a graph, computes the contrastive loss,
and embeds chunk by chunk again to pass gradients on. MFU counts what training needs, one pass forth
and the way back to the activations, as two passes; HFU counts the first pass of the cache, too, and
what gradient checkpointing computes again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ceilings import peak_tflops
from inputs import Inputs
from models import opened
from section import Found, Options, prepared, synchronize

from mmesh.content import Role
from mmesh.training.cached_gradients import backward
from mmesh.training.contrast import contrast
from mmesh.training.learners.adapters import count_parameters
from mmesh.training.learners.checkpointing import checkpoint_layers
from mmesh.training.learners.learner import Adapting
from mmesh.training.learners.towers import TowerLearner

MODEL = "qwen3-vl-embedding-2b"
WANTED_MFU = 0.35
GB = 1e9


def measure(
    options: Options, found: Found, batches: list[int], chunks: list[int], *, again: bool
) -> None:
    """Train for some steps at each batch and chunk; a batch in one piece shows what is saved.

    With `again`, layers are computed again on the way back (gradient checkpointing).
    """
    dtype = "bfloat16" if options.is_cuda else "float32"
    peak = peak_tflops(options)
    best = 0.0
    with opened(
        MODEL, small=options.small, device=options.device, dtype=dtype, compiling="off"
    ) as sized:
        learner = TowerLearner(sized.model, "qwen3-vl-embedding", Path(), Adapting(8, 64))
        if again:
            checkpoint_layers(learner.network)
        trains, everything = count_parameters(learner.network)
        found.row("parameters", train=trains, of=everything, gradient_checkpointing=again)
        for batch in batches:
            for chunk in chunks:
                if chunk and chunk > 2 * batch:
                    continue
                values = _steps(options, learner, sized, batch, chunk)
                if values is None:
                    found.row(f"batch {batch}, chunk {chunk or 'whole'}", fits=False)
                    continue
                mfu = values.pop("tflops") / peak
                best = max(best, mfu)
                found.row(
                    f"batch {batch}, chunk {chunk or 'whole'}",
                    **values,
                    mfu=mfu,
                    hfu=mfu * (2 + bool(chunk) + again) / 2,
                )
    if options.is_cuda:
        found.gate(f"MFU of the best batch >= {WANTED_MFU}", best, best >= WANTED_MFU)


def _steps(
    options: Options, learner: TowerLearner, sized: Any, batch: int, chunk: int
) -> dict[str, Any] | None:
    """Return rates and the peak of memory of a few steps; None where they do not fit."""
    made = Inputs(options.seed, options.scale)
    queries = prepared(sized.model, made.queries(batch), Role.QUERY)
    shown = made.pictures(batch, 512)
    inputs = [*queries, *prepared(sized.model, shown)]
    parameters = [one for one in learner.network.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4)
    masked = torch.zeros(batch, batch, dtype=torch.bool, device=options.device)
    scale = torch.tensor(20.0, device=options.device)

    def loss_of(vectors: torch.Tensor) -> tuple[torch.Tensor, None]:
        return contrast(vectors[:batch], vectors[batch:], masked, scale).loss, None

    def step() -> None:
        optimiser.zero_grad()
        backward(learner.embed, inputs, loss_of, chunk)
        optimiser.step()

    if options.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        step()
        seconds, done = 0.0, 0
        while seconds < options.seconds or not done:
            synchronize(options.device)
            begun = time.perf_counter()
            step()
            synchronize(options.device)
            seconds, done = seconds + time.perf_counter() - begun, done + 1
    except torch.OutOfMemoryError:
        optimiser.zero_grad()
        torch.cuda.empty_cache()
        return None
    each = seconds / done
    tokens = sum(len(one.payload.ids) for one in inputs)
    flops = 2 * float(np.sum([sized.flops(one) for one in inputs]))
    memory = torch.cuda.max_memory_allocated() / GB if options.is_cuda else 0.0
    return {
        "pairs_per_s": batch / each,
        "tokens_per_s": tokens / each,
        "tflops": flops / each / 1e12,
        "gb": memory,
    }


def main() -> int:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="sizes that suit a CPU")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each batch")
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--chunks", type=int, nargs="+", default=[0, 8, 32])
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    given = parser.parse_args()
    options = Options(given.device, given.small, given.seconds)
    found = Found()
    measure(options, found, given.batches, given.chunks, again=given.gradient_checkpointing)
    given.out.mkdir(parents=True, exist_ok=True)
    about = {"torch": torch.__version__, "device": _device(options)}
    path = given.out / "gpu_training.json"
    path.write_text(json.dumps(about | found.as_json(), indent=1) + "\n")
    print(f"stored {path.name}")
    return 0 if all(gate["passed"] for gate in found.gates) else 1


def _device(options: Options) -> str:
    return torch.cuda.get_device_name() if options.is_cuda else "CPU"


if __name__ == "__main__":
    sys.exit(main())
