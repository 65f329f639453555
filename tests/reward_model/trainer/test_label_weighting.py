"""Weighting by certainty: weights and losses worked by hand, with and without packing, and with both heads."""

import math

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F

from erprm_trl import ERPRMConfig, ERPRMTrainer, dial
from erprm_trl.reward_model.collator import DataCollatorForStepLabels
from erprm_trl.reward_model.trainer.preprocessing import encode_examples


ROWS = {
    "prompt": ["Tom dial 1 . right 2 . left 1 . ?", "Ann dial 5 . times 2 . ?"],
    "completions": [["1 + 2 = 3", "3 - 1 = 2", "answer 2"], ["5 * 2 = 10", "answer 10"]],
    "labels": [[0.9, 0.4, 1.0], [0.7, 0.0]],
    "label_std": [[math.sqrt(0.05), math.sqrt(0.15), 0.0], [math.sqrt(0.05), 0.0]],
}
# c / (c + std^2) with c = 0.05: 1/2, 1/4, 1 and 1/2, 1: their mean is 0.65.
WEIGHTS = [[0.5 / 0.65, 0.25 / 0.65, 1 / 0.65], [0.5 / 0.65, 1 / 0.65]]


def trainer_on(tmp_path, dial_format, **options):
    settings = {"separator": dial.SEPARATOR, "good_token": dial.GOOD_MARK, "bad_token": dial.BAD_MARK}
    args = ERPRMConfig(
        str(tmp_path),
        **settings,
        prompt_template=dial_format.prompt_template,
        per_device_train_batch_size=2,
        gradient_checkpointing=False,
        max_steps=1,
        use_cpu=True,
        bf16=False,
        report_to="none",
        save_strategy="no",
        seed=0,
        **options,
    )
    data = Dataset.from_dict(ROWS)
    return ERPRMTrainer(dial.BASE_PATH, args, train_dataset=data, eval_dataset=data.remove_columns("label_std"))


def test_weights_equal_values_worked_by_hand(dial_policy, dial_format):
    data = Dataset.from_dict(ROWS)
    encoded, _ = encode_examples(data, dial_policy[1], dial_format, label_weighting="precision")
    for got, expected in zip(encoded["step_weights"][:], WEIGHTS, strict=True):
        assert got == pytest.approx(expected, rel=1e-6)
    last, _ = encode_examples(data, dial_policy[1], dial_format, label_weighting="precision", last_step_only=True)
    assert last["step_weights"][:] == [[1.0], [1.0]]  # both labels are exact
    length = len(encoded[0]["input_ids"]) - 1  # drops the first solution's last step
    short, counts = encode_examples(data, dial_policy[1], dial_format, label_weighting="precision", max_length=length)
    assert counts["dropped_steps"] == 1
    assert short[0]["step_weights"] == pytest.approx([0.5 / 0.5625, 0.25 / 0.5625], rel=1e-6)


def test_datasets_without_deviations_cannot_be_weighted(dial_policy, dial_format):
    tokenizer = dial_policy[1]
    data = Dataset.from_dict(ROWS)
    with pytest.raises(ValueError, match="expected 'label_std'.*='posterior'"):
        encode_examples(data.remove_columns("label_std"), tokenizer, dial_format, label_weighting="precision")
    with pytest.raises(ValueError, match="label_weighting: got 'all'"):
        encode_examples(data, tokenizer, dial_format, label_weighting="all")
    for bad in ([0.1, 0.1], [0.1, math.nan, 0.1], [0.1, -1.0, 0.1], [math.inf] * 3, None):
        rows = Dataset.from_dict({**ROWS, "label_std": [bad, ROWS["label_std"][1]]})
        with pytest.raises(ValueError, match="Row 0 .*label_std that is missing"):
            encode_examples(rows, tokenizer, dial_format, label_weighting="precision")


def test_the_batch_holds_weights_in_float32(dial_policy, dial_format):
    tokenizer = dial_policy[1]
    encoded, _ = encode_examples(Dataset.from_dict(ROWS), tokenizer, dial_format, label_weighting="precision")
    batch = DataCollatorForStepLabels(tokenizer.pad_token_id)(list(encoded))
    assert batch["step_weights"].dtype == torch.float32
    torch.testing.assert_close(batch["step_weights"], torch.tensor([WEIGHTS[0], [*WEIGHTS[1], 0.0]]))
    plain, _ = encode_examples(Dataset.from_dict(ROWS), tokenizer, dial_format)
    assert "step_weights" not in plain.column_names
    assert "step_weights" not in DataCollatorForStepLabels(tokenizer.pad_token_id)(list(plain))


@pytest.mark.parametrize("head", ["lm", "token"])
@pytest.mark.parametrize("packing", [False, True])
def test_the_weighted_loss_equals_a_value_worked_by_hand(tmp_path, dial_format, head, packing):
    trainer = trainer_on(tmp_path, dial_format, head=head, packing=packing, label_weighting="precision")
    batch = trainer.data_collator(list(trainer.train_dataset))
    mask = batch["step_mask"]
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    logits = outputs["logits"][mask].double().detach()
    odds = logits[:, 1] - logits[:, 0]
    terms = []
    # label and weight of each step in the batch and in the rows
    by_label = {label: weight for labels, weights in zip(ROWS["labels"], WEIGHTS, strict=True)
                for label, weight in zip(labels, weights, strict=True)}  # fmt: skip
    for z, label in zip(odds.tolist(), batch["step_labels"][mask].tolist(), strict=True):
        p = 1 / (1 + math.exp(-z))
        weight = next(weight for known, weight in by_label.items() if abs(known - label) < 1e-6)
        terms.append(-weight * (label * math.log(p) + (1 - label) * math.log(1 - p)))
    assert loss.item() == pytest.approx(sum(terms) / 5, rel=1e-5)
    in_update = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(5))
    assert in_update.item() == pytest.approx(sum(terms) / 5, rel=1e-5)
    # the evaluation loss is not weighted
    plain = F.binary_cross_entropy_with_logits(odds.float(), batch["step_labels"][mask])
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain.item(), rel=1e-4)


def test_the_default_ignores_label_std(tmp_path, dial_format):
    """Without weighting, the loss is the plain mean, although the dataset has the column `label_std`."""
    plain = trainer_on(tmp_path, dial_format)
    batch = plain.data_collator(list(plain.train_dataset))
    loss, outputs = plain.compute_loss(plain.model, batch, return_outputs=True)
    mask = batch["step_mask"]
    logits = outputs["logits"][mask].float()
    odds = logits[:, 1] - logits[:, 0]
    expected = F.binary_cross_entropy_with_logits(odds, batch["step_labels"][mask], reduction="none").mean()
    assert torch.equal(loss, expected)
    weighted = trainer_on(tmp_path, dial_format, label_weighting="precision")
    assert weighted.train().training_loss != plain.train().training_loss
