"""What a store runs, as plain JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeedit.device.store import Store


def status_of(path: Path) -> dict[str, Any]:
    """Head, trial, chain and history of a store."""
    with Store.open(path) as store:
        head, trial = store.head(), store.trial()
        return {
            "head": asdict(head),
            "trial": asdict(trial) if trial else None,
            "chain": [generation.patch for generation in store.chain(head.id)],
            "recipe": store.bundle.recipe,
            "precision": store.bundle.precision,
            "trusted_keys": [key.key_id for key in store.trust],
            "history": store.history(),
        }
