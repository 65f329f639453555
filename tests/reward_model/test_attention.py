"""Attention masks that are left out, and packed rows that are known before a model runs."""

import threading

import pytest
import torch
from synchronisation_counts import Synchronisations
from transformers import BertConfig, BertForTokenClassification, LlamaConfig, LlamaForCausalLM, masking_utils
from zoo import tiny_llama

from erprm_trl.reward_model.attention import is_causal, known_packing, known_padding, uses_flash_attention
from erprm_trl.reward_model.prm_format import FormatTokenIds
from erprm_trl.reward_model.step_logits import step_logits


POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])


def bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_labels=2
    )
    return BertForTokenClassification(config).eval()


def test_models_are_causal_only_if_all_their_attention_says_so():
    model = tiny_llama(20)
    assert is_causal(model) and is_causal(tiny_llama(20, "token")) and not is_causal(bert())
    model.model.layers[1].self_attn.is_causal = False
    assert not is_causal(model)
    for layer in model.model.layers:
        del layer.self_attn.is_causal
    assert not is_causal(model)


def test_causal_models_get_no_mask_and_others_keep_it():
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    positions, real = torch.tensor([[1, 3], [1, 0]]), torch.tensor([[True, True], [True, False]])
    for model in (tiny_llama(20, "token").eval(), bert()):
        masks = []
        model.register_forward_pre_hook(
            lambda module, args, kwargs, masks=masks: masks.append(kwargs["attention_mask"]), with_kwargs=True
        )
        logits = step_logits(model, "token", FormatTokenIds(1, None, None), ids, mask, positions, real)
        assert (masks[0] is None) == is_causal(model)
        alone = model(input_ids=ids[1:, :2], attention_mask=None).logits[0, 1].flip(-1)
        torch.testing.assert_close(logits[2], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("is_packed", [True, False, None])
def test_known_packing_gives_what_transformers_reads_from_the_positions(is_packed):
    packed = POSITIONS if is_packed else POSITIONS[1:]
    expected = masking_utils.find_packed_sequence_indices(packed)
    if is_packed is None:
        got = masking_utils.find_packed_sequence_indices(packed)
    else:
        with known_packing(is_packed):
            got = masking_utils.find_packed_sequence_indices(packed)
    if is_packed:
        assert got.tolist() == expected.tolist() == [[0, 0, 0, 1, 1, 2], [0] * 6]
    else:
        assert got is None and expected is None


def test_other_threads_and_later_calls_read_the_positions():
    read = []

    def look():
        read.append(masking_utils.find_packed_sequence_indices(POSITIONS) is not None)

    with known_packing(False):
        with pytest.raises(KeyError), known_packing(True):
            raise KeyError
        assert masking_utils.find_packed_sequence_indices(POSITIONS) is None
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    look()
    assert read == [True, True]


def test_a_packed_row_has_the_logits_of_its_texts():
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
        )  # fmt: skip
    ).eval()
    ids = torch.randint(0, 20, (2, 6))
    with torch.no_grad(), known_packing(True):
        together = model(input_ids=ids, position_ids=POSITIONS, use_cache=False).logits
    with torch.no_grad():
        alone = [model(input_ids=ids[:1, start:end]).logits[0] for start, end in ((0, 3), (3, 5), (5, 6))]
    torch.testing.assert_close(together[0], torch.cat(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("lengths", [(6, 4), (6, 6)])
def test_known_padding_changes_no_logits_and_is_not_read(lengths):
    model = tiny_llama(20).eval()
    ids = torch.randint(0, 20, (2, 6))
    mask = (torch.arange(6) >= 6 - torch.tensor(lengths)[:, None]).long()  # padded on the left, like prompts
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": POSITIONS[1:].expand(2, 6), "use_cache": False}
    reads = []
    with torch.no_grad():
        for context in (known_padding, torch.no_grad):
            with context(), Synchronisations() as counts:
                logits = model(**inputs).logits
            reads.append((counts.kinds["item"], logits))
    (unread, known), (read, expected) = reads
    assert unread == 0 and read > 0
    torch.testing.assert_close(known[mask.bool()], expected[mask.bool()], atol=1e-6, rtol=0)


def test_flash_attention_is_known_by_the_models_configuration():
    model = tiny_llama(20)
    assert not uses_flash_attention(model)
    for name in ("flash_attention_2", "kernels-community/flash-attn3"):
        model.config._attn_implementation = name
        assert uses_flash_attention(model)
