"""A model card and a bill of materials from files: a Delta, a patch, or a folder that holds them, and the Bundle if it is given.

Guarantees: nothing of a patch is read before a trusted key verified it; a Delta, a patch and a Bundle that do not belong together are
refused; nothing is written unless everything could be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from edgeedit.bundle import Bundle, load_bundle
from edgeedit.delta import Delta, load_delta
from edgeedit.errors import InputError, MismatchError
from edgeedit.files import read_json, replace_file
from edgeedit.flows.wrap import is_patch
from edgeedit.limits import MAX_BUNDLE_JSON_BYTES
from edgeedit.patch.keys import load_trust
from edgeedit.patch.read import Patch, load_patch
from edgeedit.report.bom import render_bom
from edgeedit.report.card import render_card
from edgeedit.report.card_facts import CardFacts, Signed, read_numbers
from edgeedit.strict_json import without_floats

_SAME = ("encoder", "reader", "shots", "control", "method", "seed", "metrics")  # a patch repeats these of its Delta
_DEVICE = ("device_equals_server", "rollback_exact", "max_output_difference")
RUN_FILE = "run.json"  # what a demo measured, beside its Delta


@dataclass(frozen=True)
class CardRequest:
    """What `edgeedit card` was asked: a .delta, a .eep or a folder with them; trusted keys for a patch; an ISO 8601 date, or None."""

    source: Path
    bundle: Path | None = None
    trust: tuple[Path, ...] = ()
    when: str | None = None


def write_card(request: CardRequest, card: Path | None, bom: Path | None) -> CardFacts:
    """Write the Markdown to `card` and the CycloneDX JSON to `bom`, whichever is given; raises InputError (2), MismatchError (4) or
    IntegrityError (5) and then writes nothing."""
    if card is None and bom is None:
        raise InputError("nothing was asked for: expected -o CARD.md or --bom BOM.json")
    facts = read_facts(request)
    pages = [(path, render(facts)) for path, render in ((card, render_card), (bom, render_bom)) if path is not None]
    for path, text in pages:
        replace_file(path, text.encode("utf-8"))
    return facts


def read_facts(request: CardRequest) -> CardFacts:
    """All that the files say; raises as `write_card` does."""
    when = _date(request.when)
    delta_path, patch_path = _files(request.source)
    delta = load_delta(delta_path) if delta_path else None
    patch = _patch(patch_path, request.trust) if patch_path else None
    info = _joined(delta, patch)
    bundle = load_bundle(request.bundle) if request.bundle else None
    if bundle is not None:
        _check_bundle(bundle, info, patch)
    run = request.source / RUN_FILE
    device = _device(run, info) if request.source.is_dir() and run.exists() else None
    names = tuple(t.name for t in delta.tensors) if delta else tuple(t.name for t in patch.manifest.tensors) if patch else ()
    return CardFacts(info, read_numbers(info), names, _signed(patch) if patch else None, bundle, device, when)


def _date(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise InputError(f"date is not ISO 8601: expected for example 2026-11-26T09:00:00Z, got {text}") from error
    if found.tzinfo is None:
        raise InputError(f"date has no time zone: expected for example 2026-11-26T09:00:00Z, got {text}")
    return found.isoformat()


def _files(source: Path) -> tuple[Path | None, Path | None]:
    """(Delta, patch) of a source, one of them None where there is only the other."""
    if not source.is_dir():
        return (None, source) if is_patch(source) else (source, None)
    found = []
    for ending in ("delta", "eep"):
        paths = sorted(source.glob(f"*.{ending}"))
        if len(paths) > 1:
            raise InputError(f"{source} is not one result: expected one .{ending}, got {', '.join(p.name for p in paths)}")
        found.append(paths[0] if paths else None)
    if found == [None, None]:
        raise InputError(f"{source} holds no result: expected a .delta or a .eep in it, got none", hint="give the file itself")
    return found[0], found[1]


def _patch(path: Path, trust: tuple[Path, ...]) -> Patch:
    if not trust:
        raise InputError(f"{path} cannot be verified: expected --trust KEY, got none", hint="give the signer's public key")
    return load_patch(path, load_trust(list(trust)))


def _joined(delta: Delta | None, patch: Patch | None) -> Mapping[str, Any]:
    """The record: the Delta's, with what only the signed patch knows, or the patch's alone."""
    if patch is None:
        return delta.info if delta else {}
    signed = patch.manifest.provenance
    if delta is None:
        return signed
    for key in _SAME:
        if signed.get(key) != without_floats(delta.info.get(key)):
            raise MismatchError(
                f"patch was not packed from the delta: expected the same {key}, got another", hint="give only one of the two files"
            )
    return {**delta.info, **{key: signed[key] for key in ("gate", "survival", "squash_of") if key in signed}}


def _check_bundle(bundle: Bundle, info: Mapping[str, Any], patch: Patch | None) -> None:
    """Raise MismatchError unless Bundle and result are of one base encoder at one precision."""
    encoder = info.get("encoder") or {}
    pairs = [("encoder", bundle.source_digest, encoder.get("source_digest")), ("precision", bundle.precision, encoder.get("precision"))]
    if patch:
        pairs += [("recipe", bundle.recipe, patch.manifest.recipe), ("precision", bundle.precision, patch.manifest.precision)]
    for what, expected, got in pairs:
        if got and got != expected:
            raise MismatchError(
                f"bundle is another one: expected the {what} {expected[:12]}, got {got[:12]}", hint="give the right --bundle"
            )


def _signed(patch: Patch) -> Signed:
    own = patch.manifest
    probe = own.probe
    return Signed(
        patch.digest,
        len(patch.data),
        own.parent,
        own.result,
        own.precision,
        own.recipe,
        patch.signers,
        probe.count,
        probe.tolerance,
    )


def _device(path: Path, info: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a demo measured on its device, None when it got to none."""
    run = read_json(path, MAX_BUNDLE_JSON_BYTES)
    if not isinstance(run, dict) or run.get("seed") != info.get("seed"):
        raise InputError(f"{path} is of another run: expected the figures of seed {info.get('seed')}")
    apply = run.get("apply")
    if not isinstance(apply, dict):
        return None
    return {**apply, **{key: run.get(key) for key in _DEVICE}}
