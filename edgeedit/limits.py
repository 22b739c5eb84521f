"""Every limit in one place, each with its unit; checked before anything is allocated.

Guarantees: no other module holds a numeric cap.  Changing a value here changes what a device accepts.
"""

from __future__ import annotations

MAX_PATCH_BYTES = 256 * 1024 * 1024  # bytes of one patch file
MAX_MANIFEST_BYTES = 8 * 1024 * 1024  # bytes of the JSON manifest
MAX_SIGNATURES = 4  # signature slots in the fixed header
MAX_TENSORS = 4096  # tensors touched by one patch
MAX_SECTIONS = 4 * MAX_TENSORS  # sections in one patch
MAX_NAME_BYTES = 512  # bytes (UTF-8) of a tensor or section name
MAX_DIMS = 8  # dimensions of a tensor
MAX_TENSOR_ELEMENTS = 1 << 28  # elements of one tensor (1 GiB as fp32)
MAX_RANK = 1024  # rank of one low-rank part; keeps int8 x int8 sums below 2^24
MAX_DENSE_ELEMENTS = 1 << 16  # elements of a tensor whose steps are all listed
MAX_STEP = 127  # |q| of an edit
MAX_SQUASH_STEP = 255  # |q| of a squash
MAX_SCALE_BITS = 16  # significant bits of a sparse step s, so that s*q is exact in fp32
MIN_SCALE_EXP = -60  # s and t lie in [2^-60, 2^20]
MAX_SCALE_EXP = 20
MAX_CHAIN = 16  # patches on top of one base
MAX_PROBES = 256  # probe inputs in a Bundle
MAX_PROBE_VALUES = 1 << 22  # expected output values (fp32) in one patch
MAX_TRIAL_ATTEMPTS = 3  # starts of an unproven generation before it is reverted
MAX_RECEIPTS = 4096  # receipts that wait in a store; the oldest go first
MAX_HISTORY = 10_000  # events that a store remembers after a collection
KEPT_FORMER = 2  # former generations whose patches a store keeps at least, beside the head's own chain
MAX_BUNDLE_JSON_BYTES = 16 * 1024 * 1024  # bytes of bundle.json
MAX_JSON_DEPTH = 32  # nesting of the manifest
MAX_IMAGE_PIXELS = 64 * 1024 * 1024  # pixels of one input image
# Over the air
MAX_OTA_NAME_BYTES = 128  # bytes of a device id, site, profile, release, stage or label
MAX_OTA_TEXT_BYTES = 1024  # bytes (UTF-8) of a free text in a rollout or receipt
MAX_ROLLOUT_BYTES = 256 * 1024  # bytes of one rollout document
MAX_RECEIPT_BYTES = 8 * 1024  # bytes of one signed receipt
MAX_STAGES = 32  # stages of one rollout
MAX_STAGE_IDS = 4096  # device ids named by one stage
MAX_WINDOWS = 64  # maintenance windows of one rollout
MAX_ROLLOUTS = 256  # rollout documents of one site that a device looks at
MAX_DDI_BYTES = 1024 * 1024  # bytes of one answer of a scheduler (hawkBit)
MAX_DDI_SLEEP = 24 * 3600  # seconds between polls that a scheduler may ask for
MAX_ROOT_BYTES = 64 * 1024  # bytes of one root metadata file
MAX_TIMESTAMP_BYTES = 16 * 1024  # bytes of timestamp metadata
MAX_SNAPSHOT_BYTES = 2_000_000  # bytes of snapshot metadata
MAX_TARGETS_BYTES = 5_000_000  # bytes of targets metadata of one role
MAX_ROOT_ROTATIONS = 256  # root versions walked in one poll
# Watching the field
MAX_BASELINE_BYTES = 64 * 1024 * 1024  # bytes of what a Monitor learnt
MAX_REFERENCE_ROWS = 512  # images behind the reference in a Bundle
MAX_OVERRIDE_BYTES = 4096  # bytes of one override from another program
MAX_SPOOLED_EVENTS = 1000  # events that wait for a broker; the oldest go first
MAX_SPOOL_BYTES = 4 * 1024 * 1024  # bytes of the file in which they wait
MAX_REASON_CHARS = 1000  # characters of an event's reason
