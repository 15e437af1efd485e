"""The decoder process: reads pictures from its input, writes their pixels to its output.

It may use so much memory, and so much CPU time for each picture, as it is told; the kernel ends it
when it takes more. An order is a line of JSON and the bytes of a file, an answer a line of JSON
and the pixels.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
from collections.abc import Mapping
from typing import Any, BinaryIO

from mmesh.models.orphans import end_with_parent
from mmesh.models.pictures import BrokenPicture
from mmesh.models.pictures.containers import Container
from mmesh.models.pictures.pixels import open_picture, pixels_of, plain_pixels_of


def work(orders: BinaryIO, answers: BinaryIO, cpu_s: float) -> None:
    """Decode what is asked for until there is no more."""
    while line := orders.readline():
        order = json.loads(line)
        _allow_cpu(cpu_s)
        answer, body = _decoded(order, orders.read(order["length"]))
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(body)
        answers.flush()
        del body  # or it would be held until the next picture comes


def _decoded(order: Mapping[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        image = open_picture(Container(order["kind"], data))
        turned = order["orientation"]
        pixels = plain_pixels_of(image) if order["bare"] else pixels_of(image, turned)
        return {"size": pixels.size}, pixels.tobytes()
    except BrokenPicture as error:
        return {"error": str(error)}, b""
    except MemoryError:
        return {"error": "needs too much memory to be decoded; make it smaller"}, b""
    except Exception as error:  # decoders meet hostile bytes with errors of many types
        return {"error": f"is a broken {order['kind']} file: {error}"[:500]}, b""


def _allow_cpu(seconds: float) -> None:
    """Let this process use so much more CPU time, and be ended then."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def main() -> None:
    """Run the process: `worker MEMORY_BYTES CPU_SECONDS`."""
    memory_bytes, cpu_s = int(sys.argv[1]), float(sys.argv[2])
    end_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed must not be taken for an answer
    work(sys.stdin.buffer, answers, cpu_s)


if __name__ == "__main__":
    main()
