"""Texts that every Debian machine can get: synopses and descriptions of packages.

`apt-cache dumpavail` has no long descriptions: they are in the English translations of the
archive, which `apt-get update` fetches here into a folder of its own, without touching the system.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

LONGEST = 600
SHORTEST = 80
"""Characters of a description; shorter ones say too little to be found by."""
LEAVE_OUT = re.compile(
    r"^lib|^(?:gir1|task|language|hunspell|aspell|myspell|hyphen|mythes|fonts|linux|puppet)\b"
    r"|-(?:dev|doc|docs|data|common|dbg|dbgsym|examples|l10n|i18n|lang|locales|plugins?|all|meta)\b"
)
"""Names of libraries, their headers and documents, data, language packs, plug-ins, collections."""
EMPTY = re.compile(r"meta-?package|dummy package|transitional|virtual package", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Package:
    """A program: its name, one line about it, and a description that does not name it."""

    name: str
    synopsis: str
    description: str


def programs(work: Path) -> list[Package]:
    """Return one package of each name stem in an order by hash, libraries and the like left out."""
    stems: dict[str, Package] = {}
    for record in sorted(records(work)):
        package = _package(record)
        if package is not None:
            stems.setdefault(_stem(package.name), package)
    return sorted(stems.values(), key=lambda package: _digest(package.name))


def with_usable_synopsis(packages: Iterable[Package]) -> list[Package]:
    """Return those whose synopsis does not hold their own name."""
    return [p for p in packages if not _name_pattern(p.name).search(p.synopsis)]


def digest_of(packages: Sequence[Package]) -> str:
    """Return what tells this list from that of another release of Debian."""
    return _digest("\n".join(f"{p.name}\t{p.synopsis}\t{p.description}" for p in packages))[:16]


def _package(record: str) -> Package | None:
    fields = re.split(r"\n(?=\S)", record.strip())
    values = dict(line.split(": ", 1) for line in fields if ": " in line)
    name, text = values.get("Package", ""), values.get("Description-en", "")
    synopsis, _, rest = text.partition("\n")
    if not name or LEAVE_OUT.search(name) or EMPTY.search(text):
        return None
    description = _name_pattern(name).sub("it", " ".join(rest.replace("\n .", "\n").split()))
    if len(description) < SHORTEST:
        return None
    return Package(name, synopsis.strip(), description[:LONGEST])


def _name_pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)


def _stem(name: str) -> str:
    """Return the name's first part without numbers: all of python3-* is one stem."""
    return re.sub(r"[\d.+]+$", "", name.split("-")[0]) or name


def records(work: Path) -> list[str]:
    folder = work / "apt"
    files = list(folder.glob("lists/*_Translation-en"))
    if not files:
        _update(folder)
        files = list(folder.glob("lists/*_Translation-en"))
    main = max(files, key=lambda path: path.stat().st_size)  # the others hold updates
    return main.read_text("utf-8", "replace").split("\n\n")


def _update(folder: Path) -> None:
    """Fetch the package lists, with the configuration of the system but for where they go."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Acquire::Languages": "en",
        "Acquire::GzipIndexes": "false",
    }
    flags = [flag for name, value in settings.items() for flag in ("-o", f"{name}={value}")]
    try:
        subprocess.run(["apt-get", *flags, "update"], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise SystemExit("apt-get is missing: this benchmark needs Debian or Ubuntu") from None
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"apt-get update failed: {error.stderr.strip()}") from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
