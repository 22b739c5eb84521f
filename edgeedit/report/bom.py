"""The bill of materials of an edit: CycloneDX 1.6 JSON with a model card (ML-BOM), as supply-chain tools read it.

Guarantees: valid under the strict schema; the same facts give the same bytes (the serial number follows from the content, no clock is
read); every digest and number stands in the result; what is not known is absent.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import requires
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType, Pedigree
from cyclonedx.model.crypto import (
    CryptoAssetType,
    CryptoProperties,
    RelatedCryptoMaterialProperties,
    RelatedCryptoMaterialType,
)
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement

from edgeedit.report.card import limitations, title, use
from edgeedit.report.card_facts import CardFacts, checked
from edgeedit.report.facts import wrong_count
from edgeedit.report.record import UNDO

_SPACE = uuid.UUID("6f0a3b52-5f0e-5d8e-9d2c-0b7c3c2a7d11")  # of the serial numbers made here
_EXTRAS = {"onnxruntime": "ort", "tensorrt": "tensorrt"}  # engine of a Bundle -> extra that brings it
_OVER = "SHA-256 over sorted name, dtype, shape and digest of every weight tensor"


def _hashes(digest: Any) -> list[HashType]:
    return [HashType(alg=HashAlgorithm.SHA_256, content=str(digest))] if digest else []


def _properties(rows: Mapping[str, Any]) -> list[Property]:
    return [Property(name=f"edgeedit:{key}", value=str(value)) for key, value in rows.items() if value not in (None, "", ())]


def _base(facts: CardFacts, ref: str | None = "base-encoder") -> Component | None:
    digest = facts.part("encoder").get("source_digest") or (facts.bundle.source_digest if facts.bundle else None)
    if not digest:
        return None
    return Component(
        bom_ref=ref,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=(facts.bundle.source if facts.bundle else "") or f"{facts.recipe} base encoder".strip(),
        hashes=_hashes(digest),
        properties=_properties({"digest-over": _OVER, "recipe": facts.recipe}),
    )


def _patch(facts: CardFacts) -> Component | None:
    signed = facts.signed
    if signed is None:
        return None
    rows = {
        "parent": signed.parent,
        "result": signed.result,
        "precision": signed.precision,
        "bytes": signed.size,
        "signers": ", ".join(signed.signers),
    }
    return Component(
        bom_ref="patch", type=ComponentType.FILE, name="edgeedit patch", hashes=_hashes(signed.digest), properties=_properties(rows)
    )


def _bundle(facts: CardFacts) -> Component | None:
    bundle = facts.bundle
    if bundle is None:
        return None
    rows = {
        "fingerprint": bundle.fingerprint,
        "profile": bundle.profile,
        "engine": bundle.engine,
        "precision": bundle.precision,
        "probes-sha256": bundle.probes_digest,
    }
    return Component(
        bom_ref="bundle", type=ComponentType.FILE, name="model.onnx", hashes=_hashes(bundle.graph_digest), properties=_properties(rows)
    )


def _reader(facts: CardFacts) -> Component | None:
    reader = facts.part("reader")
    if not reader.get("digest"):
        return None
    rows = {"kind": reader.get("kind"), "verdicts": ", ".join(map(str, reader.get("classes") or ()))}
    return Component(
        bom_ref="reader",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=f"{reader.get('kind') or ''} reader".strip(),
        hashes=_hashes(reader["digest"]),
        properties=_properties(rows),
    )


def _data(facts: CardFacts) -> list[Component]:
    made = []
    for key in ("shots", "former", "control"):
        row = facts.part(key)
        if row.get("digest"):
            rows = {
                "images": row.get("n"),
                "classes": ", ".join(map(str, row.get("classes") or ())),
                "licence-notes": "; ".join(facts.notes),
            }
            made.append(
                Component(
                    bom_ref=f"data-{key}",
                    type=ComponentType.DATA,
                    name=f"{key} images",
                    hashes=_hashes(row["digest"]),
                    properties=_properties(rows),
                )
            )
    return made


def _keys(facts: CardFacts) -> list[Component]:
    return [
        Component(
            bom_ref=f"key-{key}",
            type=ComponentType.CRYPTOGRAPHIC_ASSET,
            name="Ed25519 public key",
            crypto_properties=CryptoProperties(
                asset_type=CryptoAssetType.RELATED_CRYPTO_MATERIAL,
                related_crypto_material_properties=RelatedCryptoMaterialProperties(type=RelatedCryptoMaterialType.PUBLIC_KEY, id=key),
            ),
        )
        for key in (facts.signed.signers if facts.signed else ())
    ]


def _needs(extra: str) -> list[Requirement]:
    """What edgeedit needs on a device, by its own package data; `extra` is "" or the one that brings the engine."""
    found = [Requirement(text) for text in requires("edgeedit") or ()]
    marked = [r for r in found if r.marker is not None and f'extra == "{extra}"' in str(r.marker)]
    return [r for r in found if r.marker is None or "extra" not in str(r.marker)] + (marked if extra else [])


def _library(name: str, version: str | None = None, **rows: str) -> Component:
    ref = f"tool-{name}" if version else f"runtime-{name}"
    purl = PackageURL(type="pypi", name=name.lower(), version=version) if name != "python" else None
    return Component(bom_ref=ref, type=ComponentType.LIBRARY, name=name, version=version, purl=purl, properties=_properties(rows))


def _runtime(facts: CardFacts) -> list[Component]:
    """Libraries of the device by name and requirement: which versions a device holds is not known here."""
    made = [_library("edgeedit")]
    for need in _needs(_EXTRAS.get(facts.bundle.engine, "") if facts.bundle else ""):
        marker = str(need.marker) if need.marker and "extra" not in str(need.marker) else ""
        made.append(_library(need.name, requirement=str(need.specifier), marker=marker))
    return made


def _metric(kind: str, own: str, value: float | None, interval: Sequence[float] | None = None) -> list[dict[str, Any]]:
    if value is None:
        return []
    row: dict[str, Any] = {"type": kind, "slice": own, "value": repr(value)}
    if interval is not None:
        row["confidenceInterval"] = {"lowerBound": repr(interval[0]), "upperBound": repr(interval[1])}
    return [row]


def _performance(facts: CardFacts) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for own in facts.sets():
        rows += _metric("balanced error before", own.name, own.error_before)
        rows += _metric("balanced error after", own.name, own.error_after)
        change = (own.change.low, own.change.high)
        rows += _metric("change of the balanced error, 95 % interval", own.name, own.error_after - own.error_before, change)
        for when, wilson in (("before", own.wrong_before), ("after", own.wrong_after)):
            wrong = wrong_count(wilson, own.n)
            share = None if wrong is None else wrong / own.n
            rows += _metric(f"share misjudged {when}, Wilson 95 % interval", own.name, share, (wilson.low, wilson.high))
        rows += _metric("area under the ROC curve before", own.name, own.auc_before)
        rows += _metric("area under the ROC curve after", own.name, own.auc_after)
        rows += _metric("exact McNemar p", own.name, own.mcnemar_p)
    return rows


def model_card(facts: CardFacts) -> dict[str, Any]:
    """The `modelCard` object; the library has no classes for it."""
    parameters: dict[str, Any] = {"approach": {"type": "supervised"}} if facts.part("shots") else {}
    if facts.task:
        parameters["task"] = facts.task
    if facts.recipe:
        parameters["architectureFamily"] = facts.recipe
    if refs := [{"ref": str(c.bom_ref)} for c in _data(facts)]:
        parameters["datasets"] = refs
    if facts.bundle:
        parameters["inputs"] = [{"format": f"float32 (n, {', '.join(map(str, facts.bundle.input_shape))}), normalised"}]
        parameters["outputs"] = [{"format": f"float32 (n, {facts.bundle.output_width})"}]
    metrics, intended = facts.metrics, use(facts)
    properties = {
        "method": facts.part("method").get("name"),
        "seed": facts.info.get("seed"),
        "gate": metrics.gate.verdict if metrics else None,
        "gate-limit": metrics.gate.limit if metrics else None,
        "gate-reasons": "; ".join(metrics.gate.reasons) if metrics else None,
        "accepted-because": facts.part("gate").get("accepted_because"),
        "weights-changed": metrics.changed_count if metrics else None,
        "weights": metrics.total_weights if metrics else None,
        "changed-outside-the-declared-places": metrics.outside_mask if metrics else None,
        "changed-matrices": ", ".join(facts.tensors),
        "undo": UNDO,
    }
    card: dict[str, Any] = {
        "modelParameters": parameters,
        "considerations": {"useCases": list(intended.texts), "technicalLimitations": [*limitations(facts).bullets, *intended.bullets]},
        "properties": [{"name": p.name, "value": p.value} for p in _properties(properties)],
    }
    if rows := _performance(facts):
        card["quantitativeAnalysis"] = {"performanceMetrics": rows}
    return {key: value for key, value in card.items() if value}


def _subject(facts: CardFacts, base: Component | None) -> Component:
    result = facts.signed.result if facts.signed else None
    rows = {"result": result, "precision": facts.precision}
    return Component(
        bom_ref="edited-encoder",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=title(facts),
        version=result,
        pedigree=Pedigree(ancestors=[base]) if base else None,
        properties=_properties(rows),
    )


def _bom(facts: CardFacts) -> Bom:
    base, runtime = _base(facts), _runtime(facts)
    subject = _subject(facts, _base(facts, ref=None))  # a reference stands once in a bill
    parts = [c for c in (_patch(facts), _bundle(facts), _reader(facts)) if c is not None]
    keys, data = _keys(facts), _data(facts)
    versions = {key: str(value) for key, value in facts.part("versions").items()}
    bom = Bom(
        metadata=BomMetaData(
            component=subject,
            tools=ToolRepository(components=[_library(name, version) for name, version in versions.items()]),
            timestamp=datetime.fromisoformat(facts.when) if facts.when else None,
        ),
        components=[*([base] if base else []), *parts, *keys, *data, *runtime],
    )
    _depends(bom, subject, [*([base] if base else []), *parts, *data, runtime[0]])
    _depends(bom, runtime[0], runtime[1:])
    for patch in parts[:1] if facts.signed else []:
        _depends(bom, patch, keys)
    return bom


def _depends(bom: Bom, on: Component, needs: Iterable[Component]) -> None:
    if rows := list(needs):
        bom.register_dependency(on, rows)


def render_bom(facts: CardFacts) -> str:
    """The bill of materials as JSON; raises InputError when the record is malformed."""
    return checked(_page, facts)


def _page(facts: CardFacts) -> str:
    value = json.loads(JsonV1Dot6(_bom(facts)).output_as_string())
    if not facts.when:
        del value["metadata"]["timestamp"]  # the library puts the time of writing there
    value["metadata"]["component"]["modelCard"] = model_card(facts)
    del value["serialNumber"]
    value["serialNumber"] = f"urn:uuid:{uuid.uuid5(_SPACE, json.dumps(value, sort_keys=True))}"
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
