"""Operations of published shapes, counted by hand: six for each weight and token, and attention's products."""

import dataclasses

import numpy as np
import pytest

from configs import sizes
from research import config
from research.kernels import Pattern
from research.kernels.choice import REFERENCE
from research.models import build, flops
from research.objectives import accounting
from research.settings import Settings
from research.settings.families import FAMILIES
from tests import small

CAUSAL, BOTH = Pattern(causal=True), Pattern(causal=False)


def shaped(family: str, vocabulary: int, **model: object) -> Settings:
    values = {f"model.{name}": value for name, value in (FAMILIES[family] | model).items()}
    encoder = model.get("architecture", FAMILIES[family].get("architecture")) == "encoder_decoder"
    objective = "seq2seq" if encoder else "causal"
    return small.settings(values | {"tokenizer.vocab_size": vocabulary, "objective.name": objective})


def counted(of: Settings, work: flops.Work) -> flops.Count:
    return flops.count(build(of, REFERENCE), work)


def test_gpt2_of_124_million() -> None:
    of = shaped("gpt2", 50257, num_layers=12, embed_dim=768, num_heads=12, mlp_dim=3072, max_positions=1024)
    found = counted(of, flops.Work(1024, CAUSAL))
    assert found.parameters == 124_439_808  # as Radford et al. 2019's weights have
    # A layer: 768 x 768 four times, 768 x 3072 twice: 7,077,888; twelve of them 84,934,656; the head 38,597,376.
    weights = 84_934_656 + 38_597_376
    assert found.model_flops == 1024 * (6 * weights + 12 * 12 * 768 * 1024)
    # Of 1024^2 pairs a causal mask shows 1024 * 1025 / 2 = 524,800.
    assert found.required_flops == 1024 * 6 * weights + 12 * 12 * 768 * 524_800


def test_llama_2_of_seven_billion() -> None:
    of = shaped("llama", 32000, num_layers=32, embed_dim=4096, num_heads=32, mlp_dim=11008)
    found = counted(of, flops.Work(4096, CAUSAL)).per(4096)
    assert found.parameters == 6_738_415_616  # as Touvron et al. 2023's weights have
    # A layer: 4 x 4096^2 + 3 x 4096 x 11008 = 202,375,168; 32 of them and the head 131,072,000: 6,607,077,376.
    assert found.model_flops == 6 * 6_607_077_376 + 12 * 32 * 4096 * 4096


def test_mistral_sees_a_window() -> None:
    of = shaped(
        "mistral", 32000, num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=2, mlp_dim=96, attention_window=3
    )
    found = counted(of, flops.Work(12, CAUSAL))
    # A layer: queries and output 2 x 64 x 64, keys and values 2 x 64 x 32, MLP 3 x 64 x 96; the head 64 x 32000.
    weights = 2 * (8192 + 4096 + 18432) + 2_048_000
    assert found.model_flops == 12 * 6 * weights + 12 * 2 * 64 * 144
    # Rows of the mask: 1, 2, 3, then nine of 4 (three before, and itself).
    assert found.required_flops == 12 * 6 * weights + 12 * 2 * 64 * (1 + 2 + 3 + 9 * 4)


def test_modernbert_sees_everything_in_every_third_layer() -> None:
    of = shaped("modernbert", 320, num_layers=3, embed_dim=32, num_heads=2, mlp_dim=48, attention_window=2)
    found = counted(of, flops.Work(10, BOTH))
    # A layer: 4 x 32 x 32 and 3 x 32 x 48; the head's transform 32 x 32 and its table 32 x 320.
    weights = 3 * (4096 + 4608) + 1024 + 10240
    # A global layer: 100 pairs. A local one: 3 + 4 + 6 x 5 + 4 + 3 = 44.
    assert found.model_flops == 10 * 6 * weights + 12 * 32 * 300
    assert found.required_flops == 10 * 6 * weights + 12 * 32 * (100 + 2 * 44)


def test_bert_needs_its_head_at_the_masked_positions() -> None:
    of = shaped("bert", 30522, num_layers=12, embed_dim=768, num_heads=12, mlp_dim=3072, max_positions=512)
    found = counted(of, flops.Work(512, BOTH, targets=77.0))
    layers, head = 84_934_656, 768 * 768 + 768 * 30522
    attention = 12 * 12 * 768 * 512 * 512
    assert found.model_flops == 512 * 6 * (layers + head) + attention
    assert found.required_flops == 512 * 6 * layers + 77 * 6 * head + attention


def test_t5_reads_with_one_half_and_predicts_with_the_other() -> None:
    of = shaped("t5_v1_1", 32128, num_layers=12, embed_dim=768, num_heads=12, mlp_dim=2048)
    found = counted(of, flops.Work(114, CAUSAL, encoder_positions=512))
    # T5 v1.1 base. Four projections of 768^2: 2,359,296. GeGLU: 3 x 768 x 2048 = 4,718,592.
    encoder = 12 * (2_359_296 + 4_718_592)
    decoder = 12 * (2_359_296 + 4_718_592 + 2 * 589_824) + 768 * 32128  # own layers, cross queries and outputs, head
    crossed = 12 * 2 * 589_824  # keys and values of the encoder's positions
    pairs = 512 * 512 + 114 * 114 + 114 * 512
    assert found.model_flops == 6 * (512 * (encoder + crossed) + 114 * decoder) + 12 * 12 * 768 * pairs


@pytest.mark.parametrize(("capacity", "placed"), [(None, 1.0), (1.25, 1.0), (0.5, 0.5)])
def test_mixtral_sends_a_token_to_two_of_eight(capacity: float | None, placed: float) -> None:
    of = shaped("mixtral", 320, num_layers=2, embed_dim=32, num_heads=2, mlp_dim=48, expert_capacity=capacity)
    found = counted(of, flops.Work(16, BOTH))
    dense, experts = 2 * (4 * 32 * 32 + 32 * 8) + 32 * 320, 2 * (2 * 3 * 32 * 48)
    attention = 12 * 2 * 32 * 16 * 16
    assert found.model_flops == 16 * 6 * (dense + experts) + attention
    assert found.required_flops == 16 * 6 * (dense + placed * experts) + attention


@pytest.mark.parametrize("size", ["tiny", "125m", "7b"])
def test_a_recipe_counts_a_raw_token(size: str) -> None:
    made = config.default_config()
    sizes.set_size(made, size)
    of = config.to_settings(made)
    found = accounting.account(of)
    raw = of.train.batch_size * of.data.sequence_length
    assert found.tokens_seen == raw
    model = dataclasses.replace(build(of, REFERENCE))
    matrices = sum(
        int(np.prod(parameter.shape)) for parameter in model.parameters().values() if parameter.kind == "kernel"
    )
    head = of.model.embed_dim * of.vocab_size
    width = of.model.num_heads * of.model.head_width
    attention = 12 * of.model.num_layers * width * of.data.sequence_length
    assert found.model_flops == pytest.approx(raw * (6 * (matrices + head) + attention), rel=1e-12)
