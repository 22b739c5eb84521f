"""Model card and bill of materials: parsed by independent readers, every number traced to the record, nothing made up."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from edgeedit.delta import Delta
from edgeedit.errors import InputError
from edgeedit.report.bom import render_bom
from edgeedit.report.card import render_card
from edgeedit.report.card_facts import CardFacts, Signed, read_numbers
from edgeedit.strict_json import without_floats

SIGNED = Signed("77" * 32, 923_001, "88" * 32, "99" * 32, "float32", "dinov2", ("aa" * 32, "bb" * 32), 16, 3.25e-4)
DEVICE = {"swap_ms": 5.781, "rebuild_default_ms": 181.2, "frames_served": 172, "frames_lost": 0, "frames_torn": 3, "rollback_exact": True}
HOSTILE = "a|b <script>alert(1)</script> [x](http://evil) ![y](z) `code` **bold** {{ 7*7 }}\n# head\n--- $m$ _u_"


def facts_of(delta: Delta, **more: Any) -> CardFacts:
    return CardFacts(delta.info, read_numbers(delta.info), tuple(t.name for t in delta.tensors), **more)


@pytest.fixture
def facts(delta: Delta) -> CardFacts:
    return facts_of(delta, signed=SIGNED, device=DEVICE)


def strictly(text: str) -> dict[str, Any]:
    """The bill, valid under the strict schema, with each reference once and none that leads nowhere."""
    assert (found := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)) is None, str(found)
    value: dict[str, Any] = json.loads(text)
    refs = [node["bom-ref"] for node in objects(value) if "bom-ref" in node]
    assert len(refs) == len(set(refs)), sorted(refs)
    used = [ref for row in value["dependencies"] for ref in (row["ref"], *row.get("dependsOn", ()))]
    used += [row["ref"] for row in value["metadata"]["component"]["modelCard"].get("modelParameters", {}).get("datasets", ())]
    assert set(used) <= set(refs)
    return value


def objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from objects(child)


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for child in value:
            yield from leaves(child)
    else:
        yield value


def spellings(value: Any) -> Iterator[str]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        forms = ("d", ".2%", ".1%") if isinstance(value, int) else (".3f", "+.3f", ".3g", ".2%", ".1%", ".2f", ".0f", ".1e", "")
        yield from (format(value, form) for form in forms)
        yield repr(value)
    else:
        yield from re.findall(r"[+-]?\d[\d.]*(?:e[+-]?\d+)?", str(value))


def numbers(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.])[+-]?\d+(?:\.\d+)*(?:e[+-]\d+)?%?(?![\w])", text))


def test_every_number_of_the_card_stands_in_the_result(facts: CardFacts) -> None:
    text = render_card(facts)
    body = text.split("\n---\n", 1)[1]
    known = {s.rstrip(".") for leaf in leaves([facts.info, SIGNED.__dict__, DEVICE]) for s in spellings(leaf)}
    known |= {"95", str(len(facts.tensors))}  # the intervals' level; a count of the record's own names
    assert numbers(re.sub(r"`[^`]*`", "", body)) <= known
    assert {"0.433", "0.117", "-0.420", "-0.210", "81234", "923001", "0.37%", "5.78"} <= numbers(body)


def test_a_changed_figure_changes_card_and_bill(facts: CardFacts) -> None:
    pages = {render_card(facts)}, {json.dumps(strictly(render_bom(facts))["metadata"])}
    for path in (("target", "error_after"), ("control", "change", "high"), ("target", "wrong_before", "low"), ("control", "mcnemar_p")):
        info = copy.deepcopy(dict(facts.info))
        row = info["metrics"]
        for key in path[:-1]:
            row = row[key]
        row[path[-1]] += 0.013
        other = replace(facts, info=info, metrics=read_numbers(info))
        for known, page in zip(pages, (render_card(other), json.dumps(json.loads(render_bom(other))["metadata"])), strict=True):
            assert page not in known, path
            known.add(page)


def test_the_head_is_what_the_hubs_own_reader_finds(facts: CardFacts) -> None:
    card = ModelCard(render_card(facts))
    found = {(r.dataset_type, r.metric_type): (r.metric_value, r.metric_args) for r in card.data.eval_results or ()}
    assert len(found) == 6
    for name in ("target", "control", "unrelated"):
        row = facts.info["metrics"][name]
        value, detail = found[f"held-out-{name}", "balanced_error"]
        assert value == row["error_after"] and detail["before"] == row["error_before"]
        assert detail["change_95"] == [row["change"]["low"], row["change"]["high"]] and detail["images"] == row["n"]
    assert card.data.to_dict()["edgeedit"]["patch"] == SIGNED.digest and card.data.pipeline_tag == "image-feature-extraction"


def test_blocks_are_there_only_with_their_data(delta: Delta, facts: CardFacts) -> None:
    def heads(of: CardFacts) -> list[str]:
        text = render_card(of)
        assert not re.search(r"\bNone\b|\bnan\b", text)
        return re.findall(r"^## (.+)$", text, re.M)

    titles = ["Model", "Intended use", "Edit", "Data", "Results", "On the device", "Limitations", "Provenance", "How to undo"]
    assert heads(facts) == titles
    assert heads(facts_of(delta)) == [t for t in titles if t != "On the device"]
    bare = CardFacts({}, None, ("w",))
    assert heads(bare) == [t for t in titles if t not in ("Model", "Data", "On the device")]
    assert "Nothing was judged" in render_card(bare) and not numbers(render_card(bare)) - {"1"}
    value = strictly(render_bom(bare))
    assert "quantitativeAnalysis" not in value["metadata"]["component"]["modelCard"] and "timestamp" not in value["metadata"]
    assert {c["type"] for c in value["components"]} == {"library"}


def test_the_bill_names_what_goes_in_with_its_digests(facts: CardFacts) -> None:
    value = strictly(render_bom(facts))
    rows = {c["bom-ref"]: c for c in value["components"]}
    info = facts.info
    hashes = {ref: row["hashes"][0]["content"] for ref, row in rows.items() if "hashes" in row}
    assert hashes == {
        "base-encoder": info["encoder"]["source_digest"],
        "patch": SIGNED.digest,
        "reader": info["reader"]["digest"],
        "data-shots": info["shots"]["digest"],
        "data-former": info["former"]["digest"],
        "data-control": info["control"]["digest"],
    }
    own = {p["name"]: p["value"] for p in rows["patch"]["properties"]}
    assert own["edgeedit:parent"] == SIGNED.parent and own["edgeedit:result"] == SIGNED.result
    for key in SIGNED.signers:
        crypto = rows[f"key-{key}"]["cryptoProperties"]
        assert crypto["relatedCryptoMaterialProperties"] == {"type": "public-key", "id": key}
    needs = {row["ref"]: row.get("dependsOn", []) for row in value["dependencies"]}
    assert set(needs["patch"]) == {f"key-{key}" for key in SIGNED.signers}
    assert {"runtime-numpy", "runtime-cryptography", "runtime-click"} <= set(needs["runtime-edgeedit"])
    assert "runtime-torch" not in rows and "version" not in rows["runtime-numpy"]
    subject = value["metadata"]["component"]
    assert subject["version"] == SIGNED.result
    assert subject["pedigree"]["ancestors"][0]["hashes"][0]["content"] == info["encoder"]["source_digest"]
    metrics = {(m["slice"], m["type"]): m for m in subject["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]}
    change = metrics["control", "change of the balanced error, 95 % interval"]["confidenceInterval"]
    assert (float(change["lowerBound"]), float(change["upperBound"])) == (-0.01, 0.031)
    assert float(metrics["target", "share misjudged before, Wilson 95 % interval"]["value"]) == pytest.approx(26 / 60)
    tools = {t["name"]: t["version"] for t in value["metadata"]["tools"]["components"]}
    assert tools == info["versions"]


def test_the_serial_number_follows_from_the_content_and_no_clock_is_read(facts: CardFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    first = render_bom(facts)
    monkeypatch.setattr("cyclonedx.model.bom._get_now_utc", lambda: datetime(1999, 1, 1, tzinfo=timezone.utc))
    assert render_bom(facts) == first
    dated = strictly(render_bom(replace(facts, when="2026-11-26T09:00:00+00:00")))
    assert dated["metadata"]["timestamp"] == "2026-11-26T09:00:00+00:00"
    other = strictly(render_bom(replace(facts, signed=replace(SIGNED, size=SIGNED.size + 1))))
    serials = {json.loads(first)["serialNumber"], dated["serialNumber"], other["serialNumber"]}
    assert len(serials) == 3


def test_a_patchs_decimal_strings_say_the_same(delta: Delta, facts: CardFacts) -> None:
    info = without_floats(delta.info)
    assert isinstance(info["metrics"]["target"]["error_before"], str)
    again = replace(facts, info=info, metrics=read_numbers(info))
    assert render_card(again) == render_card(facts)
    assert render_bom(again) == render_bom(facts)


def test_text_of_a_user_stays_text(delta: Delta) -> None:
    gate = {"verdict": HOSTILE, "reasons": [HOSTILE], "limit": 0.02}
    info = {
        **delta.info,
        "encoder": {"recipe": HOSTILE, "source_digest": "ab" * 32, "size": HOSTILE},
        "reader": {"kind": HOSTILE, "classes": [HOSTILE, "b"], "digest": "cd" * 32},
        "shots": {"n": 4, "classes": [HOSTILE], "digest": "ef" * 32},
        "metrics": {**delta.info["metrics"], "gate": gate},
        "method": {"name": HOSTILE, HOSTILE: HOSTILE},
        "licence_notes": [HOSTILE],
        "versions": {"torch": HOSTILE},
        "gate": {"accepted_because": HOSTILE},
    }
    plain = MarkdownIt("gfm-like", {"linkify": False})
    text = render_card(facts_of(Delta(delta.tensors, info)))
    head, body = text.split("\n---\n", 1)
    assert yaml.safe_load(head)["tags"][-1] == HOSTILE
    tokens = [t for token in plain.parse(body) for t in (token, *(token.children or ()))]
    kinds = {t.type for t in tokens}
    assert not kinds & {"html_inline", "html_block", "link_open", "image", "strong_open", "em_open", "hr"}, kinds
    heads = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    assert heads[1:] == ["Model", "Intended use", "Edit", "Data", "Results", "Limitations", "Provenance", "How to undo"]
    cells = [t.content for i, t in enumerate(tokens) if i and tokens[i - 1].type == "td_open"]
    shown = " ".join(HOSTILE.split())
    assert any("alert(1)" in cell for cell in cells)
    assert shown in {"".join(c.content for c in t.children or ()) for t in tokens if t.type == "inline"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("metrics", {"target": {}}),
        ("metrics", [1]),
        ("encoder", "x"),
        ("locality", {"blocks": [{"heads": 3}]}),
        ("shots", [1]),
        ("shots", {"n": 3, "digest": "sha256:12"}),
        ("reader", {"classes": 4, "digest": "cd" * 32}),
        ("survival", {"float16": "most"}),
        ("encoder", {"source_digest": "AB" * 32}),
        ("versions", ["torch"]),
    ],
)
def test_a_malformed_record_is_one_sentence(delta: Delta, key: str, value: Any) -> None:
    info = {**delta.info, key: value}
    for render in (render_card, render_bom):
        if render is render_bom and key in ("locality", "survival"):
            continue  # the bill does not hold them
        with pytest.raises(InputError, match="cannot read the record: expected"):
            render(facts_of(Delta(delta.tensors, info)))
