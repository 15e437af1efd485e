"""Pages that the commands write."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

from mmesh.cli.output.html import comparison_page
from mmesh.content import Content
from mmesh.migration import Migration, Pair

_WRITE = r"""
import sys
from pathlib import Path
from types import SimpleNamespace
from mmesh.cli.output.html import comparison_page
from mmesh.content import Content
from mmesh.migration import Migration, Pair

nothing = SimpleNamespace(hits=())
sides = SimpleNamespace(name="photos-1"), SimpleNamespace(name="photos-2")
with comparison_page(Path(sys.argv[1]), Migration("photos", *sides, is_switched=False)) as write:
    write(Pair(Content.of("ein K\u00e4tzchen \u732b"), nothing, nothing))
"""


def test_a_comparison_is_written_as_the_utf8_that_it_says_it_is(tmp_path):
    page = tmp_path / "page.html"
    no_utf8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", _WRITE, page], check=True, env=os.environ | no_utf8)
    text = page.read_text("utf-8")
    assert '<meta charset="utf-8">' in text
    assert "ein Kätzchen 猫" in text
    assert "nothing was found" in text


def test_a_text_is_cut_with_a_sign_and_steers_nothing(tmp_path):
    page, nothing = tmp_path / "page.html", SimpleNamespace(hits=())
    sides = SimpleNamespace(name="photos-1"), SimpleNamespace(name="photos-2")
    texts = ["a" * 400, "b" * 401, "\u202egnp.tac <b>\x1b[31m", "two\r\nlines"]
    with comparison_page(page, Migration("photos", *sides, is_switched=False)) as write:
        for text in texts:
            write(Pair(Content.of(text), nothing, nothing))
    found = page.read_text("utf-8")
    assert f"<p>{'a' * 400}</p>" in found
    assert f"<p>{'b' * 399}…</p>" in found
    assert "<p>\\u202egnp.tac &lt;b&gt;\\u001b[31m</p>" in found
    assert "<p>two\nlines</p>" in found
