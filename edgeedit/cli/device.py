"""Commands that run on a device; no torch, no onnx."""

from __future__ import annotations

from pathlib import Path

import click

from edgeedit.cli.output import emit, json_option

_STORE = click.option("--store", "store", required=True, type=click.Path(path_type=Path), help="The device's store folder.")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@_STORE
@click.option("--trust", multiple=True, required=True, type=click.Path(path_type=Path), help="Public key that may sign patches.")
@click.option("--device-id", "device", default="", help="The camera's name in rollouts and receipts; a random one by default.")
@json_option
def provision(bundle: Path, store: Path, trust: tuple[Path, ...], device: str, as_json: bool) -> None:
    """Copy BUNDLE and the trusted keys into a new store."""
    from edgeedit.device.store import Store

    with Store.create(store, bundle, list(trust), device=device) as made:
        fingerprint, name = made.head().result, made.device
    value = {"store": str(store), "fingerprint": fingerprint, "device": name}
    emit(value, f"provisioned {store}\nfingerprint {fingerprint}\ndevice {name}", as_json=as_json)


@click.command()
@click.argument("patch", type=click.Path(path_type=Path))
@_STORE
@json_option
def apply(patch: Path, store: Path, as_json: bool) -> None:
    """Verify PATCH, try it in an engine of its own, confirm it or revert it (exit 7)."""
    from edgeedit.device.apply import apply_patch

    result = apply_patch(store, patch)
    swap = result.to_json()
    emit(swap, f"generation {result.generation}: {result.state}", as_json=as_json)


@click.command()
@click.argument("patch", type=click.Path(path_type=Path))
@_STORE
@click.option("--wait", type=click.FloatRange(min=0), default=0.0, help="Seconds to wait for its verdict (exit 7 when reverted).")
@json_option
def stage(patch: Path, store: Path, wait: float, as_json: bool) -> None:
    """Verify PATCH and leave it for the running application's Runtime to take."""
    from edgeedit.device.apply import stage_patch

    generation = stage_patch(store, patch, wait=wait)
    emit({"generation": generation.id, "state": generation.state}, f"generation {generation.id}: {generation.state}", as_json=as_json)


@click.command()
@_STORE
@json_option
def status(store: Path, as_json: bool) -> None:
    """Show head, trial and history of a store."""
    from edgeedit.device.status import status_of

    value = status_of(store)
    head = value["head"]
    lines = [
        f"head       generation {head['id']} ({head['state']})",
        f"runs       {head['result']}",
        f"trial      {value['trial'] or 'none'}",
    ]
    lines += [f"  {event['time']}  generation {event['generation']}  {event['event']}  {event['reason']}" for event in value["history"]]
    emit(value, "\n".join(lines), as_json=as_json)


@click.command()
@_STORE
@click.option("--patch", metavar="DIGEST", help="Only from this patch, on trial or running; elsewhere nothing happens (exit 0).")
@json_option
def rollback(store: Path, patch: str | None, as_json: bool) -> None:
    """Return to the former generation; a running Runtime follows at its next poll."""
    from edgeedit.device.store import Store

    with Store.open(store) as opened:
        if patch is None:
            head = opened.rollback()
        else:
            opened.leave(patch, "rolled back by the update engine")
            head = opened.head()
    emit({"generation": head.id, "fingerprint": head.result}, f"generation {head.id}\nfingerprint {head.result}", as_json=as_json)


@click.command()
@click.option("--store", "store", type=click.Path(path_type=Path), help="Also check this store.")
@json_option
def doctor(store: Path | None, as_json: bool) -> None:
    """Check Python, runtimes, memory, disk, clock and a store.  Exit 6 when a check fails."""
    from edgeedit.device.doctor import examine
    from edgeedit.errors import RefusedError

    checks = examine(store)
    lines = [f"{c.level:<4}  {c.name:<14}  {c.text}" + (f"\n      fix: {c.fix}" if c.fix else "") for c in checks]
    emit({"checks": [c.__dict__ for c in checks], "ok": all(c.level != "FAIL" for c in checks)}, "\n".join(lines), as_json=as_json)
    failed = [c.name for c in checks if c.level == "FAIL"]
    if failed:
        raise RefusedError(f"doctor found a fault: {', '.join(failed)}", hint="follow the fix lines above")


@click.command()
@_STORE
@click.option("--frames", default=50, show_default=True, help="Frames of each window.")
@click.option("--threads", default=0, show_default=True, help="Threads of the engine; 0 takes the profile's.")
@json_option
def bench(store: Path, frames: int, threads: int, as_json: bool) -> None:
    """Measure frames before, during and after swaps in an engine of its own; the store stays as it is."""
    from edgeedit.device.bench import bench as measure

    result = measure(store, frames=frames, threads=threads)
    lines = [f"{'':8} {'frames':>7} {'fps':>9} {'p50 ms':>9} {'p95 ms':>9} {'p99 ms':>9}"]
    for name, row in (("before", result.before), ("during", result.during), ("after", result.after)):
        lines.append(f"{name:8} {row.frames:7d} {row.fps:9.2f} {row.p50_ms:9.2f} {row.p95_ms:9.2f} {row.p99_ms:9.2f}")
    lines.append(f"{result.swaps} swaps: prepared in {result.stage_ms:.2f} ms (median), a frame waited {result.lock_ms:.3f} ms at most")
    emit(result.to_json(), "\n".join(lines), as_json=as_json)


@click.command("build-engine")
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--store", "store", type=click.Path(path_type=Path), help="Build for the bundle of this store instead.")
@json_option
def build_engine(bundle: Path | None, store: Path | None, as_json: bool) -> None:
    """Build, load, refit and prove the TensorRT engine of BUNDLE or of a store; needs the device's own TensorRT."""
    from edgeedit.bundle import load_bundle
    from edgeedit.device.build_engine import build_engine as build
    from edgeedit.device.store import Store
    from edgeedit.errors import InputError

    if (bundle is None) == (store is None):
        raise InputError("nothing to build: expected either BUNDLE or --store")
    if store is not None:
        with Store.open(store) as opened:
            found = opened.bundle
    else:
        found = load_bundle(bundle)  # type: ignore[arg-type]
    built = build(found)
    text = (
        f"{'kept' if built.cached else 'built'} {built.plan} ({built.bytes} bytes)\n"
        f"{built.module} {built.version}, {built.seconds:.1f} s\n"
        f"{built.refit}: {built.editable} tensors can be patched; golden outputs within {built.golden_gap:.3g} of torch"
    )
    emit(built.to_json(), text, as_json=as_json)
