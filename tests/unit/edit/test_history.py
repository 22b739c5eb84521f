"""The history of a chain against matrices worked by hand, and advice that follows from the measured figure."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from edgeedit.edit.history import Limits, Step, measured, recorded
from edgeedit.errors import InputError
from edgeedit.report.history import as_text, rows, save_history

# Errors on sessions a..d, the base first: each edit repairs its own session from 0.5 to 0.1, later ones take a little back.
MATRIX = np.array(
    [
        [0.50, 0.50, 0.50, 0.50],
        [0.10, 0.45, 0.50, 0.50],
        [0.14, 0.10, 0.50, 0.50],
        [0.18, 0.12, 0.10, 0.40],
        [0.20, 0.15, 0.13, 0.10],
    ]
)
CONTROL, SHIFT = [0.10, 0.11, 0.10, 0.12, 0.12], [0.1, 0.2, 0.3, 0.4]
NAMES = ["a", "b", "c", "d"]


def view(matrix: Any = MATRIX, control: Any = CONTROL, shift: Any = SHIFT, **limits: Any) -> dict[str, Any]:
    names = NAMES[: matrix.shape[1]] if matrix.shape[1] <= 4 else [str(n) for n in range(matrix.shape[1])]
    return measured(names, matrix, control, shift, None, Limits(**limits))


def actions(found: dict[str, Any]) -> list[str]:
    return [row["action"] for row in found["advice"]]


def test_gain_drift_and_what_was_forgotten_of_each_update() -> None:
    found = view()
    table = {row["name"]: row for row in found["updates"]}
    assert [table[n]["gain"] for n in NAMES] == pytest.approx([0.4, 0.35, 0.4, 0.3])
    assert [table[n]["forgotten"] for n in NAMES] == pytest.approx([0.1, 0.05, 0.03, 0.0])
    assert [table[n]["mean_error"] for n in NAMES] == pytest.approx([1.55 / 4, 1.24 / 4, 0.8 / 4, 0.58 / 4])
    assert [table[n]["control"] for n in NAMES] == CONTROL[1:] and [table[n]["shift"] for n in NAMES] == SHIFT
    assert found["base"] == {"mean_error": 0.5, "control": 0.1} and table["a"]["cka"] is None
    assert found["summary"]["bwt"] == pytest.approx(-0.06) and found["bwt"][0] == pytest.approx(-0.06)
    assert found["summary"]["control_change"] == pytest.approx(0.02)
    assert found["pace"][0]["gain"] == pytest.approx(1.45 / 4) and found["pace"][0]["rate"] == pytest.approx(1.45 / 4 / 0.1)


def test_established_forgetting_above_its_limit_asks_for_a_slower_rhythm() -> None:
    found = view()
    assert actions(found) == ["slower"] and found["advice"][0]["every"] == 2
    low, high = map(float, re.findall(r"95 % ([\d.]+) \.\. ([\d.]+)", found["advice"][0]["reason"])[0])
    assert 0 < low < 0.06 < high <= 0.1 and "took 0.060 of accuracy" in found["advice"][0]["reason"]
    assert actions(view(forgetting=0.06)) == ["go on"]


def test_forgetting_that_is_not_established_is_no_reason() -> None:
    matrix = MATRIX.copy()
    matrix[-1] = [0.28, 0.05, 0.05, 0.10]  # -0.18, +0.05, +0.05: a mean of -0.027 whose interval holds zero
    found = view(matrix)
    assert found["bwt"][0] < 0 < found["bwt"][2] and actions(found) == ["go on"]
    three = view(MATRIX[:4, :3], CONTROL[:4], SHIFT[:3])
    assert three["bwt"][2] < 0 and actions(three) == ["go on"]  # two figures give no interval worth the name


def test_updates_that_forget_what_they_gain_ask_to_retrain() -> None:
    matrix = MATRIX.copy()
    matrix[-1] = [0.5, 0.5, 0.5, 0.1]
    found = view(matrix)
    assert actions(found) == ["retrain"] and "an update gives 0.363" in found["advice"][0]["reason"]


def test_control_drift_and_length_have_their_own_advice() -> None:
    assert actions(view(control=[0.10, 0.11, 0.12, 0.14, 0.16]))[0] == "retrain"
    assert actions(view(drift=0.35))[0] == "retrain"
    count = 15
    long = np.full((count + 1, count), 0.5)
    for t in range(count):
        long[t + 1 :, t] = 0.1
    shift = [0.02 * n for n in range(1, count + 1)]
    assert actions(view(long, [0.1] * (count + 1), shift)) == ["squash"]
    assert actions(view(long[:15, :14], [0.1] * 15, shift[:14])) == ["go on"]
    slowing = [0.02 * n for n in range(1, 8)] + [0.14 + 0.1 * n for n in range(1, 9)]
    assert actions(view(long, [0.1] * (count + 1), slowing)) == ["squash", "slower"]


def test_records_alone_give_gains_and_say_what_is_not_known() -> None:
    found = recorded([Step(str(n), 0.4, 0.4 - gain, gain) for n, gain in enumerate([0.2, 0.1, 0.1, 0.0, -0.1, 0.05])])
    assert actions(found) == ["retrain", "measure"] and "summary" not in found
    assert rows(found)[0] == ("#", "update", "error before", "after", "gain")
    assert actions(recorded([Step("x", 0.4, 0.3, 0.1)] * 15)) == ["squash", "measure"]
    assert actions(recorded([Step("x", 0.4, 0.3, 0.1)] * 14)) == ["measure"]


def test_figures_that_do_not_belong_together_are_refused() -> None:
    for broken in (MATRIX[:-1], MATRIX[:, :3]):
        with pytest.raises(InputError, match="chain is inconsistent"):
            measured(NAMES, broken, CONTROL, SHIFT)
    with pytest.raises(InputError, match="not a number"):
        view(np.where(MATRIX == 0.45, np.nan, MATRIX))
    with pytest.raises(InputError, match="out of range"):
        Limits(drift=0.0)
    with pytest.raises(InputError, match="out of range"):
        Limits(control=1.5)


def test_the_page_shows_the_figures_and_no_markup_of_a_name(tmp_path: Any) -> None:
    found = view()
    found["updates"][0]["name"] = "<script>x</script>"
    save_history(found, tmp_path / "h.html")
    page = (tmp_path / "h.html").read_text("utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and page.count("<svg") == 1
    assert all(target.startswith("#") for target in re.findall(r"""(?:src|href)=["'](.*?)["']""", page))
    cells = re.findall(r"<td>(.*?)</td>", page)
    assert cells[2:9] == ["0.500", "0.100", "+0.400", "+0.100", "0.388", "0.110", "0.100"]
    save_history(found, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "h.html").read_bytes()
    text = as_text(found)
    assert "slower: later updates took 0.060" in text and "collect 2 mistakes for one update" in text
    assert "Mean error of all sessions 0.500 before, 0.145 now; control error 0.100 before, 0.120 now." in text
