"""Every text encoder that the host brings.

Tokenizers are the host's own; where nothing is encoded, their text models are of the published sizes, without memory
for weights. Vocabularies that only checkpoints bring (UMT5, Gemma, Mistral) are small ones of their kind, made here.
"""

import base64
import importlib
import io
import json
from functools import cache
from inspect import isclass
from types import SimpleNamespace

import comfy.sd
import comfy.supported_models_base
import pytest
import sentencepiece
import torch

from ..lab.comfy.random_models import draw_weights

ENCODERS = {
    "SD3": ("sd3_clip.SD3Tokenizer", "sd3_clip.sd3_clip"),
    "Flux": ("flux.FluxTokenizer", "flux.flux_clip"),
    "Flux.2": ("flux.Flux2Tokenizer", "flux.flux2_te"),
    "Klein": ("flux.KleinTokenizer", "flux.klein_te"),
    "HiDream": ("hidream.HiDreamTokenizer", "hidream.hidream_clip"),
    "HunyuanVideo": ("hunyuan_video.HunyuanVideoTokenizer", "hunyuan_video.hunyuan_video_clip"),
    "HunyuanImage": ("hunyuan_image.HunyuanImageTokenizer", "hunyuan_image.te"),
    "HunyuanVideo 1.5": ("hunyuan_video.HunyuanVideo15Tokenizer", "hunyuan_image.te"),
    "Qwen-Image": ("qwen_image.QwenImageTokenizer", "qwen_image.te"),
    "LongCat": ("longcat_image.LongCatImageTokenizer", "longcat_image.te"),
    "Kandinsky5": ("kandinsky5.Kandinsky5Tokenizer", "kandinsky5.te"),
    "Kandinsky5 image": ("kandinsky5.Kandinsky5TokenizerImage", "kandinsky5.te"),
    "Z-Image": ("z_image.ZImageTokenizer", "z_image.te"),
    "OmniGen2": ("omnigen2.Omnigen2Tokenizer", "omnigen2.te"),
    "Ovis": ("ovis.OvisTokenizer", "ovis.te"),
    "Krea2": ("krea2.Krea2Tokenizer", "krea2.te"),
    "Boogu": ("boogu.BooguTokenizer", "boogu.te"),
    "Ideogram4": ("ideogram4.Ideogram4Tokenizer", "ideogram4.te"),
    "JoyImage": ("joyimage.JoyImageTokenizer", "joyimage.te"),
    "MageFlow": ("mage_flow.MageFlowTokenizer", "mage_flow.te"),
    "Lumina2": ("lumina2.LuminaTokenizer", "lumina2.te"),
    "PixelDiT": ("pixeldit.PixelDiTGemma2Tokenizer", "pixeldit.pixeldit_te"),
    "Wan": ("wan.WanT5Tokenizer", "wan.te"),
    "AuraFlow": ("aura_t5.AuraT5Tokenizer", "aura_t5.AuraT5Model"),
    "Mochi": ("genmo.MochiT5Tokenizer", "genmo.mochi_te"),
    "LTXV": ("lt.LTXVT5Tokenizer", "lt.ltxv_te"),
    "Cosmos": ("cosmos.CosmosT5Tokenizer", "cosmos.te"),
    "PixArt": ("pixart_t5.PixArtTokenizer", "pixart_t5.pixart_te"),
    "CogVideoX": ("cogvideo.CogVideoXTokenizer", "cogvideo.cogvideo_te"),
    "Anima": ("anima.AnimaTokenizer", "anima.te"),
}
CAT = "a cat and a fluffy axolotl on a red mat, don't look"
DOG = "Two Dogs: it's the café; in the rain, 3d render!!"
SENTENCES = [CAT, DOG, "the cat sat on the mat", "the red, the big and the fluffy one", "a dog in the rain looks at it",
             "0 1 2 3 4 5 6 7 8 9 a b c d e f g h i j k l m n o p q r s t u v w x y z T - ( ) : ."]  # fmt: skip
T5 = {"d_ff": 96, "d_kv": 24, "d_model": 48, "num_heads": 2, "num_layers": 2}
CLIP = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 128}
LLAMA = {
    "hidden_size": 256,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
SIZES = {
    **{f"clip_{name}_model_config": CLIP for name in "lg"},
    **{f"{name}_model_config": LLAMA for name in ("qwen25_7b", "qwen25_3b", "gemma2_2b", "llama")},
    **{f"{name}_model_config": T5 for name in ("t5xxl", "umt5xxl", "pile_t5xl")},
    "qwen3_4b_model_config": {**LLAMA, "num_hidden_layers": 28},  # Klein reads the 27th
}


@cache
def pieces_of_sentences(gemma: bool) -> torch.Tensor:
    """A vocabulary of sentencepiece, as a checkpoint holds it: Gemma's kind, or UMT5's."""
    model = io.BytesIO()
    special = {"eos_id": 1, "bos_id": 2, "unk_id": 3} if gemma else {"eos_id": 1, "bos_id": -1, "unk_id": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=model,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=gemma,
        hard_vocab_limit=False,
        minloglevel=2,
        pad_id=0,
        **special,
    )
    return torch.tensor(list(model.getvalue()), dtype=torch.uint8)


@cache
def mistrals_vocabulary() -> torch.Tensor:
    """All bytes, and what is cut off the words of the sentences at their beginnings."""
    words = {f" {word}" for sentence in SENTENCES for word in sentence.split()}
    longer = sorted({word[:end].encode() for word in words for end in range(2, 6)}, key=len)
    pieces = [*(bytes([byte]) for byte in range(256)), *(piece for piece in longer if len(piece) > 1)]
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *(f"<{n}>" for n in range(5, 11)), "<pad>"]
    special += ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    blob = {
        "config": {"default_num_special_tokens": len(special), "default_vocab_size": len(special) + len(pieces)},
        "vocab": [{"rank": n, "token_bytes": base64.b64encode(piece).decode()} for n, piece in enumerate(pieces)],
        "special_tokens": [{"rank": n, "token_str": text} for n, text in enumerate(special)],
    }
    return torch.tensor(list(json.dumps(blob).encode()), dtype=torch.uint8)


def found(path):
    """What the host has under `module.name`; skips where it does not have it."""
    module, name = path.split(".")
    try:
        return getattr(importlib.import_module(f"comfy.text_encoders.{module}"), name)
    except (ImportError, AttributeError):
        pytest.skip(f"this host has no {path}")


@cache
def clip_of(name):
    """A text encoder of which only the words matter."""
    tokenizer, model = map(found, ENCODERS[name])
    data = {"spiece_model": pieces_of_sentences(name in ("Lumina2", "PixelDiT")), "tekken_model": mistrals_vocabulary()}
    try:
        tokenizer = tokenizer(tokenizer_data=data)
    except (OSError, TypeError) as error:
        pytest.skip(f"this host lacks the vocabulary of {name}, or another transformers: {error}")
    if not _reads(tokenizer):
        pytest.skip(f"this host lacks the vocabulary of {name}, or the transformers that reads it")
    model = (model if isclass(model) else model())(device="meta", dtype=torch.float16)
    return SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights, cond_stage_model=model)


def small_clip(name, tokenizer=None):
    """A text encoder of the host's own classes with few and narrow layers, and random weights."""
    tokenizer, model = tokenizer or clip_of(name).tokenizer, found(ENCODERS[name][1])
    target = comfy.supported_models_base.ClipTarget(lambda **data: tokenizer, model if isclass(model) else model())
    sizes = {**SIZES, "t5xxl_model_config": {**T5, "d_model": 4096}} if name == "SD3" else SIZES
    clip = comfy.sd.CLIP(target, model_options=sizes)
    drawn = {module: None for module in clip.cond_stage_model.modules() if not list(module.children())}
    if name == "SD3":  # whose T5 has to be of the published width: its rows overlap, to be small
        embeddings = clip.cond_stage_model.t5xxl.transformer.get_input_embeddings()
        rows = torch.randn(sum(embeddings.weight.shape), generator=torch.Generator().manual_seed(0))
        rows = rows.to(embeddings.weight).as_strided(embeddings.weight.shape, (1, 1))
        embeddings.weight = torch.nn.Parameter(rows, False)
        del drawn[embeddings]
    draw_weights(torch.nn.ModuleList(drawn), 0)
    return clip


def _reads(tokenizer) -> bool:
    """Whether Llama's vocabulary is there and read: hosts before 0.33 leave that to transformers."""
    llama = getattr(tokenizer, "llama", None)
    return llama is None or "Ġcat" in map(llama.inv_vocab.get, llama.tokenizer("the cat")["input_ids"])


def hidreams_tokenizer(monkeypatch):
    """HiDream's; where the host lacks Llama's vocabulary with Qwen's in its place."""
    try:
        tokenizer = found("hidream.HiDreamTokenizer")()
    except OSError:
        tokenizer = None
    if tokenizer and _reads(tokenizer):
        return tokenizer
    qwen = found("qwen_image.Qwen25_7BVLITokenizer")().tokenizer
    methods = {
        "get_vocab": lambda self: qwen.get_vocab(),
        "__call__": lambda self, text: {"input_ids": [128000, *qwen(text)["input_ids"]]},
    }
    llama = SimpleNamespace(from_pretrained=lambda path: type("StandIn", (), methods)())
    monkeypatch.setattr("comfy.text_encoders.hunyuan_video.LlamaTokenizerFast", llama)
    return found("hidream.HiDreamTokenizer")()
