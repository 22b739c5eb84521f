"""Deploy room: builds Bundles, lowers a Delta onto deployed tensors, computes probe expectations."""
