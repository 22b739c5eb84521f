"""In the arm64 Python: import the wheel, provision, verify and apply the patches, compare every digest, refuse a damaged one.

Arguments: the folder of `prepare.py`, the JSON to write, the wheel's name.  Any difference ends with an exception."""

from __future__ import annotations

import importlib
import json
import pkgutil
import platform
import sys
from pathlib import Path

import numpy as np

import edgeedit.device
from edgeedit.device.apply import apply_patch
from edgeedit.device.engines import exchange
from edgeedit.device.engines.choose import open_engine
from edgeedit.device.prepare import replay
from edgeedit.device.store import Store
from edgeedit.digest import digest_array
from edgeedit.errors import IntegrityError


def must(true: bool, what: str) -> None:
    """End with an exception unless `true`."""
    if not true:
        raise SystemExit(f"arm64: {what}")


def check(folder: Path, public: Path, expected: dict[str, object]) -> dict[str, object]:
    """Apply one patch; returns what was seen."""
    damaged = bytearray((folder / "fix.eep").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (folder / "bad.eep").write_bytes(damaged)
    store = folder / "store"
    with Store.create(store, folder / "bundle", [public]) as made:
        must(made.head().result == expected["parent"], "the base has another fingerprint")
    try:
        apply_patch(store, folder / "bad.eep")
    except IntegrityError:
        pass
    else:
        must(False, "a damaged patch was taken")
    result = apply_patch(store, folder / "fix.eep", threads=1)
    must(result.state == "confirmed", f"the patch is {result.state}")
    with Store.open(store) as opened:
        head = opened.head()
        must(head.result == expected["result"], "the result has another fingerprint")
        weights, digests = replay(opened.bundle, [opened.patch(g.patch) for g in opened.chain(head.id)])
        bundle = opened.bundle
    after = expected["after"]
    must(isinstance(after, dict) and all(digest_array(weights[n]) == d == digests[n].sha256 for n, d in after.items()), "a digest differs")
    engine = open_engine(bundle, weights, threads=1)
    moved = engine.run(np.array(bundle.probes()[:1]))
    must(bool(np.isfinite(moved).all()), "features are not finite")
    return {"state": result.state, "result": head.result, "tensors": len(after), "engine": engine.describe()}


def main() -> None:
    """Run all checks and write the JSON."""
    folder, out, wheel = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    must(platform.machine() == "aarch64", f"this is {platform.machine()}")
    modules = [m.name for m in pkgutil.walk_packages(edgeedit.device.__path__, "edgeedit.device.")]
    for name in modules:
        importlib.import_module(name)
    import onnxruntime

    expected = json.loads((folder / "expected.json").read_text("utf-8"))
    seen = {precision: check(folder / precision, folder / "ml.pub", row) for precision, row in expected.items()}
    versions = {"python": platform.python_version(), "numpy": np.__version__, "onnxruntime": onnxruntime.__version__}
    value = {"wheel": wheel, "machine": platform.machine(), **versions, "imported": len(modules), "exchange": exchange.supported(), **seen}
    out.write_text(json.dumps(value, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
