"""Texts that every Debian machine can get: synopses and descriptions of packages.

`apt-cache dumpavail` has no long descriptions: they are in the translations of the archive, English
and others, which `apt-get update` fetches here into a folder of each language, without touching the
system.
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
ITSELF = {"en": "it", "de": "es"}
"""What stands for a package's name in its description, by language."""
EMPTY = re.compile(r"meta-?package|dummy package|transitional|virtual package", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Package:
    """A program: its name, one line about it, and a description that does not name it."""

    name: str
    synopsis: str
    description: str
    original: str = ""
    """The archive's checksum of the English text; a translation has that of what it translates."""


def packages(work: Path, language: str = "en") -> list[Package]:
    """Return all packages that are described at some length in a language, libraries and all."""
    found = (_package(record, language) for record in sorted(records(work, language)))
    return [package for package in found if package is not None]


def programs(work: Path) -> list[Package]:
    """Return one package of each name stem in an order by hash, libraries and the like left out."""
    stems: dict[str, Package] = {}
    for package in packages(work):
        if not LEAVE_OUT.search(package.name):
            stems.setdefault(_stem(package.name), package)
    return sorted(stems.values(), key=lambda package: _digest(package.name))


def translations(work: Path, language: str) -> list[tuple[Package, Package]]:
    """Return packages in English and in a language; synopses that are the same are left out."""
    english = {(one.name, one.original): one for one in packages(work)}
    pairs = [
        (english[key], one)
        for one in packages(work, language)
        if (key := (one.name, one.original)) in english
    ]
    return [(original, one) for original, one in pairs if original.synopsis != one.synopsis]


def family(name: str) -> str:
    """Return what a program shares with its libraries, data and documents: the stem of its name.

    >>> {family(name) for name in ("libsword-dev", "sword-text", "sword2")}
    {'sword'}
    """
    stem = _stem(name)
    return stem.removeprefix("lib") or stem


def with_usable_synopsis(packages: Iterable[Package]) -> list[Package]:
    """Return those whose synopsis does not hold their own name."""
    return [p for p in packages if not _name_pattern(p.name).search(p.synopsis)]


def digest_of(packages: Sequence[Package]) -> str:
    """Return what tells this list from that of another release of Debian."""
    return _digest("\n".join(f"{p.name}\t{p.synopsis}\t{p.description}" for p in packages))[:16]


def _package(record: str, language: str) -> Package | None:
    fields = re.split(r"\n(?=\S)", record.strip())
    values = dict(line.split(": ", 1) for line in fields if ": " in line)
    name, text = values.get("Package", ""), values.get(f"Description-{language}", "")
    synopsis, _, rest = text.partition("\n")
    if not name or EMPTY.search(text):
        return None
    plain = " ".join(rest.replace("\n .", "\n").split())
    description = _name_pattern(name).sub(ITSELF[language], plain)
    if len(description) < SHORTEST:
        return None
    original = values.get("Description-md5", "")
    return Package(name, synopsis.strip(), description[:LONGEST], original)


def _name_pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)


def _stem(name: str) -> str:
    """Return the name's first part without numbers: all of python3-* is one stem."""
    return re.sub(r"[\d.+]+$", "", name.split("-")[0]) or name


def records(work: Path, language: str = "en") -> list[str]:
    """Return the archive's translations into a language as they are; fetched at first use."""
    folder = work / ("apt" if language == "en" else f"apt-{language}")
    pattern = f"lists/*_Translation-{language}"
    files = list(folder.glob(pattern))
    if not files:
        _update(folder, language)
        files = list(folder.glob(pattern))
    if not files:
        raise SystemExit(f"this machine's archive has no translations into {language!r}")
    main = max(files, key=lambda path: path.stat().st_size)  # the others hold updates
    return main.read_text("utf-8", "replace").split("\n\n")


def _update(folder: Path, language: str) -> None:
    """Fetch the package lists, with the configuration of the system but for where they go."""
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State::lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Acquire::Languages": language,
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
