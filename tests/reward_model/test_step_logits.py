"""Step logits equal the columns of the full logits, and their memory does not grow with the vocabulary."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForTokenClassification
from zoo import tiny_llama

from erprm_trl.functional import soft_step_cross_entropy
from erprm_trl.reward_model.prm_format import FormatTokenIds
from erprm_trl.reward_model.step_logits import step_logits


IDS = FormatTokenIds(separator=3, good=5, bad=7)


def batch(vocab_size=40):
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(8, vocab_size, (3, 11), generator=generator)
    attention_mask = torch.ones(3, 11, dtype=torch.long)
    attention_mask[1, 7:] = attention_mask[2, 4:] = 0
    step_positions = torch.tensor([[2, 6, 10], [3, 6, 0], [3, 0, 0]])
    step_mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    return input_ids, attention_mask, step_positions, step_mask


ROWS, COLUMNS = [0, 0, 0, 1, 1, 2], [2, 6, 10, 3, 6, 3]


def test_language_model_head_equals_the_columns_of_the_full_logits():
    model = tiny_llama(40)
    input_ids, attention_mask, positions, mask = batch()
    logits = step_logits(model, "lm", IDS, input_ids, attention_mask, positions, mask)
    whole = model(input_ids=input_ids, attention_mask=attention_mask).logits
    assert torch.allclose(logits, whole[ROWS, COLUMNS][:, [5, 7]], atol=1e-6)
    assert "forward" not in vars(model.lm_head)  # the head's forward is restored


def test_token_head_equals_the_full_logits():
    model = tiny_llama(40, head="token").eval()  # the classifier has dropout
    input_ids, attention_mask, positions, mask = batch()
    logits = step_logits(model, "token", FormatTokenIds(3, None, None), input_ids, attention_mask, positions, mask)
    whole = model(input_ids=input_ids, attention_mask=attention_mask).logits
    assert logits.shape == (6, 1)
    assert torch.allclose(logits, whole[ROWS, COLUMNS])


def test_token_head_with_two_classes_gives_the_good_one_first():
    config = tiny_llama(40).config
    config.num_labels = 2
    model = AutoModelForTokenClassification.from_config(config).eval()
    input_ids, attention_mask, positions, mask = batch()
    logits = step_logits(model, "token", FormatTokenIds(3, None, None), input_ids, attention_mask, positions, mask)
    whole = model(input_ids=input_ids, attention_mask=attention_mask).logits[ROWS, COLUMNS]
    assert torch.equal(logits, torch.stack([whole[:, 1], whole[:, 0]], -1)) and not torch.equal(logits, whole)


def test_gradients_equal_the_gradients_of_the_full_logits():
    labels = torch.tensor([0.1, 0.9, 0.5, 1.0, 0.0, 0.3])
    gradients = []
    for narrow in (True, False):
        model = tiny_llama(40)
        input_ids, attention_mask, positions, mask = batch()
        if narrow:
            logits = step_logits(model, "lm", IDS, input_ids, attention_mask, positions, mask)
        else:
            logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[ROWS, COLUMNS][:, [5, 7]]
        soft_step_cross_entropy(logits, labels).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


def test_an_adapter_on_the_head_is_applied():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_llama(40), LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    input_ids, attention_mask, positions, mask = batch()
    logits = step_logits(model, "lm", IDS, input_ids, attention_mask, positions, mask)
    whole = model(input_ids=input_ids, attention_mask=attention_mask).logits
    assert torch.allclose(logits, whole[ROWS, COLUMNS][:, [5, 7]], atol=1e-6)


def test_bfloat16_models_give_float32_logits():
    model = tiny_llama(40).to(torch.bfloat16)
    logits = step_logits(model, "lm", IDS, *batch())
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())  # no value was rounded to bfloat16


class LargestTensor(TorchDispatchMode):
    """Records the largest tensor that an operation creates, except tensors with the shape of a parameter."""

    def __init__(self, parameter_shapes):
        super().__init__()
        self.parameter_shapes, self.largest = parameter_shapes, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tuple(tensor.shape) not in self.parameter_shapes:
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("head", ["lm", "token"])
def test_no_tensor_of_a_training_step_grows_with_the_vocabulary(head):
    """The largest tensor besides parameters and gradients is the same with 512 and with 131,072 vocabulary entries."""
    largest = []
    for vocab_size in (512, 131_072):
        model = tiny_llama(vocab_size, head)
        shapes = {tuple(parameter.shape) for parameter in model.parameters()} | {(16, vocab_size)}
        with LargestTensor(shapes) as seen:
            logits = step_logits(model, head, IDS, *batch())
            soft_step_cross_entropy(logits, torch.full((6,), 0.3)).backward()
        largest.append(seen.largest)
    assert largest[0] == largest[1] < 131_072
