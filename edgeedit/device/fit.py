"""Whether a verified patch is for this device: model, precision, generation, probes and tensors."""

from __future__ import annotations

from edgeedit.bundle import Bundle
from edgeedit.device.prepare import probe_inputs
from edgeedit.errors import MismatchError
from edgeedit.patch.manifest import Manifest


def check_fit(bundle: Bundle, manifest: Manifest, running: str) -> None:
    """Raise MismatchError (exit 4) unless the patch is for this Bundle and for the generation of fingerprint `running`."""
    probe = manifest.probe
    if manifest.recipe != bundle.recipe or manifest.precision != bundle.precision:
        raise MismatchError(
            f"patch is for another model: expected {bundle.recipe} {bundle.precision}, got {manifest.recipe} {manifest.precision}",
            hint="pack it for this bundle",
        )
    if manifest.parent != running:
        raise MismatchError(
            f"patch does not fit: expected parent {running[:12]}, got {manifest.parent[:12]}",
            hint="apply the patches in their order, or pack it on this generation",
        )
    probes = len(probe_inputs(bundle))
    if (probe.count, probe.width) != (probes, bundle.output_width):
        raise MismatchError(
            f"patch has other probes: expected {probes} of width {bundle.output_width}, got {probe.count} of width {probe.width}",
            hint="pack it for this bundle",
        )
    known = bundle.tensor_map.by_name()
    for row in manifest.tensors:
        tensor = known.get(row.name)
        if tensor is None or not tensor.editable or tensor.shape != row.shape or tensor.dtype != row.dtype:
            raise MismatchError(
                f"patch touches a tensor that this base does not offer: got {row.name} {row.dtype} {row.shape}",
                hint="pack it for this bundle",
            )
