"""Words, token ids, tokenizer and prompt of the embedded model."""

from __future__ import annotations

from typing import Any

from vtprune.eval.embedded.levels import LONG_WORDS
from vtprune.eval.embedded.scenes import COLORS, COLUMNS, ROWS, SHAPES, WORDS

PAD, BOS, UNK, IMAGE, EOS = "<pad>", "<s>", "<unk>", "<image>", "</s>"

_SPECIAL = (PAD, BOS, UNK, IMAGE)
_PLAIN = (
    *COLORS, *SHAPES, *SHAPES.values(), *WORDS, *"0123456789", *ROWS, *COLUMNS,
    *"what color is the shape one there a yes no how many are which number written word where".split(),
    *"look at picture user assistant and in of an this image object objects".split(),
    *".,:?!",
)  # fmt: skip

_ADDED = (*"more same not words above below".split(), *LONG_WORDS)
"""Words that came later. Further ones go to the end: the ids of a trained model never change."""

TOKENS: tuple[str, ...] = (*_SPECIAL, *dict.fromkeys(_PLAIN), EOS, *_ADDED)
"""Token of each id. CLIP text models pool at the first EOS, which the configuration names."""
ID: dict[str, int] = {token: i for i, token in enumerate(TOKENS)}

PREFIX = f"{BOS} look at the picture . user :"
"""What stands before the picture."""
SUFFIX = "assistant :"
"""What stands between the question and the answer."""

CHAT_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' -%}
<s> {{ messages[0]['content'] if messages[0]['content'] is string else messages[0]['content'][0]['text'] }}
{%- else -%}
<s> look at the picture .
{%- endif -%}
{%- for message in messages if message['role'] != 'system' -%}
{{ ' ' + message['role'] + ' :' }}
{%- if message['content'] is string -%}
{{ ' ' + message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ ' <image>' }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ ' ' + part['text'] }}{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{ ' </s>' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ ' assistant :' }}{%- endif -%}
"""


def encode(text: str) -> list[int]:
    """Ids of a text whose tokens are separated by blanks; a KeyError names a word outside the vocabulary."""
    return [ID[token] for token in text.split()]


def build_tokenizer(*, bos_and_eos: bool, max_length: int) -> Any:
    """Word-level fast tokenizer: lower case, digits one by one; pads on the left unless ``bos_and_eos`` (CLIP)."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(ID, unk_token=UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Digits(individual_digits=True)]
    )
    if bos_and_eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A {EOS}", special_tokens=[(BOS, ID[BOS]), (EOS, ID[EOS])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=[IMAGE],
        padding_side="right" if bos_and_eos else "left",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
