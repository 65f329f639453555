"""Tests the estimates against real models and optimizers, and against the tensors that autograd saves."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from erprm_trl.functional import Architecture, count_lora_parameters, count_parameters, memory_per_gpu, state_bytes
from erprm_trl.memory.activations import logit_bytes, saved_activation_bytes
from erprm_trl.memory.training import buffer_bytes


SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
MODELS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama, tied": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
    "llama, biases": (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "llama, wide heads": (LlamaConfig, LlamaForCausalLM, {"head_dim": 24}),
    "mistral": (MistralConfig, MistralForCausalLM, {"tie_word_embeddings": False}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": False}),
    "qwen2, tied": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
}


def build(name="llama", **sizes):
    config_class, model_class, options = MODELS[name]
    torch.manual_seed(0)
    model = model_class(config_class(**{**SIZES, **options, **sizes}))
    return model, Architecture.from_config(model.config)


def storage_bytes(tensors):
    """Bytes of the distinct storages. Views of the same storage count once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("name", MODELS)
def test_the_parameter_count_equals_the_model(name):
    model, architecture = build(name)
    assert count_parameters(architecture) == sum(parameter.numel() for parameter in model.parameters())


def test_published_parameter_counts():
    """The expected values are the totals of the safetensors on the pages of the models."""
    llama = Architecture(128256, 4096, 32, 32, 8, 128, 14336)
    mistral = llama._replace(vocab_size=32000)
    qwen = Architecture(151936, 1536, 28, 12, 2, 128, 8960, tied_embeddings=True, qkv_bias=True)
    counts = [count_parameters(architecture) for architecture in (llama, mistral, qwen)]
    assert counts == [8_030_261_248, 7_241_732_096, 1_543_714_304]


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["k_proj", "o_proj", "down_proj"]])
@pytest.mark.parametrize("name", ["llama", "qwen2", "llama, wide heads"])
def test_the_adapter_parameter_count_equals_peft(name, targets):
    model, architecture = build(name)
    model = get_peft_model(model, LoraConfig(r=6, target_modules=targets, task_type="CAUSAL_LM"))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    options = {} if targets == "all-linear" else {"targets": targets}
    assert count_lora_parameters(architecture, 6, **options) == trained


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_state_bytes_equal_a_real_optimizer_step(precision, lora):
    model, architecture = build()
    model = model.to(getattr(torch, precision))
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    ids = torch.randint(0, 97, (2, 8))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    parameters = list(model.parameters())
    moments = [value for state in optimizer.state.values() for value in state.values() if value.dim() > 0]
    trained = count_lora_parameters(architecture, 4) if lora else count_parameters(architecture)
    assert state_bytes(trained, count_parameters(architecture) if lora else 0, precision=precision) == {
        "parameters": storage_bytes(parameters),
        "gradients": storage_bytes([parameter.grad for parameter in parameters if parameter.grad is not None]),
        "optimizer": storage_bytes(moments),
    }


def test_state_bytes_equal_the_zero_paper():
    """Figure 1 of the ZeRO paper: 120, 31.4, 16.6 and 1.9 GB for 7.5 billion parameters in 16 bits with Adam, on 64
    GPUs."""
    parameters = 7_500_000_000
    paper = {1: 31.4, 2: 16.6, 3: 1.9}
    for stage, gigabytes in paper.items():
        shares = state_bytes(parameters, precision="bfloat16", zero_stage=stage, num_gpus=64)
        assert sum(shares.values()) / 1e9 == pytest.approx(gigabytes, abs=0.05)
    whole = state_bytes(parameters, precision="bfloat16", zero_stage=1, num_gpus=1)
    assert sum(whole.values()) / 1e9 == 120


def saved_by_autograd(model, precision, batch_size, length, padded, checkpointing):
    """Bytes of the storages that autograd saves in a forward pass, without the storages of the parameters."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    model.train()
    if checkpointing:
        base.activation_checkpointing_enable({"use_reentrant": False})
    parameter_storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = []

    def save(tensor):
        if tensor.untyped_storage().data_ptr() not in parameter_storages:
            saved.append(tensor)
        return tensor

    ids = torch.randint(0, 97, (batch_size, length))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, -3:] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision != "float32"),
    ):
        output = base.model(input_ids=ids, attention_mask=mask, use_cache=False)
    total = storage_bytes(saved)
    del output
    return total


SHAPES = [
    {},
    {"num_hidden_layers": 5, "hidden_size": 128, "intermediate_size": 320, "num_attention_heads": 8},
    {"num_key_value_heads": 4, "head_dim": 32, "intermediate_size": 96},
]


newer_transformers = pytest.mark.skipif(
    not hasattr(PreTrainedModel, "activation_checkpointing_enable"),
    reason="the formula is that of newer versions of transformers: 5.3 with torch 2.8 keeps up to 27% more",
)


@newer_transformers
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("precision", ["float32", "mixed", "bfloat16"])
def test_activation_bytes_equal_the_bytes_that_autograd_saves(precision, padded, checkpointing):
    for shape, (batch_size, length) in zip(SHAPES, [(2, 48), (3, 32), (1, 128)], strict=True):
        model, architecture = build(**shape)
        if precision == "bfloat16":
            model = model.bfloat16()
        options = {"precision": precision, "padded": padded}
        expected = saved_activation_bytes(
            architecture, batch_size, length, gradient_checkpointing=checkpointing, **options
        )
        if precision == "mixed" and not checkpointing:  # the graph also holds autocast's copies of the weights
            buffers = buffer_bytes(architecture, 1, batch_size, length, precision=precision)
            expected += buffers["weight_copies"]
        # The formula omits the token ids and the rotary tables, a few kilobytes
        expected += 8 * batch_size * length
        if not checkpointing:
            expected += 2 * length * architecture.head_dim * (2 if precision == "bfloat16" else 4)
        saved = saved_by_autograd(model, precision, batch_size, length, padded, checkpointing)
        assert expected == pytest.approx(saved, rel=1e-3), (expected, saved)


@newer_transformers
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_activations_with_adapters(targets):
    """The recipes train bfloat16 weights with float32 adapters under autocast. The tolerance covers autocast's copies
    of the adapters."""
    model, architecture = build()
    model = model.bfloat16()
    model = get_peft_model(model, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
    lora = {} if targets == "all-linear" else {"lora_targets": targets}
    expected = saved_activation_bytes(
        architecture, 4, 64, precision="bfloat16", gradient_checkpointing=False, padded=False, lora_rank=4, **lora
    )
    saved = saved_by_autograd(model, "bfloat16", 4, 64, padded=False, checkpointing=False)
    assert expected == pytest.approx(saved, rel=0.05)


@newer_transformers
def test_checkpointing_adds_the_activations_of_one_layer():
    """In the backward pass, one layer at a time is computed again, and its activations are saved in addition."""
    saved = [
        saved_by_autograd(build(num_hidden_layers=layers)[0], "float32", 2, 48, padded=True, checkpointing=False)
        for layers in (1, 2)
    ]
    model, architecture = build()
    checkpointed = saved_by_autograd(model, "float32", 2, 48, padded=True, checkpointing=True)
    report = memory_per_gpu(architecture, 2, 48, precision="float32")
    assert report["activations"] == pytest.approx(checkpointed + saved[1] - saved[0], rel=0.02)


def test_logits():
    llama = Architecture(128256, 4096, 32, 32, 8, 128, 14336)
    steps, fused, full = (logit_bytes(llama, 8, 512, head=head) for head in ("steps", "fused", "full"))
    # 8 * 16 steps, each with hidden states and their gradient, two logits, their log-softmax and gradient, in float32
    assert steps == 8 * 16 * 4 * (4096 + 4096 + 6)
    # A tile of 4096 * 32768 and the hidden states in bfloat16, and the float32 gradients of both factors
    assert fused == 2 * (4096 * 32768 + 4096 * 4096) + 4 * (4096 + 128256) * 4096
    assert full == 4096 * (12 * 128256 + 2 * 4096)
    wider = llama._replace(vocab_size=2 * 128256)
    assert logit_bytes(wider, 8, 512, head="steps") == steps


def test_the_total_is_the_sum_of_the_parts():
    _, architecture = build()
    parameters = count_parameters(architecture)
    sizes = {"precision": "bfloat16", "zero_stage": 3, "num_gpus": 4}
    here = memory_per_gpu(architecture, 2, 64, **sizes, other_bytes=1000)
    assert here["total"] == sum(here.values()) - here["total"] - here["host"]
    assert (here["other"], here["host"]) == (1000, 0)
    away = memory_per_gpu(architecture, 2, 64, **sizes, offload_optimizer=True, offload_weights=True)
    assert away["parameters"] == away["gradients"] == away["optimizer"] == 0
    # A quarter of weights, gradients, float32 copy, two moments, and float32 gradients in the optimizer step
    assert away["host"] == parameters // 4 * (2 + 2 + 4 + 8 + 4)
    assert here["total"] - 1000 - away["total"] == away["host"]


def test_buffers():
    _, architecture = build()
    parameters = count_parameters(architecture)
    ddp = buffer_bytes(architecture, parameters, 1, 8, num_gpus=2)
    assert ddp["reduction"] == 4 * parameters  # DDP's buckets are a second copy of the gradients
    assert buffer_bytes(architecture, parameters, 1, 8)["reduction"] == 0
    one_linear = 64 * 64 * 2 + 64 * 32 * 2 + 64 * 176 * 3
    assert ddp["weight_copies"] == 3 * one_linear * 2
    assert buffer_bytes(architecture, parameters, 1, 8, precision="bfloat16", zero_stage=3)["gathered_weights"] == (
        2 * parameters
    )


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (
            lambda sizes: count_lora_parameters(sizes, 4, ["q_proj", "lm_head"]),
            "got lm_head, expected names among q_pr",
        ),
        (lambda sizes: state_bytes(1, precision="bf16"), "precision: got 'bf16'"),
        (lambda sizes: state_bytes(1, zero_stage=4), "zero_stage: got 4"),
        (lambda sizes: logit_bytes(sizes, 1, 1, head="none"), "head: got 'none'"),
        (
            lambda sizes: memory_per_gpu(sizes, 1, 1, zero_stage=1, offload_optimizer=True),
            "zero_stage: got 1, expected 2 or 3",
        ),
        (
            lambda sizes: Architecture.from_config(type("Config", (), {"model_type": "gpt2"})),
            "got a 'gpt2' model",
        ),
    ],
)
def test_errors_name_invalid_arguments(count, message):
    _, architecture = build()
    with pytest.raises(ValueError, match=message):
        count(architecture)
