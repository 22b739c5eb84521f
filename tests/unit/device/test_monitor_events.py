"""Every event of the field is told, settings come from the profile, and clean days that are not like the server's images are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeedit.bundle import REFERENCE_FILE, Bundle, load_bundle, save_bundle, verify_bundle
from edgeedit.device.health import Health
from edgeedit.device.monitor.metrics import Figures, exposition
from edgeedit.device.monitor.monitor import Monitor
from edgeedit.device.monitor.outlets import Event
from edgeedit.device.monitor.projection import Projection
from edgeedit.device.runtime import Runtime
from edgeedit.device.store import Store
from edgeedit.digest import digest_file
from edgeedit.errors import IntegrityError

Array = np.ndarray[Any, Any]
SETTINGS: dict[str, Any] = {"every": 0.0, "frames": 16, "learn": 64, "background": False}
LISTED = {"applied", "reverted", "drift_warn", "drift_alarm", "probe_fail", "signature_refused"}


class Listener:
    """An outlet that keeps what it is told."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.last = Figures()

    def event(self, event: Event) -> None:
        self.kinds.append(event.kind)

    def figures(self, figures: Figures) -> None:
        self.last = figures

    def close(self) -> None:
        pass


def _serve(runtime: Runtime, monitor: Monitor, frames: list[Array]) -> None:
    for pixels in frames:
        runtime.run(pixels)
        monitor.work()


def _frames(count: int, lamp: float = 1.0, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [(rng.random((1, 3, 4, 4)) * lamp).astype(np.float32) for _ in range(count)]


def test_every_listed_event_reaches_an_outlet(world: Any, tmp_path: Path) -> None:
    from prometheus_client import parser

    Store.create(tmp_path / "store", world.bundle.path, [world.public]).close()
    listener, start = Listener(), dict(world.weights)
    monitor = Monitor(reader=lambda features: features[:, :3], outlets=[listener], **SETTINGS)
    health = Health(frames=0)
    with Runtime(tmp_path / "store", poll_seconds=0, health=health, monitor=monitor) as runtime, Store.open(tmp_path / "store") as store:
        _serve(runtime, monitor, _frames(16 * 64))
        store.stage(world.patch(1, wrong_probe=True), release="r1", sequence=1)
        runtime.step()
        assert listener.kinds == ["learnt", "probe_fail", "reverted"]
        store.note_refusal("patch signature is wrong")
        world.weights = start
        good = world.patch(5)
        store.stage(good, release="r2", sequence=2)
        runtime.step()
        _serve(runtime, monitor, _frames(16 * 40, lamp=0.5, seed=1))
        assert set(listener.kinds) >= LISTED and not monitor.errors
        running = store.head()
        facts = listener.last.facts["edgeedit_generation_info"]
        assert facts == {"bundle": world.bundle.fingerprint, "fingerprint": running.result, "patch": running.patch}
    families = {family.name: family for family in parser.text_string_to_metric_families(exposition(listener.last))}
    assert families["edgeedit_generation_info"].samples[0].labels == facts
    assert {s.labels["signal"] for s in families["edgeedit_signal_ratio"].samples} >= {"psi", "ks", "mmd", "brightness", "mix"}
    assert {s.labels["quantile"] for s in families["edgeedit_frame_seconds"].samples} == {"0.5", "0.95"}
    counted = {s.labels["kind"]: s.value for s in families["edgeedit_events"].samples}
    assert counted == {kind: listener.kinds.count(kind) for kind in set(listener.kinds)}


def test_labels_are_escaped_as_prometheus_reads_them() -> None:
    from prometheus_client import parser

    odd = 'a "quoted" \\ word\nof two lines'
    text = exposition(Figures({}, {}, {"edgeedit_generation_info": {"patch": odd}}))
    (family,) = parser.text_string_to_metric_families(text)
    assert family.samples[0].labels == {"patch": odd}


def test_settings_come_from_the_profile_unless_the_application_says_otherwise(world: Any, tmp_path: Path) -> None:
    save_bundle(replace(world.bundle, monitor_seconds=0.0, monitor_frames=8, monitor_windows=33, false_alarms=0.2))
    Store.create(tmp_path / "store", world.bundle.path, [world.public]).close()
    own, other = Monitor(background=False), Monitor(background=False, learn=40)
    for monitor, windows in ((own, 33), (other, 40)):
        with Runtime(tmp_path / "store", poll_seconds=0, monitor=monitor) as runtime:
            _serve(runtime, monitor, _frames(8 * windows - 1))
            assert monitor.calibrated_on == -1
            _serve(runtime, monitor, _frames(1))
            assert monitor.calibrated_on == 0 and monitor.events[-1].reason == f"{windows} clean windows of 8 frames"


def _with_reference(world: Any) -> Bundle:
    rows = Projection(world.bundle.output_width)(np.concatenate([_answer(world, pixels) for pixels in _frames(200, seed=7)]))
    np.save(world.bundle.path / REFERENCE_FILE, rows)
    made: Bundle = replace(world.bundle, reference_digest=digest_file(world.bundle.path / REFERENCE_FILE))
    save_bundle(made)
    return made


def _answer(world: Any, pixels: Array) -> Array:
    found: Array = type(world).patch.__globals__["forward"](world.weights, pixels).astype(np.float32)
    return found


@pytest.mark.parametrize(("lamp", "told"), [(1.0, False), (0.5, True)])
def test_clean_days_that_are_not_like_the_servers_images_are_warned_of(world: Any, tmp_path: Path, lamp: float, told: bool) -> None:
    verify_bundle(load_bundle(_with_reference(world).path))
    Store.create(tmp_path / "store", world.bundle.path, [world.public]).close()
    assert load_bundle(tmp_path / "store" / "base").reference() is not None
    monitor = Monitor(**SETTINGS)
    with Runtime(tmp_path / "store", poll_seconds=0, monitor=monitor) as runtime:
        _serve(runtime, monitor, _frames(16 * 64, lamp))
    assert [event.kind for event in monitor.events] == ["learnt", "drift_warn"][: 1 + told] and not monitor.errors
    assert not told or monitor.events[-1].reason.startswith(
        "clean days are unlike the server's images: expected a PSI of at most 0.25, got"
    )


def test_a_reference_that_was_changed_is_refused(world: Any) -> None:
    made = _with_reference(world)
    (made.path / REFERENCE_FILE).write_bytes((made.path / REFERENCE_FILE).read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(IntegrityError, match="reference was changed"):
        verify_bundle(load_bundle(made.path))
