"""`--serve-judge` with vLLM itself: a BLIP-2 of random weights is served, asked about pictures, and ended."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    PreTrainedTokenizerFast,
)

from rewards.benchmark import main
from rewards.benchmarks import make_benchmark
from tests.unit.rewards.benchmarks.judged_data import write_data
from tests.unit.rewards.benchmarks.worlds import right_picture, write_all

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}{% endfor %}"
)
OPTIONS = "--enforce-eager --dtype float32 --max-model-len 4096 --max-num-seqs 4 --kv-cache-memory-bytes 200000000"


def save_blip2(folder: Path) -> None:
    """One of vLLM's vision-language models that need no torchvision. It reads and writes bytes."""
    ids = {token: place for place, token in enumerate((*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())))}
    reads = Tokenizer(models.BPE(ids, []))
    reads.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reads.decoder = decoders.ByteLevel()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=reads, additional_special_tokens=["<image>"], **names)
    tokenizer.chat_template = TEMPLATE
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        "model_type": "opt",
        "architectures": ["OPTForCausalLM"],
        "vocab_size": len(ids),
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 8192,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }
    config = Blip2Config(
        vision_config={**small, "image_size": 28, "patch_size": 14},
        qformer_config={**small, "encoder_hidden_size": 32, "vocab_size": len(ids)},
        text_config=text,
        num_query_tokens=4,
        image_token_index=ids["<image>"],
    )
    torch.manual_seed(0)
    Blip2ForConditionalGeneration(config).save_pretrained(folder)
    images = BlipImageProcessorPil(size={"height": 28, "width": 28})
    Blip2Processor(images, tokenizer, num_query_tokens=4).save_pretrained(folder)


@pytest.mark.proof
def test_vllm_serves_a_judge_as_long_as_it_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_blip2(tmp_path / "blip2")
    data = write_data(tmp_path / "data")["wise_verified"]
    items = make_benchmark("wise_verified").read_data(data).items
    shapes = make_benchmark("shapes").read_data(None).items[0]
    write_all(items, tmp_path / "images", lambda item, number: right_picture(shapes.record))
    where = ["--images", str(tmp_path / "images"), "--data", str(data), "--output-dir", str(tmp_path / "out")]
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    judge = ["--serve-judge", str(tmp_path / "blip2"), "--judge-args", OPTIONS]
    code = main(["wise_verified", *where, *judge, "--limit", "2", "--scorer", "retries=0"])
    assert not {process.pid for process in psutil.Process().children(recursive=True)} - before
    told = (tmp_path / "out" / "judge.log").read_text()
    (path,) = (tmp_path / "out" / "wise_verified" / "answers").glob("*.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    # What random weights say cannot be read as a score, and counts as such; it is an answer all the same.
    assert code == 1, told[-3000:]
    assert [(line["answer"]["model"], len(line["answer"]["replies"])) for line in lines] == [("blip2", 3)] * 2
    assert all(line["error"].startswith("3 replies could not be read") for line in lines)
