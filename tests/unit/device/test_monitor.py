"""The monitor beside a real session: a bad patch goes, a changed world keeps its patch, errors never reach a frame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeedit.device.health import Health
from edgeedit.device.monitor.cause import find_cause
from edgeedit.device.monitor.monitor import Event, Monitor
from edgeedit.device.monitor.reservoir import Kept, Reservoir, pack, unpack
from edgeedit.device.runtime import Runtime
from edgeedit.device.store import Store

Array = np.ndarray[Any, Any]
QUICK = Health(frames=0)


def _reader(features: Array) -> Array:
    return features[:, :3]


def _frame(rng: np.random.Generator, lamp: float = 1.0) -> Array:
    return (rng.random((1, 3, 4, 4)) * lamp).astype(np.float32)


@pytest.fixture
def store(world: Any, tmp_path: Path) -> Path:
    Store.create(tmp_path / "store", world.bundle.path, [world.public]).close()
    return tmp_path / "store"


@pytest.fixture
def serve() -> Callable[..., None]:
    rng = np.random.default_rng(0)

    def run(runtime: Runtime, monitor: Monitor, count: int, lamp: float = 1.0) -> None:
        for _ in range(count):
            runtime.run(_frame(rng, lamp))
            monitor.work()

    return run


class _Steady(Monitor):
    """A Monitor whose engine takes a drawn time: on a busy machine the real one would, rightly, ring the latency alarm."""

    _clock = np.random.default_rng(7)

    def note(self, generation: int, pixels: Array, output: Array, seconds: float) -> None:
        super().note(generation, pixels, output, 0.001 * (1 + 0.05 * float(self._clock.random())) if seconds > 0 else seconds)


def _monitor(**settings: Any) -> Monitor:
    return _Steady(**{"every": 0.0, "frames": 16, "learn": 80, "reader": _reader, "background": False, **settings})


def _stage(store: Path, data: bytes) -> None:
    with Store.open(store) as opened:
        opened.stage(data, release="r1", sequence=1)


def _bad_patch(world: Any, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> bytes:
    """Deliberately bad: the low-rank part is 16 times as large as in the other patches, so that it outweighs the old matrix."""
    values = type(world).patch.__globals__
    sparse, low = values["random_deltas"](1)
    worse = replace(low, low_rank=replace(low.low_rank, scale=low.low_rank.scale * 16))
    monkeypatch.setitem(values, "random_deltas", lambda _: [sparse, worse])
    data: bytes = world.patch(1, **changes)
    return data


def test_a_patch_that_states_its_flips_is_kept(
    world: Any, store: Path, serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same change that is reverted otherwise: who made it says that the camera's usual verdicts were mistakes."""
    monitor = _monitor()
    with Runtime(store, poll_seconds=0, health=QUICK, monitor=monitor) as runtime:
        serve(runtime, monitor, 16 * 80)
        _stage(store, _bad_patch(world, monkeypatch, max_flips=1.0))
        runtime.step()
        serve(runtime, monitor, 16 * 30)
        with Store.open(store) as opened:
            assert opened.head().id == 1
        assert "where a share of 1 may" in next(e.reason for e in monitor.events if e.kind == "learnt" and e.generation == 1)
        assert monitor.compare(1, 0).verdict != "patch" and not monitor.errors


def test_first_frames_take_back_what_kept_frames_let_pass(world: Any, store: Path, serve: Callable[..., None]) -> None:
    """The patch changes 9 % of the verdicts where 5 % may: 192 kept frames cannot tell, its first frames in rounds can."""
    monitor = _monitor()
    with Runtime(store, poll_seconds=0, health=QUICK, monitor=monitor) as runtime:
        serve(runtime, monitor, 16 * 80)
        _stage(store, world.patch(5))
        runtime.step()
        serve(runtime, monitor, 1)
        assert monitor.calibrated_on == 1, "the kept frames let it pass"
        serve(runtime, monitor, 16 * 100)
        with Store.open(store) as opened:
            assert opened.head().id == 0
            reason = opened.receipts.waiting(10)[-1].reason
        assert reason.startswith("monitor: only the patch is worse") and int(reason.split(" of ")[1].split()[0]) > 192
        assert not monitor.errors


def test_a_mild_patch_rings_no_alarm(world: Any, store: Path, serve: Callable[..., None]) -> None:
    monitor = _monitor()
    with Runtime(store, poll_seconds=0, health=QUICK, monitor=monitor) as runtime:
        serve(runtime, monitor, 16 * 80)
        _stage(store, world.patch(5, max_flips=0.12))
        runtime.step()
        serve(runtime, monitor, 16 * 60)
        with Store.open(store) as opened:
            assert opened.head().id == 1
    # It moved the features, and of the verdicts no more than it states: the frames of clean days say what is usual with it.
    # (Frame times are those of a machine that does other things too, so what is said of them may be true.)
    kinds = {event.kind for event in monitor.events if not event.reason.startswith("latency")}
    assert kinds == {"learnt", "applied"} and monitor.calibrated_on == 1 and not monitor.errors


def test_a_patch_that_alone_is_worse_is_reverted_with_its_receipt(
    world: Any, store: Path, serve: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Event] = []
    monitor = _monitor(on_event=told.append)
    with Runtime(store, poll_seconds=0, health=QUICK, monitor=monitor) as runtime:
        serve(runtime, monitor, 16 * 80)
        assert monitor.calibrated_on == 0 and not monitor.errors
        _stage(store, _bad_patch(world, monkeypatch))
        assert runtime.step().state == "confirmed"  # type: ignore[union-attr]
        serve(runtime, monitor, 1)
        with Store.open(store) as opened:
            assert opened.head().id == 0
            last = opened.receipts.waiting(10)[-1]
        assert last.state == "reverted" and last.reason.startswith("monitor: only the patch is worse")
        back = runtime.step()
        assert back is not None and (back.generation, back.state) == (0, "followed")
        serve(runtime, monitor, 16 * 40)
    kinds = [event.kind for event in told]
    assert kinds == ["learnt", "applied", "drift_alarm", "reverted", "applied"] and not monitor.errors and monitor.calibrated_on == 0


def test_operators_who_override_a_patch_more_than_before_take_it_back(world: Any, store: Path, serve: Callable[..., None]) -> None:
    monitor = _monitor(reader=None)
    with Runtime(store, poll_seconds=0, health=QUICK, monitor=monitor) as runtime:
        serve(runtime, monitor, 16 * 80)
        _stage(store, world.patch(5))
        runtime.step()
        for _ in range(16 * 12):
            runtime.override()
            serve(runtime, monitor, 1)
        with Store.open(store) as opened:
            assert opened.head().id == 0
            assert "operators override it" in opened.receipts.waiting(10)[-1].reason


def test_what_was_learnt_outlives_a_restart_and_fits_its_camera_only(world: Any, store: Path, tmp_path: Path, serve: Any) -> None:
    settings = {"state": tmp_path / "monitor.npz"}
    first = _monitor(**settings)
    with Runtime(store, poll_seconds=0, health=QUICK, monitor=first) as runtime:
        serve(runtime, first, 16 * 80)
    _stage(store, world.patch(5))
    with Runtime(store, poll_seconds=0, health=QUICK) as runtime:
        runtime.step()
    again = _monitor(**settings)
    with Runtime(store, poll_seconds=0, health=QUICK, monitor=again) as runtime:
        # The patch came while nobody watched: the first frame takes the baseline along.
        serve(runtime, again, 16 * 3)
        assert again.calibrated_on == 1 and not again.errors
        assert [event.kind for event in again.events] == ["learnt"] and again.figures().plain["edgeedit_calibrated"]
    other = _monitor(**settings, rate=0.2)
    with Runtime(store, poll_seconds=0, health=QUICK, monitor=other):
        assert other.errors == {"MismatchError": 1} and other.calibrated_on == -1
    data = bytearray((tmp_path / "monitor.npz").read_bytes())
    for place in range(0, len(data), len(data) // 40):
        (tmp_path / "monitor.npz").write_bytes(bytes(data[:place]) + bytes([data[place] ^ 255]) + bytes(data[place + 1 :]))
        broken = _monitor(**settings)
        with Runtime(store, poll_seconds=0, health=QUICK, monitor=broken):
            assert broken.errors == {"IntegrityError": 1} or broken.calibrated_on == 1


def test_a_new_lamp_keeps_the_patch(world: Any, store: Path, serve: Callable[..., None]) -> None:
    monitor = _monitor()
    _stage(store, world.patch(1))
    with Runtime(store, poll_seconds=0, health=QUICK, monitor=monitor) as runtime:
        runtime.step()
        serve(runtime, monitor, 16 * 80)
        assert monitor.calibrated_on == 1
        serve(runtime, monitor, 16 * 20, lamp=0.5)
        with Store.open(store) as opened:
            assert opened.head().id == 1
        signals = [event.reason.split()[0] for event in monitor.events if event.kind == "drift_alarm"]
        assert "brightness" in signals and {"psi", "ks", "mmd"} & set(signals) and not monitor.errors
        assert monitor.compare(1, 0).verdict == "world"


def test_errors_are_counted_and_never_raised(store: Path) -> None:
    def broken(_: Array) -> Array:
        raise ValueError("no reader")

    monitor = _monitor(reader=broken, on_event=lambda _: 1 / 0)
    with Runtime(store, poll_seconds=0, health=QUICK, monitor=monitor) as runtime:
        rng = np.random.default_rng(0)
        for _ in range(16):
            assert np.isfinite(runtime.run(_frame(rng)).output).all()
        monitor.work()
        monitor.note(0, _frame(rng), np.full((1, 8), np.nan, np.float32), 0.01)
        assert monitor.errors == {"ValueError": 1, "ZeroDivisionError": 1}
        assert monitor.events[-1].kind == "not_finite"


def test_the_textfile_is_what_prometheus_reads(store: Path, tmp_path: Path, serve: Callable[..., None]) -> None:
    from prometheus_client import parser

    monitor = _monitor(learn=64, textfile=tmp_path / "edgeedit.prom")
    with Runtime(store, poll_seconds=0, health=QUICK, monitor=monitor) as runtime:
        runtime.override()
        serve(runtime, monitor, 16 * 66)
    families = {f.name: f for f in parser.text_string_to_metric_families((tmp_path / "edgeedit.prom").read_text("utf-8"))}
    value = {name: family.samples[0].value for name, family in families.items()}
    assert (value["edgeedit_frames"], value["edgeedit_windows"], value["edgeedit_overrides"]) == (16 * 66, 66, 1)
    assert {s.labels["signal"] for s in families["edgeedit_drift_ratio"].samples} >= {"psi", "ks", "mmd", "mix", "margin", "brightness"}
    assert all(name.startswith("edgeedit_") and not name.endswith(("_ms", "_mb", "_percent")) for name in families)
    assert [p.name for p in tmp_path.glob(".edgeedit*")] == []


def test_a_live_tensor_that_changes_by_itself_and_a_refusal_of_the_agent_are_told(world: Any, store: Path, serve: Any) -> None:
    monitor = _monitor()
    with Runtime(store, poll_seconds=0, health=QUICK, monitor=monitor) as runtime, Store.open(store) as opened:
        serve(runtime, monitor, 16 * 4)
        _stage(store, world.patch(5))
        runtime.step()
        opened.note_refusal("patch signature is wrong")
        opened.note_refusal("patch signature is wrong")
        serve(runtime, monitor, 16 * 4)
        assert [(e.kind, e.reason) for e in monitor.events] == [("applied", ""), ("signature_refused", "patch signature is wrong")]
        # A bit of memory flips: each of the three tensors is looked at within as many windows.
        runtime.engine.weights["second"].view(np.uint32)[0, 0] ^= 1 << 20
        serve(runtime, monitor, 16 * 3)
        assert [(e.kind, e.reason) for e in monitor.events][2:] == [("weights_changed", "tensor second is not that of generation 1")]
    again = _monitor()
    with Runtime(store, poll_seconds=0, health=QUICK, monitor=again) as runtime:
        serve(runtime, again, 16 * 4)
        assert not again.events and not again.errors


def test_the_thread_takes_frames_by_itself(store: Path) -> None:
    monitor = _monitor(background=True)
    rng = np.random.default_rng(0)
    with Runtime(store, poll_seconds=0, health=QUICK, monitor=monitor) as runtime:
        for _ in range(2000):
            runtime.run(_frame(rng))
            if monitor.figures().plain["edgeedit_windows_total"] >= 2:
                break
        assert monitor.figures().plain["edgeedit_windows_total"] >= 2
    assert not monitor.errors


def test_cause_over_twenty_seeds() -> None:
    right = {"patch": 0, "world": 0, "unclear": 0, "moved": 0}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        clean, recent, other = rng.normal(size=(64, 8)), rng.normal(size=(16, 8)), rng.normal(1.5, 1.0, (16, 8))
        turn = np.linalg.qr(rng.normal(size=(8, 8)))[0] * 2.0
        spoilt = (clean @ turn + 1.0, recent @ turn + 1.0)
        right["patch"] += find_cause((clean, recent), spoilt, _reader).verdict == "patch"
        right["world"] += find_cause((clean, other), (clean @ turn, other @ turn), _reader, overridden=True).verdict == "world"
        right["unclear"] += find_cause((clean, recent), (clean * 1.01, recent * 1.01), _reader).verdict == "unclear"
        # Features that merely moved are no harm where nothing reads them.
        right["moved"] += find_cause((clean, recent), spoilt, None).verdict == "unclear"
    assert all(count >= 19 for count in right.values()), right


def test_kept_pictures_come_back_bit_for_bit_and_within_their_bytes() -> None:
    rng = np.random.default_rng(0)
    for side in (4, 7):
        picture = rng.integers(0, 256, (3, side, side), dtype=np.uint8)
        assert (unpack(pack(picture), side) == picture).all()
        with pytest.raises(ValueError, match="reshape"):
            unpack(pack(picture), side - 1)
    grey = np.repeat(rng.integers(0, 256, (1, 64, 64), dtype=np.uint8), 3, axis=0)
    assert len(pack(grey)) < 64 * 64 * 1.05
    sample = [Reservoir(10, 10**6, seed) for seed in range(400)]
    small = Reservoir(10, 50, 0)
    for number in range(100):
        for one in (*sample, small):
            one.add(Kept(bytes(10), np.zeros(32, np.float32), number, 0.0))
    assert len(small.kept) == 5
    counts = np.bincount([k.verdict for one in sample for k in one.kept], minlength=100)
    assert counts.sum() == 4000 and abs((counts[:50].sum() / 4000) - 0.5) < 0.04 and counts.min() > 15
