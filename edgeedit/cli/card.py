"""`edgeedit card`: what an edit is, for people (a model card) and for supply-chain tools (a bill of materials)."""

from __future__ import annotations

from pathlib import Path

import click

from edgeedit.cli.output import emit, json_option

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("source", type=_PATH)
@click.option("--bundle", type=_PATH, help="Bundle that the edit was made for: adds its digests and the engine.")
@click.option("--trust", multiple=True, type=_PATH, help="Trusted public key or folder of keys, for a patch. Repeatable.")
@click.option("--date", "when", help="Date of the result with a time zone (ISO 8601); none is written when not given.")
@click.option("-o", "--out", type=_PATH, help="Model card (Markdown with a YAML head).")
@click.option("--bom", type=_PATH, help="Bill of materials (CycloneDX 1.6 JSON with a model card).")
@json_option
def card(
    source: Path, bundle: Path | None, trust: tuple[Path, ...], when: str | None, out: Path | None, bom: Path | None, as_json: bool
) -> None:
    """Write a model card and a bill of materials about SOURCE: a .delta, a signed patch, or a folder that holds both."""
    from edgeedit.flows.card import CardRequest, write_card

    facts = write_card(CardRequest(source, bundle, trust, when), out, bom)
    value = {
        "card": str(out) if out else None,
        "bom": str(bom) if bom else None,
        "gate": facts.metrics.gate.verdict if facts.metrics else None,
        "patch": facts.signed.digest if facts.signed else None,
    }
    lines = [f"{what} {path} ({path.stat().st_size} bytes)" for what, path in (("model card", out), ("bill of materials", bom)) if path]
    emit(value, "\n".join(lines), as_json=as_json)
