"""The monitor: watches the field from beside the frame path, calls an alarm by a calibrated rate, and acts by cause."""
