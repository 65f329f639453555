"""Packed batches: the layout worked by hand, and the same scores and training as with one solution per row."""

import itertools

import pytest
import torch
from datasets import Dataset
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    modeling_flash_attention_utils,
)

from erprm_trl import ERPRMConfig, ERPRMTrainer, dial
from erprm_trl.reward_model.collator import (
    PACKED,
    VARIABLE_LENGTH,
    DataCollatorForStepLabels,
    best_fit_decreasing,
    check_packing,
    num_own_rows,
    pack_rows,
    unpacked,
)
from erprm_trl.reward_model.prm_format import FormatTokenIds
from erprm_trl.reward_model.step_logits import step_logits


def example(ids, positions):
    return {"input_ids": ids, "step_positions": positions, "step_labels": [0.25] * len(positions)}


EXAMPLES = [
    example([5, 6, 7], [2]),
    example([11, 12, 13, 14, 15, 16], [2, 5]),
    example([8, 9], [1]),
    example([4], [0]),
]


def test_a_text_goes_into_the_row_with_the_least_space_that_is_enough():
    # 7 leaves 3 tokens, and 4 + 4 leave 2. The text of 2 tokens fits into both rows, and fills the second.
    assert best_fit_decreasing([2, 4, 7, 4], 10) == [[2], [1, 3, 0]]
    # A text that is too long has its own row.
    assert best_fit_decreasing([4, 12, 4, 4], 8) == [[1], [0, 2], [3]]


def test_rows_are_filled_by_best_fit_decreasing():
    # 6 opens row 0, 3 opens row 1, 2 follows the 3, and 1 fills row 1 up to 6
    assert pack_rows([3, 6, 2, 1]) == ([1, 0, 1, 1], [0, 0, 3, 5])
    assert pack_rows([4]) == ([0], [0])


def test_packed_batch_equals_the_layout_worked_by_hand():
    batch = DataCollatorForStepLabels(pad_token_id=0, pad_to_multiple_of=8, packing=True)(EXAMPLES)
    assert batch["input_ids"].tolist() == [[11, 12, 13, 14, 15, 16, 0, 0], [5, 6, 7, 8, 9, 4, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 0, 1, 0, 0, 1]]
    assert batch["step_positions"].tolist() == [[2, 0], [2, 5], [4, 0], [5, 0]]
    assert "attention_mask" not in batch
    assert [unpacked(batch, index) for index in range(4)] == [
        (solution["input_ids"], solution["step_positions"]) for solution in EXAMPLES
    ]


def test_rows_of_a_packed_dataset_become_the_rows_of_a_batch():
    rows = [{PACKED: [EXAMPLES[0], EXAMPLES[2]]}, {PACKED: [EXAMPLES[3]]}, {PACKED: [EXAMPLES[1]]}]
    batch = DataCollatorForStepLabels(0, packing=True)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 0], [4, 0, 0, 0, 0, 0], [11, 12, 13, 14, 15, 16]]
    assert batch["dataset_rows"].tolist() == batch["rows"].tolist() == [0, 0, 1, 2]
    assert batch["starts"].tolist() == [0, 3, 0, 0]
    # Of 5 rows on two processes with 3 rows each, the second process has 2, and its third row is a copy.
    assert [num_own_rows(batch, 5, process) for process in (0, 1)] == [4, 3]
    unpacked_batch = DataCollatorForStepLabels(0)(EXAMPLES)
    assert [num_own_rows(unpacked_batch, 5, process) for process in (0, 1)] == [4, 1]


def test_the_texts_of_a_row_without_padding_begin_where_the_batch_says():
    batch = DataCollatorForStepLabels(0, pad_to_multiple_of=8, packing=True, padding_free=True)(EXAMPLES)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 11, 12, 13, 14, 15, 16, 8, 9, 4, 0, 0, 0, 0]]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 3, 9, 11, 12, 16]
    assert batch["max_length_q"] == batch["max_length_k"] == 6
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 5, 0, 1, 0, 0, 1, 2, 3]]


def batch_logits(model, batch):
    return step_logits(
        model,
        "lm",
        FormatTokenIds(1, 2, 3),
        batch["input_ids"],
        batch.get("attention_mask"),
        batch["step_positions"],
        batch["step_mask"],
        rows=batch["rows"],
        position_ids=batch.get("position_ids"),
        attention_kwargs={name: batch[name] for name in VARIABLE_LENGTH if name in batch},
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_logits_equal_the_logits_of_each_solution_alone(attention):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        attn_implementation=attention,
    )).eval()  # fmt: skip
    examples = [
        example(torch.randint(3, 64, (length,)).tolist(), sorted({length // 2, length - 1}))
        for length in (17, 3, 40, 9, 22, 5, 31, 8)
    ]
    packed = DataCollatorForStepLabels(0, packing=True)(examples)
    assert len(packed["input_ids"]) == 4
    with torch.no_grad():
        together = batch_logits(model, packed)
        collate = DataCollatorForStepLabels(0)
        alone = torch.cat([batch_logits(model, collate([solution])) for solution in examples])
        whole_row = batch_logits(model, {**packed, "position_ids": torch.arange(40).expand_as(packed["input_ids"])})
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=0)
    assert (whole_row - alone).abs().max() > 1e-3  # a row that is read as one text gives other logits


def flash_of_variable_lengths(query, key, value, cu_seqlens_q, cu_seqlens_k, softmax_scale, **_):
    """FlashAttention's function for texts of variable lengths: causal attention in each text."""
    outputs = []
    for start, end in itertools.pairwise(cu_seqlens_q.tolist()):
        parts = (tensor[start:end].transpose(0, 1)[None] for tensor in (query, key, value))
        output = torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True, scale=softmax_scale)
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


def test_flash_attention_reads_texts_of_variable_lengths(monkeypatch):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    )).eval()  # fmt: skip
    collate = DataCollatorForStepLabels(0)
    with torch.no_grad():
        alone = torch.cat([batch_logits(model, collate([solution])) for solution in EXAMPLES])
    functions = ((None, flash_of_variable_lengths, None, None, None), (dict, dict))
    monkeypatch.setattr(modeling_flash_attention_utils, "lazy_import_flash_attention", lambda *_, **__: functions)
    model.config._attn_implementation = "flash_attention_2"
    batch = DataCollatorForStepLabels(0, packing=True, padding_free=True)(EXAMPLES)
    with torch.no_grad():
        together = batch_logits(model, batch)
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=0)
    check_packing(batch, lambda inputs: batch_logits(model, inputs))


def test_packing_is_refused_for_layers_that_mix_texts():
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8))
    packed = DataCollatorForStepLabels(0, packing=True)(EXAMPLES[1:2])

    def logits(batch):
        hidden = model(input_ids=batch["input_ids"]).logits
        return hidden[batch["rows"][:, None].expand_as(batch["step_positions"]), batch["step_positions"]].flatten(0, 1)

    with pytest.raises(ValueError, match="packing=True.*Set packing=False"):
        check_packing(packed, logits)


@pytest.mark.slow("trains twice")
@pytest.mark.parametrize("head", ["lm", "token"])
def test_training_with_packing_equals_training_with_padding(tmp_path, head):
    data = Dataset.from_list(
        [
            {"prompt": "3 + 4", "completions": ["3 + 4 = 7"] * (1 + row % 4), "labels": [0.1 * row] * (1 + row % 4)}
            for row in range(8)
        ]
    )
    weights = {}
    for packing in (False, True):
        args = ERPRMConfig(
            str(tmp_path / f"{packing}"), packing=packing, head=head, separator=dial.SEPARATOR, max_steps=4,
            per_device_train_batch_size=8,
            learning_rate=1e-2, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
            save_strategy="no", disable_tqdm=True, seed=3,
        )  # fmt: skip
        trainer = ERPRMTrainer(str(dial.BASE_PATH), args, train_dataset=data)
        if packing:
            assert len(trainer.data_collator([trainer.train_dataset[row] for row in range(8)])["input_ids"]) < 8
        trainer.train()
        weights[packing] = torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
    torch.testing.assert_close(weights[True], weights[False], atol=2e-4, rtol=0)
