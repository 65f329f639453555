"""Packed batches: the layout worked by hand, and the same scores and training as with one solution per row."""

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

from erprm_trl import ERPRMConfig, ERPRMTrainer, dial
from erprm_trl.reward_model.collator import DataCollatorForStepLabels, check_packing, pack_rows, unpacked
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


def test_rows_are_filled_by_first_fit_decreasing():
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
