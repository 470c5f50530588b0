"""``python -m cai_core.models.convert GGUF OUT DTYPE``: a GGUF file to a Hugging Face folder with safetensors.

A child process of ``catalog.pull``, and the one file of the core that imports torch and transformers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

END = "<|im_end|>"
UNUSED = "<|endoftext|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main(arguments: list[str]) -> int:
    """Convert, check that the tokenizer reads back what it wrote, and write ``OUT``."""
    import torch
    import transformers

    source, out, dtype = Path(arguments[0]), Path(arguments[1]), getattr(torch, arguments[2])
    transformers.logging.set_verbosity_error()
    folder, name = str(source.parent), source.name
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    # the weights are plain numbers now; transformers still calls them quantised and would not save them
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHATML
    end, pad = tokenizer.convert_tokens_to_ids(END), tokenizer.convert_tokens_to_ids(UNUSED)
    # padding with the end token would make the two indistinguishable to a model that reads the last token
    tokenizer.eos_token, tokenizer.pad_token = END, UNUSED
    model.config.eos_token_id, model.config.pad_token_id = end, pad
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=model.config.bos_token_id, eos_token_id=end, pad_token_id=pad
    )
    text = "Hello, world! (A) 12 Grüße\n"
    if tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) != text:
        raise SystemExit("the tokenizer does not read back what it wrote")
    turn = [{"role": "user", "content": "x"}]
    rendered = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    if "<|im_start|>user\nx<|im_end|>" not in rendered:
        raise SystemExit("the chat template does not render a turn")
    model.to(dtype).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
