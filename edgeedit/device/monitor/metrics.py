"""The monitor's figures as a Prometheus text file (node_exporter's textfile collector), written whole or not at all.

Names follow Prometheus: `edgeedit_<noun>_<unit>` in base units; no label grows with frames.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_HELP = {
    "edgeedit_frames_total": ("counter", "Frames answered."),
    "edgeedit_frames_skipped_total": ("counter", "Frames that the monitor had no time for."),
    "edgeedit_frames_not_finite_total": ("counter", "Answers that were not finite."),
    "edgeedit_windows_total": ("counter", "Windows judged."),
    "edgeedit_overrides_total": ("counter", "Verdicts that an operator changed."),
    "edgeedit_monitor_errors_total": ("counter", "Errors inside the monitor."),
    "edgeedit_monitor_cpu_seconds_total": ("counter", "CPU time of the monitor's thread."),
    "edgeedit_events_total": ("counter", "Events by kind."),
    "edgeedit_generation": ("gauge", "Generation that answers."),
    "edgeedit_calibrated": ("gauge", "1 when clean days are learnt."),
    "edgeedit_drift_ratio": ("gauge", "CUSUM over its alarm threshold, by signal; 1 is an alarm."),
    "edgeedit_generation_info": ("gauge", "1; what answers: fingerprints of the Bundle and of the running weights, digest of the patch."),
    "edgeedit_signal_ratio": ("gauge", "Value of a signal in the last window: a share, a distance or an index."),
    "edgeedit_frame_seconds": ("gauge", "Engine time of a frame in the last window, by quantile."),
    "edgeedit_temperature_celsius": ("gauge", "Highest thermal zone."),
}


@dataclass
class Figures:
    """Numbers without labels, families with one label: name -> (label, value of the label -> number), and facts as labels of a 1."""

    plain: dict[str, float] = field(default_factory=dict)
    families: dict[str, tuple[str, Mapping[str, float]]] = field(default_factory=dict)
    facts: dict[str, Mapping[str, str]] = field(default_factory=dict)


def figures_of(
    plain: Mapping[str, float],
    counts: Mapping[str, float],
    sums: Mapping[str, float] | None,
    signals: Mapping[str, float],
    times: Mapping[str, float],
    facts: Mapping[str, str],
) -> Figures:
    """A Monitor's figures: `plain` ones by their names; its `counts` by kind; charts' `sums` over their thresholds, None before clean days
    are learnt; the last window's `signals` and frame `times`; and what is known of the generation."""
    counted = {
        "edgeedit_frames_total": "frames",
        "edgeedit_frames_not_finite_total": "not_finite",
        "edgeedit_windows_total": "windows",
        "edgeedit_overrides_total": "overrides",
    }
    whole = {**plain, **{name: counts.get(kind, 0) for name, kind in counted.items()}, "edgeedit_calibrated": int(sums is not None)}
    if (degrees := temperature()) is not None:
        whole["edgeedit_temperature_celsius"] = degrees
    events = {key[6:]: float(value) for key, value in counts.items() if key.startswith("event ")}
    values = {name: value for name, value in signals.items() if name != "latency"}  # that one is a logarithm
    families: dict[str, tuple[str, Mapping[str, float]]]
    families = {"edgeedit_events_total": ("kind", events), "edgeedit_drift_ratio": ("signal", sums or {})}
    families |= {"edgeedit_signal_ratio": ("signal", values), "edgeedit_frame_seconds": ("quantile", times)}
    return Figures(whole, families, {"edgeedit_generation_info": facts})


def exposition(figures: Figures) -> str:
    """Prometheus text format, version 0.0.4."""
    lines = []
    for name, (kind, text) in _HELP.items():
        label, values = figures.families.get(name, ("", {}))
        rows = [f"{name} {figures.plain[name]!r}"] if name in figures.plain else []
        rows += [f'{name}{{{label}="{key}"}} {float(value)!r}' for key, value in sorted(values.items())]
        if name in figures.facts:
            labels = ",".join(f'{key}="{_escaped(fact)}"' for key, fact in figures.facts[name].items())
            rows.append(f"{name}{{{labels}}} 1")
        if rows:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *rows]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def write_textfile(path: Path, text: str) -> None:
    """Replace `path`; a reader sees the old file or the new one.  Not synced: after a power cut the next one follows.  Raises OSError."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temp.write_text(text, "utf-8")
    temp.replace(path)


def temperature() -> float | None:
    """Highest temperature of the thermal zones in degrees Celsius; None where none can be read."""
    found = []
    for zone in Path("/sys/class/thermal").glob("thermal_zone*/temp"):
        try:
            found.append(int(zone.read_text("ascii")) / 1000)
        except (OSError, ValueError):
            continue
    return max(found, default=None)
