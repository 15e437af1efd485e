import subprocess
import sys

import pytest

from mmesh.errors import MemoryFull
from services.index.view.memory import MemoryBudget, available_bytes, load_bytes, process_bytes


def test_what_fits_is_let_in_and_what_does_not_is_refused_with_the_numbers():
    budget = MemoryBudget(process_bytes() + (64 << 20))
    budget.check("small", 1 << 20)
    with pytest.raises(MemoryFull, match="collection 'large' needs about 1024 MiB more") as refused:
        budget.check("large", 1 << 30)
    assert refused.value.metadata["collection"] == "large"
    assert "Add shards" in refused.value.message


def test_the_default_limit_is_most_of_what_there_is():
    assert 0.8 * available_bytes() < MemoryBudget.of(0).limit < available_bytes()
    assert MemoryBudget.of(123).limit == 123


def test_loading_takes_at_least_the_vectors():
    assert load_bytes(1000, 384) > 1000 * 384 * 4


KEPT = """
from mmesh.serving.trimming import keep_freed
from services.index.view.memory import MemoryBudget, process_bytes
keep_freed()
budget = MemoryBudget(process_bytes() + (64 << 20))
bytearray(b"x" * (100 << 20))
assert process_bytes() > budget.limit
budget.check("small", 1 << 20)
"""


def test_what_was_freed_is_not_in_use():
    subprocess.run([sys.executable, "-c", KEPT], check=True)
