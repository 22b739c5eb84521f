"""The offline vision-language model of the demo: real vision tower, a projector trained here, a real small language model."""
