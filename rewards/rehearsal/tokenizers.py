"""Tokenizers that are made on the spot, each of the kind that its reward loads; unknown words become one token."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BERT_VOCABULARY: Final = 30_522
"""Pieces of bert-base-uncased; the models that read with it have as many rows."""
BERT_SPECIAL: Final = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "?": 1029}
"""Their places in BERT's vocabulary; GroundingDINO has those of the last four written into its code."""
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
_UNKNOWN: Final = "<unk>"


def words_of(texts: Iterable[str]) -> list[str]:
    """Every different word and sign of `texts`, in lower case, sorted."""
    return sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})


def bert_vocabulary(words: Iterable[str]) -> dict[str, int]:
    """Piece -> id: `words`, with BERT's number of pieces and its special ones in their places."""
    vocabulary = dict(BERT_SPECIAL)
    free = (place for place in range(BERT_VOCABULARY) if place not in BERT_SPECIAL.values())
    for word in words:
        if word not in vocabulary:
            vocabulary[word] = next(free)
    return vocabulary | {f"[unused{place}]": place for place in free}


def save_bert_tokenizer(folder: Path, vocabulary: Mapping[str, int]) -> None:
    """BERT's. vocabulary: piece -> id, with [PAD], [UNK], [CLS] and [SEP] among them."""
    tokenizer = Tokenizer(models.WordPiece(dict(vocabulary), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)


def save_clip_tokenizer(folder: Path, words: Sequence[str]) -> int:
    """CLIP's, whose end of text is the last id; returns the size of its vocabulary."""
    entries = (CLIP_START, _UNKNOWN, *words, CLIP_END)
    ids = {entry: place for place, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLIP_START} $A {CLIP_END}", special_tokens=[(CLIP_START, 0), (CLIP_END, ids[CLIP_END])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=CLIP_START, eos_token=CLIP_END, pad_token=CLIP_END, unk_token=_UNKNOWN
    ).save_pretrained(folder)
    return len(entries)


def save_chat_tokenizer(folder: Path, words: Sequence[str], special: Sequence[str]) -> dict[str, int]:
    """Of a vision-language model; returns its vocabulary. Words keep their case."""
    entries = (_UNKNOWN, "<pad>", *special, *words)
    ids = {entry: place for place, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token=_UNKNOWN, additional_special_tokens=list(special)
    ).save_pretrained(folder)
    return ids
