"""Tables of capacity plans in pages: what `mmesh plan` says of ever more rows."""

from mmesh.capacity import Gpu, Plan, Wish, plan
from mmesh.capacity.coefficients import Coefficients
from tools import coefficients

SIZES = {"1 M": 10**6, "10 M": 10**7, "100 M": 10**8, "1 B": 10**9}
POLL_S = 0.05
"""Seconds between an index process' looks at the log: the default of the setting."""
_PROPERTIES = (
    "rows", "shards", "rows of one", "index pods", "GiB of one", "cores of one",
    "CPU ms a search, in a shard", "gateways", "their CPU ms a search", "build of a shard, hours",
    "new shard set, hours", "looks at the log a second",
)  # fmt: skip


def growth() -> str:
    """Return a table of 1 M to 1 B rows of 1024, 500 searches a second, two replicas."""
    measured = Coefficients.of(coefficients.current())
    sizes = [_column(name, plan(wish(rows), measured)) for name, rows in SIZES.items()]
    lines = zip(_PROPERTIES, *sizes, strict=True)
    first, *rest = (f"| {' | '.join(cells)} |\n" for cells in lines)
    return "".join([first, "|---" * (len(SIZES) + 1) + "|\n", *rest])


def wish(rows: int) -> Wish:
    """Return the wish that the table is about."""
    return Wish(rows, 1024, qps=500, gpu=Gpu.H200)


def _column(name: str, found: Plan) -> list[str]:
    index = found.index
    gateway = next(one for one in found.pods if one.name == "gateway")
    pods = index.shards * index.replicas
    return [
        name, f"{index.shards}", f"{index.rows:,}", f"{pods}", f"{index.memory_bytes / 2**30:.0f}",
        f"{index.cores}", f"{index.search_ms:.1f}", f"{gateway.count}",
        gateway.reason.partition(" ")[0], f"{index.build_s / 3600:.2g}",
        f"{index.load_log_s / 3600:.2g}", f"{pods / POLL_S:,.0f}",
    ]  # fmt: skip


TABLES = {"growth": growth}
