"""Tests FLOPs by hand and against torch's own counter, and rates with a fake clock."""

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from erprm_trl.training.tracking.throughput import PEAKS, ModelSize, Peak, Throughput, device_peak


SMALL = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4}


def llama(**options):
    config = LlamaConfig(vocab_size=96, num_key_value_heads=2, attn_implementation="eager", **{**SMALL, **options})
    return LlamaForCausalLM(config)


def counted(model, ids, logit_tokens):
    """FLOPs that torch counts for a forward and a backward pass, with logits for the last `logit_tokens` tokens."""
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, logits_to_keep=logit_tokens, use_cache=False).logits.sum().backward()
    return counter.get_total_flops()


def test_sizes_and_flops_worked_by_hand():
    # Hidden size 2, one layer, one head: q, k, v, o 4 each, MLP 3 x 2 x 3, three norms of 2: 40. The head has 5 x 2.
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=5, hidden_size=2, intermediate_size=3, num_hidden_layers=1, num_attention_heads=1)
    )
    size = ModelSize.of(model)
    assert size == (40, 10, 40, 10, 2)
    # Two sequences of 3 and 1 tokens, logits for two tokens: 6 x 40 x 4 + 12 x 2 x (9 + 1) + 6 x 10 x 2
    assert size.training_flops(4, 10, 2) == 960 + 240 + 120


@pytest.mark.parametrize("length", [8, 128])
@pytest.mark.parametrize("tied", [False, True])
def test_flops_equal_torchs_counter(length, tied):
    model = llama(tie_word_embeddings=tied)
    expected = counted(model, torch.randint(96, (3, length)), 5)
    flops = ModelSize.of(model).training_flops(3 * length, 3 * length**2, 3 * 5)
    assert flops == pytest.approx(expected, rel=0.03)


def test_frozen_parameters_need_four_flops_per_token_instead_of_six():
    model = get_peft_model(llama(), LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"]))
    model.enable_input_require_grads()  # as with gradient checkpointing, every layer has a backward pass
    size = ModelSize.of(model)
    expected = counted(model, torch.randint(96, (2, 32)), 32)
    flops = size.training_flops(64, 2 * 32**2, 64)
    assert flops == pytest.approx(expected, rel=0.03)
    assert size.trainable_head == 0 and size.trainable_matrices == sum(
        parameter.numel() for parameter in model.parameters() if parameter.requires_grad
    )


def test_partitioned_parameters_count_in_full():
    model = llama()
    expected = ModelSize.of(model)
    for parameter in model.parameters():  # as with ZeRO-3
        parameter.ds_shape = parameter.shape
        parameter.data = torch.empty(0)
    assert ModelSize.of(model) == expected


def test_a_mixture_of_experts_has_no_size():
    config = MixtralConfig(vocab_size=9, num_local_experts=2, num_experts_per_tok=1, num_key_value_heads=2, **SMALL)
    assert ModelSize.of(MixtralForCausalLM(config)) is None


class Clock:
    """A clock that the test sets."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_rates_leave_out_evaluation_and_saving():
    clock, model = Clock(), llama()
    throughput = Throughput(model, Accelerator(cpu=True), torch.float32, clock, Peak(1e6, measured=False))
    throughput.on_train_begin(None, None, None)
    assert throughput.metrics() == {}
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    for _ in range(2):
        throughput.count(mask.sum(-1), mask[:, :1])
        clock.now += 2.0
        throughput.on_step_end(None, None, None)
        clock.now += 50.0
        throughput.on_evaluate(None, None, None)
        clock.now += 30.0
        throughput.on_save(None, None, None)
    metrics = throughput.metrics()
    flops = ModelSize.of(model).training_flops(14, 2 * (9 + 16), 4)
    assert metrics == {
        "perf/tokens_per_second": 14 / 4.0,
        "perf/mfu": pytest.approx(flops / 4.0 / 1e6),
        "perf/peak_tflops": 1e-6,
    }
    # The time between two steps, such as loading data, counts. Nothing counts twice.
    throughput.count(mask.sum(-1))
    clock.now += 0.5
    throughput.on_step_end(None, None, None)
    assert throughput.metrics()["perf/tokens_per_second"] == 14.0
    assert throughput.metrics() == {}


def test_the_peak_of_known_devices_and_a_measured_peak(monkeypatch):
    names = {
        "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA H100 PCIe": 756,
        "NVIDIA H200": 989,
        "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA L40S": 362,
        "NVIDIA L4": 121,
        "NVIDIA A10G": 70,
        "NVIDIA GB200": 2500,
    }
    for name, teraflops in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert device_peak(torch.device("cuda"), torch.bfloat16) == (teraflops * 1e12, False)
    # A name that contains another name must come before it.
    parts = [part for part, _ in PEAKS]
    assert not [(a, b) for index, a in enumerate(parts) for b in parts[index + 1 :] if a in b]
    peak = device_peak(torch.device("cpu"), torch.float32)
    assert peak.measured and 1e8 < peak.flops < 1e15
