"""Where a change comes from: ids, digests, data, settings, versions, signers, as rows of (label, value).

Guarantees: plain strings; nothing is added that the Delta or the caller did not state, absent facts are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeedit.delta import Delta

_PATCH_LABELS = {"patch_digest": "Patch digest", "parent": "Parent fingerprint", "result": "Result fingerprint", "signers": "Signed by"}


def _setting(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_setting(own) for own in value)
    return str(value)


def _settings(values: Mapping[str, Any]) -> str:
    return "; ".join(f"{key} {_setting(value)}" for key, value in values.items())


def _section(info: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = info.get(key)
    return value if isinstance(value, Mapping) else {}


def _data(info: Mapping[str, Any]) -> list[tuple[str, Any]]:
    shots, former, control = (_section(info, name) for name in ("shots", "former", "control"))
    rows: list[tuple[str, Any]] = [
        ("Shots", f"{shots['n']} labelled images" if "n" in shots else None),
        ("Shots digest", shots.get("digest")),
        ("Shots of earlier edits", former.get("n")),
        ("Their digest", former.get("digest")),
        ("Control images used in the edit", control.get("n")),
        ("Control digest", control.get("digest")),
    ]
    for name, held in _section(info, "heldout").items():
        if isinstance(held, Mapping):
            rows.append((f"Held-out {name} digest", held.get("digest")))
    return rows


def provenance_rows(delta: Delta, cost: Mapping[str, Any]) -> list[dict[str, str]]:
    """{label, value} of everything that says where this change comes from."""
    info = delta.info
    encoder, reader = _section(info, "encoder"), _section(info, "reader")
    rows: list[tuple[str, Any]] = [
        ("Encoder recipe", encoder.get("recipe")),
        ("Encoder source digest", encoder.get("source_digest")),
        ("Patched from the encoder", encoder.get("patched_from")),
        ("Reader (frozen)", _settings({k: reader[k] for k in ("kind", "classes") if k in reader})),
        ("Reader digest", reader.get("digest")),
        *_data(info),
        ("Method", _settings(_section(info, "method"))),
        ("Seed", info.get("seed")),
        ("Versions", _settings(_section(info, "versions"))),
        ("Weight matrices changed", f"{len(delta.tensors)}: {', '.join(t.name for t in delta.tensors)}"),
    ]
    for key, label in _PATCH_LABELS.items():
        value = cost.get(key, info.get(key))
        rows.append((label, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value))
    return [{"label": label, "value": str(value)} for label, value in rows if value not in (None, "")]


def licence_notes(info: Mapping[str, Any]) -> list[str]:
    """Licence notes of the data, as stated."""
    notes = info.get("licence_notes") or ()
    return [notes] if isinstance(notes, str) else [str(note) for note in notes]
