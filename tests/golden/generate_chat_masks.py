"""Golden file of chat masks: ids and assistant masks of conversations, by `apply_chat_template` of transformers.

    python tests/golden/generate_chat_masks.py [--check]

Needs transformers 5 and tokenizers; imports nothing of Alpha. The tokenizer is byte-level BPE, trained here on a few
sentences; the templates are of the shapes that ChatML, Llama 3 and Zephyr have, with {% generation %} blocks, without
which transformers knows no mask.
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

PATH = Path(__file__).resolve().parent / "chat_masks.json"
SENTENCES = ["The assistant and the user say hello. What is 2 plus 3? It is 5.\n\nA system says: be kind!"] * 9
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}"
        "<|start_header_id|>{{ message['role'] }}<|end_header_id|>{{ '\n\n' }}"
        "{%- if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] | trim }}<|eot_id|>{% endgeneration %}"
        "{% else %}{{ message['content'] | trim }}<|eot_id|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
        "{% else %}{{ message['content'] + eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
}
CONVERSATIONS = [
    [("user", "What is 2 plus 3?"), ("assistant", "It is 5.")],
    [
        ("system", "Be kind!"),
        ("user", "hello"),
        ("assistant", "Hello, user."),
        ("user", "2?"),
        ("assistant", "2, of course"),
    ],
    [("user", "a\n\nb  c"), ("assistant", "  The user says\n\n\tsystem: 2 3 "), ("user", "")],
    [("assistant", "I speak first."), ("user", "né 語"), ("assistant", "né 語 🙂")],
]


def tokenizer() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=SPECIAL[0], eos_token=SPECIAL[0])


def main() -> None:
    made = tokenizer()
    cases = []
    for name, template in TEMPLATES.items():
        for turns in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in turns]
            found = made.apply_chat_template(
                messages, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
            ids, mask = found["input_ids"], found["assistant_masks"]
            assert len(ids) == len(mask)
            assert 0 < sum(mask) < len(mask)
            cases.append({"template": name, "messages": messages, "ids": ids, "mask": mask})
    golden = {"tokenizer": json.loads(made.backend_tokenizer.to_str()), "templates": TEMPLATES, "cases": cases}
    text = json.dumps(golden, ensure_ascii=True, separators=(",", ":")) + "\n"
    if "--check" in sys.argv:
        sys.exit(0 if PATH.read_text() == text else f"{PATH.name} differs")
    PATH.write_text(text)


if __name__ == "__main__":
    main()
