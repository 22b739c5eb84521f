"""Pictures of plates, clean and scratched, for tests that train a small edit: what a weak lamp and a noisy sensor hide."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COUNT = 12  # pictures of each class in each set


def draw(folder: Path, gain: float, noise: float, scratch: float, seed: int) -> None:
    """Scratched and clean plates, 112 x 112 pixels; `gain` is the lamp, `noise` the sensor's, `scratch` the scratch's brightness."""
    rng = np.random.default_rng(seed)
    for name in ("clean", "scratched"):
        (folder / name).mkdir(parents=True)
        for number in range(COUNT):
            plate = rng.normal(120, 6, (112, 112)) + 20 * np.sin(np.arange(112) / rng.uniform(6, 9))
            plate += rng.normal(0, noise, plate.shape)
            if name == "scratched":
                start = rng.integers(10, 60)
                for step in range(45):
                    plate[start + step, start + step // 2 : start + step // 2 + 4] += scratch
            picture = np.clip(plate * gain, 0, 255).astype(np.uint8)
            Image.fromarray(np.stack([picture] * 3, axis=2)).save(folder / name / f"{number}.png")


def draw_base_and_shots(at: Path) -> None:
    """`base`: the pictures that are read well; `shots`: a weak lamp and a noisy sensor, where a reader finds no scratch any more."""
    draw(at / "base", 1.0, 0.0, 60.0, 0)
    draw(at / "shots", 0.45, 22.0, 45.0, 1)
