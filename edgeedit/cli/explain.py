"""`edgeedit explain` and `report`: what an edit touched, what it did and what it cost, for the people who must approve it."""

from __future__ import annotations

from pathlib import Path

import click

from edgeedit.cli.output import emit, json_option, progress

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("delta", type=_PATH)
@click.option("--bundle", required=True, type=_PATH, help="Bundle folder that the delta was made for.")
@click.option("--reader", "reader_path", type=_PATH, help="Frozen reader (.npz).")
@click.option("--vlm", metavar="FOLDER-OR-ID", help="Instead of --reader: the language model that answers.")
@click.option("--vlm-prompt", help="Prompt with <image> and {question}; LLaVA 1.5's when not given.")
@click.option("--heldout", required=True, type=_PATH, help="Labelled target images, not used in the edit.")
@click.option("--heldout-control", type=_PATH, help="Control images, not used in the edit; labels are not needed.")
@click.option("--stored", multiple=True, type=_PATH, help="Images that the edit saw (shots, control), for nearest images. Repeatable.")
@click.option("--images", default=48, show_default=True, help="Images per set on which components are left out one by one.")
@click.option("--maps", default=6, show_default=True, help="Repaired images with an occlusion map.")
@click.option("-o", "--out", type=_PATH, help="JSON file for `edgeedit report --explain`.")
@json_option
def explain(delta: Path, out: Path | None, as_json: bool, **options: object) -> None:
    """Say what DELTA touched, what each part of it does, what else moved and what verdicts lean on."""
    from edgeedit.edit.explain import summary_lines
    from edgeedit.flows.explain import ExplainRequest, explain_files

    value = explain_files(ExplainRequest(delta=delta, **options), out, progress())  # type: ignore[arg-type]
    emit({**value, "explanation": str(out) if out else None}, "\n".join(summary_lines(value)), as_json=as_json)


@click.command()
@click.argument("delta", type=_PATH)
@click.option("--patch", type=_PATH, help="The signed patch made of DELTA: sizes, signers, fingerprints; needs --trust.")
@click.option("--trust", multiple=True, type=_PATH, help="Public key that signed the patch, or a folder of them. Repeatable.")
@click.option("--bundle", type=_PATH, help="Its Bundle: size of the encoder, torch against the exported graph.")
@click.option("--explain", type=_PATH, help="JSON file of `edgeedit explain -o`.")
@click.option("--device", type=_PATH, help="What `edgeedit apply --json` printed on the device.")
@click.option("--settings", type=_PATH, help="TOML file: change record, bands of the gauge, unit costs.")
@click.option("--language", type=click.Choice(["en", "de", "ja", "zh"]), default="en", show_default=True, help="Of page one.")
@click.option("-o", "--out", required=True, type=_PATH, help="HTML file; report.json is written beside it.")
@json_option
def report(out: Path, as_json: bool, **options: object) -> None:
    """Render DELTA as one self-contained HTML file that prints well."""
    from edgeedit.flows.report import ReportRequest, report_files

    report_files(ReportRequest(**options), out)  # type: ignore[arg-type]
    emit({"report": str(out), "bytes": out.stat().st_size}, f"report {out} ({out.stat().st_size} bytes)", as_json=as_json)
