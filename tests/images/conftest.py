"""Images that are really built, and meshes that are really run from them: `make images-test`."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from mmesh.local.plan import HEALTH
from mmesh.local.ports import free_port
from tests.effort import patient
from tests.images.container import Container
from tools.container_images import TARGETS, Buildah, ImagesImpossible, cache_folder

BUILD_S = 900.0
"""Longest time for building all images, 2 minutes of which are usual."""
TABLE = pytest.StashKey[list[str]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run nothing of this folder by `make test`: it takes minutes, root and gigabytes."""
    for item in items:
        if item.path.parent.name == "images":
            if "MMESH_TEST_IMAGES" not in os.environ:
                item.add_marker(pytest.mark.skip("images are built by `make images-test`"))
            item.add_marker(pytest.mark.timeout(patient(BUILD_S)), append=False)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in config.stash.get(TABLE, []):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def built(request) -> Iterator[Buildah]:
    """The images of this working tree, built; each with its time and size in the summary."""
    table = request.config.stash[TABLE] = []
    with ExitStack() as stack:
        try:
            images = Buildah(cache_folder())
            lock = stack.enter_context((images.folder / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # another run would take our containers away
            stack.callback(images.close)
            begun = time.monotonic()
            images.prepare()
            table.append("image              seconds      MB")
            table.append(f"{'base':<18} {time.monotonic() - begun:7.1f}")
        except ImagesImpossible as problem:
            pytest.skip(f"images cannot be built here: {problem}")
        for target in TARGETS:
            begun = time.monotonic()
            images.build(target)
            seconds, size = time.monotonic() - begun, images.bytes_of(target) / 1e6
            table.append(f"mmesh-{target:<12} {seconds:7.1f} {size:7.0f}")
        yield images


@pytest.fixture(scope="session")
def containers(built) -> Iterator[dict[str, Container]]:
    """A container of each image, by its target."""
    with ExitStack() as stack:
        yield {
            target: Container(
                stack.enter_context(built.root_of(target)), built.configuration(target)
            )
            for target in TARGETS
        }


@pytest.fixture(scope="session")
def image_mesh(containers, tmp_path_factory) -> Iterator[str]:
    """Address of the gateway of a mesh of the four images; all of them drain when told to stop."""
    logs = tmp_path_factory.mktemp("image-mesh")
    ports = {target: free_port() for target in TARGETS}
    calls = {
        "MMESH_GATEWAY_ENCODER": f'["127.0.0.1:{ports["encoder"]}"]',
        "MMESH_GATEWAY_INDEX": f'["127.0.0.1:{ports["index"]}"]',
        "MMESH_GATEWAY_RERANKER": f"127.0.0.1:{ports['reranker']}",
        "MMESH_INDEX_DATA_DIR": "/tmp",
    }
    with ExitStack() as stack:
        running = {}
        for target in reversed(TARGETS):
            env = calls | {
                f"MMESH_{target.upper()}_{name}": value
                for name, value in (
                    ("PORT", str(ports[target])),
                    ("METRICS_PORT", "-1"),
                    ("STOP_WITH_PARENT", "1"),
                )
            }
            log = stack.enter_context((logs / f"{target}.log").open("w"))
            running[target] = containers[target].start(env=env, output=log)
            stack.callback(running[target].kill)
        for target, process in running.items():
            wait_serving(containers[target], f"127.0.0.1:{ports[target]}", target, process)
        yield f"127.0.0.1:{ports['gateway']}"
        for target in TARGETS:
            running[target].terminate()
            code = running[target].wait(patient(30))
            assert code == 0, (logs / f"{target}.log").read_text()[-2000:]


def wait_serving(
    container: Container, address: str, target: str, process: subprocess.Popen[str]
) -> None:
    """Ask with the `mmesh probe` of the image itself until the process serves."""
    until = time.monotonic() + patient(60)
    probe = ("mmesh", "probe", address, "--service", HEALTH[target])
    while (answer := container.run(*probe)) != (0, "SERVING\n"):
        assert process.poll() is None, f"{target} ended with {process.returncode}"
        assert time.monotonic() < until, f"{target} does not serve: {answer}"
