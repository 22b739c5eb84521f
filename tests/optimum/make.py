"""In the environment of [optimum]: a small random SigLIP tower in FOLDER, as `save_pretrained` writes it."""

from __future__ import annotations

import sys

import torch
from transformers import SiglipVisionConfig, SiglipVisionModel


def main() -> None:
    """Write the folder named on the command line."""
    torch.manual_seed(7)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "image_size": 28,
        "patch_size": 7,
    }
    SiglipVisionModel(SiglipVisionConfig(**shape)).save_pretrained(sys.argv[1])


if __name__ == "__main__":
    main()
