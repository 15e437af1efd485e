"""Generate mmesh/api from protos/: `python -m tools.generate_api DIRECTORY`."""

import pathlib
import subprocess
import sys

PROTOS = pathlib.Path("protos")


def generate(directory: pathlib.Path) -> None:
    """Write the stubs of every proto, with their `__init__.py` files, below `directory`."""
    sources = sorted(str(path) for path in PROTOS.rglob("*.proto"))
    outputs = [f"--{kind}_out={directory}" for kind in ("python", "grpc_python", "mypy")]
    outputs.append(f"--mypy_grpc_out={directory}")
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *outputs, *sources]
    plugins = f"{pathlib.Path(sys.executable).parent}:/usr/bin:/bin"
    subprocess.run(command, check=True, env={"PATH": plugins}, stderr=subprocess.DEVNULL)
    api = directory / "mmesh" / "api"
    for folder in [api, *(path for path in api.rglob("*") if path.is_dir())]:
        if folder.name != "__pycache__":
            (folder / "__init__.py").write_text('"""Generated from protos/; do not edit."""\n')


if __name__ == "__main__":
    generate(pathlib.Path(sys.argv[1]))
