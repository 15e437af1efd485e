"""Parent-death watch: processes of an engine end with the service that started them.

A service that is killed cannot stop its engine, whose processes would keep the model's memory, on
a GPU the card. So each of them watches its parent, whose number it finds in the environment.
vLLM calls `end_with_parent` at the start of processes that it spawns, as an entry point of the
group `vllm.platform_plugins`; those that it forks begin to watch at once.
"""

from __future__ import annotations

import os
import threading
import time

PARENT = "MMESH_PARENT_PID"
"""Variable with the number of the process that sets it, for those that it starts."""
_LOOK_S = 0.25


def end_children_with_this() -> None:
    """Let all processes that this one forks or spawns end with it, and theirs with them."""
    if os.environ.get(PARENT) != str(os.getpid()):
        os.environ[PARENT] = str(os.getpid())
        os.register_at_fork(after_in_child=end_with_parent)


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, also if that was before.

    Does nothing where no parent called `end_children_with_this`, and when called again. Returns
    None, which tells vLLM that this plugin brings no platform.
    """
    parent = os.environ.get(PARENT, "")
    if parent and parent != str(os.getpid()):
        end_children_with_this()
        threading.Thread(target=_end_after, args=(int(parent),), daemon=True, name="parent").start()


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)  # no clean-up: it may wait for the parent
