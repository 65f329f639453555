"""A training dataset that is packed into rows of a fixed length: its rows, its losses, and its sources."""

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import LlamaConfig, LlamaForCausalLM
from zoo import tiny_llama

from erprm_trl import ERPRMConfig, ERPRMTrainer, dial
from erprm_trl.functional import soft_step_cross_entropy
from erprm_trl.reward_model.collator import PACKED, DataCollatorForStepLabels
from erprm_trl.reward_model.trainer.packed_dataset import pack_dataset


LENGTHS = (7, 3, 5, 2, 8, 4, 6, 1)


def examples(lengths=LENGTHS):
    return [
        {
            "input_ids": [3 + (7 * row + place) % 17 for place in range(length)],
            "step_positions": sorted({length // 2, length - 1}),
            "step_labels": [row / 10] * len({length // 2, length - 1}),
            "question_id": row,
            "prompt_length": 0,
            "length": length,
        }
        for row, length in enumerate(lengths)
    ]


def settings(folder, **options):
    return ERPRMConfig(
        str(folder), packing=True, separator=dial.SEPARATOR, use_cpu=True, bf16=False, report_to="none",
        save_strategy="no", disable_tqdm=True, logging_steps=1, gradient_checkpointing=False, **options,
    )  # fmt: skip


def test_rows_hold_every_example_once_and_at_most_the_rows_length():
    data = Dataset.from_list(examples())
    packed = pack_dataset(data, 9, seed=0, name="train")
    rows = [[example["length"] for example in row[PACKED]] for row in packed]
    assert sorted(length for row in rows for length in row) == sorted(LENGTHS)
    # 36 tokens fit into 4 full rows: 8+1, 7+2, 6+3, 5+4
    assert [sum(row) for row in rows] == packed["length"][:] == [9, 9, 9, 9]
    assert sorted(map(sorted, rows)) == [[1, 8], [2, 7], [3, 6], [4, 5]]


def test_a_stream_is_packed_like_a_dataset_and_a_longer_text_has_its_own_row():
    stream = IterableDataset.from_generator(lambda: iter(examples((4, 12, 5, 3))))
    packed = list(pack_dataset(stream, 9, seed=0, name="train"))
    assert [[example["length"] for example in row[PACKED]] for row in packed] == [[12], [5, 4], [3]]
    assert [row["length"] for row in packed] == [12, 9, 3]
    with pytest.raises(ValueError, match="packing_strategy='bfd' with max_length=None.*Set max_length"):
        pack_dataset(stream, None, seed=0, name="train")


def test_strategies_that_cut_solutions_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got 'wrapped', expected 'batch' or 'bfd'"):
        settings(tmp_path, packing_strategy="wrapped")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("strategy", ["batch", "bfd"])
def test_every_update_has_the_loss_of_its_solutions_without_packing(attention, strategy, tmp_path):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        attn_implementation=attention,
    ))  # fmt: skip
    args = settings(
        tmp_path, packing_strategy=strategy, max_length=9, max_steps=4, gradient_accumulation_steps=2,
        per_device_train_batch_size=2 if strategy == "bfd" else 4, train_sampling_strategy="random",
        learning_rate=1e-2, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = ERPRMTrainer(
        model, args, train_dataset=Dataset.from_list(examples()), processing_class=dial.build_tokenizer()
    )
    alone, texts_per_row = [], []
    collate = DataCollatorForStepLabels(0)
    all_examples = examples()

    def loss_without_packing(batches):
        rows = [all_examples[row] for batch in batches for row in batch["question_ids"].tolist()]
        batch = collate(rows)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        ids = trainer.format_token_ids
        at_steps = logits[batch["rows"][:, None].expand_as(batch["step_mask"]), batch["step_positions"]]
        at_steps = at_steps[batch["step_mask"]][:, [ids.good, ids.bad]]
        return soft_step_cross_entropy(at_steps, batch["step_labels"][batch["step_mask"]]).item()

    get_batches = trainer.get_batch_samples

    def remember(*arguments):
        batches, num_steps = get_batches(*arguments)
        texts_per_row.extend(len(batch["rows"]) / len(batch["input_ids"]) for batch in batches)
        with torch.no_grad():
            alone.append(loss_without_packing(batches))
        return batches, num_steps

    trainer.get_batch_samples = remember
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert max(texts_per_row) > 1
    torch.testing.assert_close(logged, alone, atol=1e-6, rtol=0)


def test_sources_with_weights_are_packed(tmp_path):
    rows = [{"prompt": "3 + 4", "completions": ["3 + 4 = 7"] * (1 + row % 3), "labels": [0.5] * (1 + row % 3)}
            for row in range(6)]  # fmt: skip
    tokenizer = dial.build_tokenizer()
    args = settings(tmp_path, packing_strategy="bfd", max_length=64, max_steps=1, train_sampling_strategy="random")
    trainer = ERPRMTrainer(
        tiny_llama(len(tokenizer)), args, train_dataset=[Dataset.from_list(rows), Dataset.from_list(rows[:2])],
        processing_class=tokenizer, eval_dataset=Dataset.from_list(rows),
    )  # fmt: skip
    assert sum(len(row[PACKED]) for row in trainer.train_dataset) == 8
    trainer.train()
    assert trainer.predict(Dataset.from_list(rows)).predictions.shape == (6, 3, 2)
