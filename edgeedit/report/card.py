"""The model card of an edit: Markdown with a YAML head, as model hubs and reviewers read it.

Guarantees: the same facts give the same bytes; every number stands in the result; a block without data is absent; text of a user cannot
become markup.  Does not judge: it repeats what the edit measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from edgeedit.errors import InputError
from edgeedit.report.card_facts import CardFacts, checked
from edgeedit.report.record import UNDO

FEW = 100  # held-out images below which a set is called small
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~&$])")


class Code(str):
    """Text that stands in a code span."""


class Ready(str):
    """Markdown made here, not to be escaped again."""


@dataclass(frozen=True)
class Table:
    """Columns with a head; every row has as many cells."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def lines(self) -> tuple[Ready, ...]:
        """The lines of the table."""
        rows = [_cells(row) for row in (self.head, *self.rows)]
        return rows[0], Ready("|" + "---|" * len(self.head)), *rows[1:]


@dataclass(frozen=True)
class Section:
    """One block of the card: sentences, facts by label, tables, a list."""

    title: str
    texts: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    bullets: tuple[str, ...] = ()

    @property
    def all_tables(self) -> tuple[Table, ...]:
        """The facts as a table of two columns, then the others."""
        return (*((Table(("", ""), self.facts),) if self.facts else ()), *self.tables)

    @property
    def filled(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.texts or self.all_tables or self.bullets)


def escape(value: Any) -> str:
    """One line of Markdown that shows `value` and is nothing else."""
    if isinstance(value, Ready):
        return value
    text = " ".join(str(value).split())
    if isinstance(value, Code):
        return "`" + text.replace("`", "'").replace("|", "\\|") + "`"
    return _MARKS.sub(r"\\\1", text)


def _cells(row: Sequence[str]) -> Ready:
    return Ready("| " + " | ".join(map(escape, row)) + " |")


def known(rows: Sequence[tuple[str, Any]]) -> tuple[tuple[str, str], ...]:
    """Facts that are there; what is None or empty is left out."""
    return tuple((label, value if isinstance(value, str) else str(value)) for label, value in rows if value not in (None, "", ()))


def code(value: Any) -> Code | None:
    """A digest or name in a code span, None without one."""
    return Code(value) if value else None


def model(facts: CardFacts) -> Section:
    """The encoder and what reads it."""
    encoder, reader, bundle = facts.part("encoder"), facts.part("reader"), facts.bundle
    rows = [
        ("Encoder recipe", facts.recipe),
        ("Loaded from", code(bundle.source) if bundle else None),
        ("Base encoder, digest of all weights", code(encoder.get("source_digest"))),
        ("Blocks, heads in each", f"{encoder['blocks']}, {encoder['heads']}" if {"blocks", "heads"} <= encoder.keys() else None),
        ("Image side, pixels", encoder.get("size")),
        ("Deployed precision", facts.precision),
        ("Numbers for an image", bundle.output_width if bundle else None),
        ("Device profile", bundle.profile if bundle else None),
        ("Reader (frozen)", reader.get("kind")),
        ("Verdicts", ", ".join(map(str, reader.get("classes") or ()))),
        ("Reader digest", code(reader.get("digest"))),
        ("Language side digest, before and after", code(facts.part("vlm").get("language_digest"))),
    ]
    return Section("Model", facts=known(rows))


def use(facts: CardFacts) -> Section:
    """What it is for, and what it is not for."""
    shots = facts.part("shots")
    classes = ", ".join(map(str, shots.get("classes") or ()))
    texts = ["Replaces weights of a vision encoder that is already deployed; what reads its features stays as it is."]
    if classes:
        texts.append(f"Made for images like its shots, which show: {classes}.")
    if facts.signed:
        texts.append(f"Fits only a device whose weights have the fingerprint {facts.signed.parent}; any other device refuses it.")
    bullets = ["Not for another base encoder, another precision or another reader than the ones above."]
    bullets.append("Not for images of a kind that was not held out below: nothing is known about them.")
    return Section("Intended use", tuple(texts), bullets=tuple(bullets))


def change(facts: CardFacts) -> Section:
    """How it was edited and what changed."""
    method, metrics, lived = facts.part("method"), facts.metrics, facts.part("survival")
    rows: list[tuple[str, Any]] = [("Method", method.get("name"))]
    rows += [("Settings", "; ".join(f"{key} {_setting(value)}" for key, value in method.items() if key != "name"))]
    rows += [("Seed", facts.info.get("seed")), ("Weight matrices that may differ", len(facts.tensors))]
    if metrics is not None:
        rows.append(("Weights changed", f"{metrics.changed_count} of {metrics.total_weights} ({metrics.changed_share:.2%})"))
        rows.append(("Changed outside the declared places", metrics.outside_mask))
    for name, found in lived.items():
        if isinstance(found, Mapping):
            rows.append((f"Codes of {name} that move", f"{found.get('moved')} of {found.get('declared')}, {found.get('clipped')} clipped"))
        else:
            rows.append((f"Changes that survive rounding to {name}", f"{float(found):.1%}"))
    locality = facts.part("locality")
    importance = locality.get("importance")
    if isinstance(importance, Mapping) and {"covered", "random_mean"} <= importance.keys():
        text = f"{importance['covered']:.1%}; the same budget at random {importance['random_mean']:.1%}"
        rows.append(("Importance that the chosen places hold", text))
    squashed = facts.info.get("squash_of") or ()
    texts = (f"Stands for {len(squashed)} patches; the figures are those of the last one.",) if squashed else ()
    return Section("Edit", texts, known(rows), _where(locality))


def _setting(value: Any) -> str:
    return ", ".join(map(_setting, value)) if isinstance(value, (list, tuple)) else str(value)


def _where(locality: Mapping[str, Any]) -> tuple[Table, ...]:
    rows = []
    try:
        for block in locality.get("blocks") or ():
            heads = ", ".join(str(head["head"]) for head in block["heads"] if head["chosen"])
            rows.append((str(block["block"]), heads or "none", f"{float(block['fc1_share']):.2%}"))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"cannot read the record: expected a locality of blocks and heads, got {error!r}") from error
    return (Table(("block", "heads that could change", "first feed-forward weights changed"), tuple(rows)),) if rows else ()


def data(facts: CardFacts) -> Section:
    """The images of the edit and of its judgement."""
    shots, former, control = facts.part("shots"), facts.part("former"), facts.part("control")
    rows = [
        ("Shots (labelled, used to edit)", shots.get("n")),
        ("Shots digest", code(shots.get("digest"))),
        ("Shots of earlier edits (labelled, used to edit)", former.get("n")),
        ("Digest of the shots of earlier edits", code(former.get("digest"))),
        ("Control images used in the edit", control.get("n")),
        ("Control digest", code(control.get("digest"))),
        *((f"Held-out {row.name} images", row.n) for row in facts.sets()),
    ]
    return Section("Data", facts=known(rows), bullets=facts.notes)


def results(facts: CardFacts) -> Section:
    """Gate and held-out figures with their 95 % intervals."""
    metrics = facts.metrics
    if metrics is None:
        return Section("Results", ("Nothing was judged on held-out images.",))
    gate = facts.part("gate")
    rows = known(
        [
            ("Gate", metrics.gate.verdict),
            ("Allowed rise of an error", f"{metrics.gate.limit:.3f}"),
            ("Shipped although undecided, because", gate.get("accepted_because")),
        ]
    )
    sets = tuple(facts.sets())
    errors = tuple(
        (r.name, str(r.n), f"{r.error_before:.3f}", f"{r.error_after:.3f}", _interval(r.change.low, r.change.high, signed=True),
         str(r.fixed), str(r.broken), f"{r.mcnemar_p:.3g}")
        for r in sets
    )  # fmt: skip
    head = ("set", "images", "error before", "error after", "change, 95 % interval", "repaired", "newly wrong", "exact McNemar p")
    tables = [Table(head, errors)]
    misjudged = tuple(
        (r.name, _interval(r.wrong_before.low, r.wrong_before.high), _interval(r.wrong_after.low, r.wrong_after.high)) for r in sets
    )
    tables.append(Table(("set", "share misjudged before, 95 % interval", "share misjudged after, 95 % interval"), misjudged))
    areas = tuple(
        (r.name, f"{r.auc_before:.3f}", f"{r.auc_after:.3f}") for r in sets if r.auc_before is not None and r.auc_after is not None
    )
    if areas:
        tables.append(Table(("set", "area under the ROC curve before", "after"), areas))
    shares = tuple(
        (r.name, name, f"{before:.3f}", f"{after:.3f}")
        for r in sets
        for (name, before), (_, after) in zip(r.shares_before, r.shares_after, strict=False)
    )
    if shares:
        tables.append(Table(("set", "verdict", "share given before", "share given after"), shares))
    texts = ("Errors are the mean over classes of the share misjudged, on images that played no part in the edit.",)
    return Section("Results", texts, rows, tuple(tables), metrics.gate.reasons)


def _interval(low: float, high: float, *, signed: bool = False) -> str:
    return f"{low:+.3f} .. {high:+.3f}" if signed else f"{low:.3f} .. {high:.3f}"


def device(facts: CardFacts) -> Section:
    """What was measured on a device, where it was."""
    found = facts.device or {}

    def shown(key: str, form: str) -> str | None:
        value = found.get(key)
        return format(value, form) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    yes = {True: "yes", False: "no"}
    rows = [
        ("Swap under the frame lock, ms", shown("swap_ms", ".2f")),
        ("Rebuilding the session instead, ms", shown("rebuild_default_ms", ".0f")),
        ("Frames served, lost, torn", _frames(found)),
        ("Weights and verdicts equal the server's", yes.get(found.get("device_equals_server"))),  # type: ignore[arg-type]
        ("Largest difference of an output", shown("max_output_difference", ".1e")),
        ("Rollback gave the old weights bit for bit", yes.get(found.get("rollback_exact"))),  # type: ignore[arg-type]
    ]
    return Section("On the device", facts=known(rows))


def _frames(found: Mapping[str, Any]) -> str | None:
    keys = ("frames_served", "frames_lost", "frames_torn")
    return ", ".join(str(found[key]) for key in keys) if all(key in found for key in keys) else None


def limitations(facts: CardFacts) -> Section:
    """What was not tested."""
    rows = []
    if facts.metrics is not None:
        rows.append("Only the held-out images above were judged: other cameras, lamps, products and seasons were not.")
        for name in ("control", "unrelated"):
            if getattr(facts.metrics, name) is None:
                rows.append(f"No {name} images were held out: what the edit does to them is not known.")
        rows += [f"The {row.name} set is small ({row.n} images): its figures are coarse." for row in facts.sets() if row.n < FEW]
        if facts.metrics.gate.verdict != "pass":
            rows.append(f"The gate did not pass ({facts.metrics.gate.verdict}): the held-out images do not prove the edit.")
    if facts.precision:
        rows.append(f"Only the precision {facts.precision} was judged.")
    if not facts.info.get("vlm"):
        rows.append("No language model behind the encoder was run.")
    if not facts.device:
        rows.append("Speed and equality on a device are not part of this card.")
    return Section("Limitations", bullets=tuple(rows))


def provenance(facts: CardFacts) -> Section:
    """Digests, versions, who signed."""
    signed, bundle, versions = facts.signed, facts.bundle, facts.part("versions")
    rows: list[tuple[str, Any]] = []
    if signed:
        rows += [
            ("Patch file, SHA-256", code(signed.digest)),
            ("Patch file, bytes", signed.size),
            ("Parent fingerprint", code(signed.parent)),
            ("Result fingerprint", code(signed.result)),
            *(("Signed by key", code(key)) for key in signed.signers),
            ("Probes, tolerance", f"{signed.probes}, {signed.tolerance:.3g}"),
        ]
    if bundle:
        rows += [("Bundle fingerprint", code(bundle.fingerprint)), ("Bundle graph, SHA-256", code(bundle.graph_digest))]
    rows += [("Changed weight matrices", ", ".join(facts.tensors))]
    rows += [("Versions", "; ".join(f"{key} {value}" for key, value in versions.items())), ("Date", facts.when)]
    return Section("Provenance", facts=known(rows))


def undo(facts: CardFacts) -> Section:
    """How to go back."""
    texts = [Ready(f"`{UNDO}` returns a device to the weights before, bit for bit.")]
    if facts.signed:
        texts.append(Ready(f"It then has the fingerprint `{escape(facts.signed.parent)}` again (`edgeedit status --store DIR`)."))
    return Section("How to undo", tuple(texts))


def front(facts: CardFacts) -> str:
    """The YAML head."""
    from huggingface_hub import EvalResult, ModelCardData

    rows = []
    for own in facts.sets() if facts.task else ():
        about: dict[str, Any] = {
            "task_type": facts.task,
            "dataset_type": f"held-out-{own.name}",
            "dataset_name": f"held-out {own.name} images",
        }
        detail = {"before": own.error_before, "change_95": [own.change.low, own.change.high], "images": own.n}
        rows.append(EvalResult(**about, metric_type="balanced_error", metric_value=own.error_after, metric_args=detail))
        if own.auc_before is not None and own.auc_after is not None:
            area = {"before": own.auc_before, "images": own.n}
            rows.append(EvalResult(**about, metric_type="roc_auc", metric_value=own.auc_after, metric_args=area))
    ours: dict[str, Any] = {"base_encoder": facts.part("encoder").get("source_digest")}
    if facts.signed:
        ours |= {"patch": facts.signed.digest, "parent": facts.signed.parent, "result": facts.signed.result}
        ours["signers"] = list(facts.signed.signers)
    if facts.metrics:
        ours["gate"] = facts.metrics.gate.verdict
    head = ModelCardData(
        library_name="edgeedit",
        pipeline_tag="image-feature-extraction",
        tags=["edgeedit", "vision-encoder", *([facts.recipe] if facts.recipe else [])],
        model_name=title(facts),
        eval_results=rows or None,
        edgeedit={key: value for key, value in ours.items() if value},
    )
    text: str = head.to_yaml(line_break="\n")
    return text.strip()


def title(facts: CardFacts) -> str:
    """A name for people."""
    return f"Edited vision encoder ({facts.recipe})" if facts.recipe else "Edited vision encoder"


def render_card(facts: CardFacts) -> str:
    """The card as Markdown; raises InputError when the record is malformed."""
    return checked(_page, facts)


def _page(facts: CardFacts) -> str:
    loader = jinja2.PackageLoader("edgeedit.report", "templates")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=False,  # noqa: S701 - Markdown: `escape` does it, for every expression
        finalize=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    parts = (model, use, change, data, results, device, limitations, provenance, undo)
    sections = [section for section in (part(facts) for part in parts) if section.filled]
    verdict = facts.metrics.gate.verdict if facts.metrics else None
    lead = "A few weights of a vision encoder were changed to repair a mistake that it made"
    lead += f"; the gate on held-out images says: {verdict}." if verdict else "."
    page = environment.get_template("card.md.j2").render(front=Ready(front(facts)), title=title(facts), lead=lead, sections=sections)
    return page.rstrip() + "\n"
