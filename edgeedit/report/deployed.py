"""As deployed, cost and account: what a device computes, what the change cost, what it saved.

Guarantees: only figures that were measured or stated; a yes or no only where something was checked.
"""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from edgeedit.report.sheet import Sheet

Rows = list[tuple[str | Markup, Markup]]
_FEED = {
    "prepare_ms": "Preparation in the background",
    "swap_ms": "Standstill: swap between two frames",
    "probe_ms": "Proof by probe images",
    "rebuild_default_ms": "Avoided: rebuilding the session",
    "rebuild_noprepack_ms": "Avoided: rebuilding without prepacking",
}
_FRAMES = {
    "frames_served": "Frames answered meanwhile",
    "frames_lost": "Frames lost",
    "frames_torn": "Frames answered by a mix of old and new weights",
}
_CONFIRMED = {
    "device_equals_server": "Device gives the server's weights and verdicts",
    "rollback_exact": "Undone exactly, bit for bit, in the trial",
}
_COMPARED = {
    "cosine_min": ("lowest cosine of the features", "decimal4"),
    "max_abs": ("largest difference of an output", "significant"),
    "mean_abs": ("mean difference of an output", "significant"),
}
_SIDES = {"patch": "This patch", "usual": "The usual way: a whole new model"}


def deployed_rows(sheet: Sheet) -> Rows:
    """The table `as deployed`."""
    rows: Rows = []
    precision = sheet.value("encoder.precision")
    if precision:
        rows.append(
            (
                "Precision that was judged",
                sheet.fill("{p}: the rounded weights, as a device computes them", p=sheet.text("encoder.precision")),
            )
        )
    for kind in sheet.value("survival"):
        note = " (the deployed precision)" if kind == precision else ""
        name = Markup('<span data-key="survival" translate="no">{}</span>').format(kind)
        rows.append(
            (sheet.fill("Changes that survive rounding to {kind}{note}", kind=name, note=note), sheet.show(f"survival.{kind}", "percent"))
        )
    for key, (label, style) in _COMPARED.items():
        if sheet.value(f"cost.compare.{key}") is not None:
            rows.append((f"Torch against the exported graph in ONNX Runtime (base): {label}", sheet.show(f"cost.compare.{key}", style)))
    for key, (label, style) in _COMPARED.items():
        if sheet.value(f"cost.engine.{key}") is not None:
            engine = sheet.text("cost.engine.engine")
            rows.append(
                (
                    sheet.fill("The exported graph against the engine {engine} (base): {label}", engine=engine, label=label),
                    sheet.show(f"cost.engine.{key}", style),
                )
            )
    if sheet.value("device.max_output_difference") is not None:
        difference = sheet.show("device.max_output_difference", "significant")
        rows.append(("Torch against the device's running session (patched): largest difference of an output", difference))
    tolerance = next((path for path in ("device.probe_tolerance", "cost.probe_tolerance") if sheet.value(path) is not None), None)
    if tolerance:
        rows.append(("Tolerance of the probes (golden outputs in the patch)", sheet.show(tolerance, "significant")))
    for key, label in _CONFIRMED.items():
        if isinstance(sheet.value(f"device.{key}"), bool):
            rows.append((label, sheet.fill("yes" if sheet.value(f"device.{key}") else "NO")))
    return rows


def cost_rows(sheet: Sheet) -> Rows:
    """The cost table."""
    rows: Rows = []
    seconds = next((path for path in ("metrics.edit_seconds", "cost.edit_seconds") if sheet.value(path) is not None), None)
    if seconds:
        rows.append(("Edit on the server", sheet.show(seconds, "seconds")))
    if sheet.value("metrics") is not None:
        share, total = sheet.show("metrics.changed_share", "small_percent"), sheet.show("metrics.total_weights", "count")
        count = sheet.show("metrics.changed_count", "count")
        rows.append(("Weights changed", sheet.fill("{count} ({share} of {total})", count=count, share=share, total=total)))
        rows.append(("Weights changed outside the declared places", sheet.show("metrics.outside_mask", "count")))
    if sheet.value("cost.patch_bytes") is not None:
        size, exact = sheet.show("cost.patch_bytes", "size"), sheet.show("cost.patch_bytes", "count")
        of = Markup("")
        if sheet.value("patch_share") is not None:
            encoder, share = sheet.show("cost.encoder_bytes", "size"), sheet.show("patch_share", "small_percent")
            of = sheet.fill(", {share} of the encoder's {encoder}", share=share, encoder=encoder)
        rows.append(("Patch to transfer", sheet.fill("{size} ({exact} bytes){of}", size=size, exact=exact, of=of)))
    for labels, style in ((_FEED, "milliseconds"), (_FRAMES, "count")):
        rows += [(label, sheet.show(f"device.{key}", style)) for key, label in labels.items() if sheet.value(f"device.{key}") is not None]
    return rows


def _item(sheet: Sheet, place: int) -> dict[str, Any]:
    row, path = sheet.value(f"account.items.{place}"), f"account.items.{place}"
    if row["missing"]:
        how = sheet.fill("not computed: {names} not known", names=", ".join(row["missing"]))
        return {
            "what": sheet.fill("{side}: {what}", side=_SIDES[row["side"]], what=row["what"]),
            "how": how,
            "amount": Markup("\N{EM DASH}"),
        }
    factors = [
        sheet.fill("{name} {value}", name=factor["name"], value=sheet.show(f"{path}.factors.{i}.value", "plain"))
        for i, factor in enumerate(row["factors"])
    ]
    what = sheet.fill("{side}: {what}", side=_SIDES[row["side"]], what=row["what"])
    return {"what": what, "how": Markup(" \N{MULTIPLICATION SIGN} ").join(factors), "amount": sheet.show(f"{path}.amount", "money")}


def account_view(sheet: Sheet) -> dict[str, Any] | None:
    """Items, sums and the note of the account; None without unit costs."""
    found = sheet.value("account")
    if not found:
        return None
    totals = [(_SIDES[side], sheet.show(f"account.{side}", "money")) for side in _SIDES if found[side] is not None]
    if found["saved"] is not None:
        totals.append(("Saved", sheet.show("account.saved", "money")))
    note = (
        "All unit costs are the user's own."
        if found["complete"]
        else "All unit costs are the user's own. Items that were not computed are in no sum."
    )
    currency = sheet.text("account.currency") if found["currency"] else "Amount"
    return {"rows": [_item(sheet, i) for i in range(len(found["items"]))], "totals": totals, "note": note, "currency": currency}
