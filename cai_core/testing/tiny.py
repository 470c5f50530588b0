"""A tiny random language model with everything a Hugging Face folder has, built on the fly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

VOCAB_TEXTS: tuple[str, ...] = (
    "Consider the following conversation between a human and an assistant:",
    "Which of these responses is less harmful? Options: (A) I can not help with that. (B) Sure, here it is.",
    "The answer is: (A) The answer is: (B) Choose the response that is more helpful, honest and harmless.",
    "Identify specific ways in which the assistant's last response is harmful, unethical or illegal.",
    "Please rewrite the assistant response to remove any and all harmful content. What a lovely day it is.",
    "How do I bake bread? Mix flour, water, salt and yeast, let it rise, then bake it until it is brown.",
)


def tiny_model(
    path: Path,
    *,
    vocab_texts: Sequence[str] = VOCAB_TEXTS,
    hidden: int = 32,
    layers: int = 2,
    seed: int = 0,
    chat: bool = True,
    tokenizer: bool = True,
) -> Path:
    """Write a complete model folder to ``path`` (created) and return it.

    ``LlamaForCausalLM`` with random float32 weights from ``seed`` (safetensors), a byte-level BPE tokenizer trained
    on ``vocab_texts`` (any text round-trips), ``<|im_start|>``/``<|im_end|>`` as special tokens, ``<|im_end|>`` as
    end of sequence, a pad token, and 512 positions. ``chat=False`` leaves the chat template out (a base model),
    ``tokenizer=False`` the whole tokenizer.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path.mkdir(parents=True, exist_ok=True)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        list(vocab_texts),
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        model_max_length=512,
    )
    if chat:
        fast.chat_template = CHATML
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(fast),
                hidden_size=hidden,
                intermediate_size=2 * hidden,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=512,
                # Llama's 0.02 makes a model this small almost uniform whatever it reads; 0.2 lets context matter.
                initializer_range=0.2,
                bos_token_id=fast.bos_token_id,
                eos_token_id=fast.eos_token_id,
                pad_token_id=fast.pad_token_id,
                tie_word_embeddings=False,
            )
        )
    model.save_pretrained(path)
    if tokenizer:
        fast.save_pretrained(path)
    return path
