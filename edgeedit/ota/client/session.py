"""What a device polls with and what it is offered."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgeedit.ota.client.link import Link
from edgeedit.ota.client.rollout import Device, Rollout


@dataclass(frozen=True)
class Config:
    """Everything a poll depends on beside floors and time.

    `source` holds `metadata/` and `targets/`: a folder, `file://`, `http(s)://` or `s3://bucket/prefix`.  `folder` is a cache that may
    vanish.  `root` is the provisioned root metadata, the one anchor of trust.  `running` is the fingerprint of the proven generation;
    `refused` are digests of patches that failed here and are not offered again.  A clock that is behind the floor refuses to poll,
    unless `step_clock` says that this device has no clock: then time stands still at the floor until it is set."""

    source: str
    folder: Path
    root: bytes = field(repr=False)
    site: str
    device: Device
    running: str
    refused: frozenset[str] = frozenset()
    step_clock: bool = False
    link: Link = field(default_factory=Link)


@dataclass(frozen=True)
class Offer:
    """`install`: fetch the patch of `rollout` and stage it.  `return`: go back to the generation that `rollout.withdraw_to` names."""

    action: Literal["install", "return"]
    rollout: Rollout
    config: Config = field(repr=False)
