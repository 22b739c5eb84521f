"""Edit room (torch): shots, readers, locality, training, rounding, evaluation and gate."""
