"""Rules: plain files of Prometheus, which promtool reads, made into objects of its operator."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[2] / "k8s" / "components" / "monitoring"
TARGET = FOLDER / "prometheusrules.yaml"
NOTE = "# Generated from rules/ by `make k8s`; do not edit.\n"


def rule_files() -> list[Path]:
    """Return the files with rules, by name."""
    return sorted((FOLDER / "rules").glob("*.yaml"))


def prometheus_rules() -> str:
    """Return a PrometheusRule for each file of rules."""
    return NOTE + "---\n".join(_rule_of(path) for path in rule_files())


def _rule_of(path: Path) -> str:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    head = (
        "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\n"
        f"metadata:\n  name: mmesh-{path.stem}\nspec:\n"
    )
    return head + "".join(f"  {line}\n" if line else "\n" for line in lines)


def is_current() -> bool:
    """Tell whether the committed objects are what the rules say."""
    return TARGET.is_file() and TARGET.read_text() == prometheus_rules()


if __name__ == "__main__":
    TARGET.write_text(prometheus_rules())
