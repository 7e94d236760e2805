"""Where figures go: a table for people, `build/figures/NAME.json` for everything else."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def report(name: str, figures: dict[str, float | int | str], *, model: str = "") -> None:
    """Print and keep; flat keys, with the machine's cores, the model and the commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    kept = {**figures, "cores": os.cpu_count() or 0, "model": model, "commit": commit.stdout.strip()}
    path = ROOT / "build" / "figures" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=2) + "\n")
    print(f"\n{name}")
    for key, value in kept.items():
        print(f"  {key:<24} {value:.3f}" if isinstance(value, float) else f"  {key:<24} {value}")


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of them do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
