"""The tokens of a solution that RAFT trains on."""

import pytest
import zoo

from erprm_trl.policy.raft.sampling import completion_ids
from erprm_trl.rollouts import Completion, Prompt, PromptFormat, RolloutRow
from erprm_trl.rollouts.sampling.token_cuts import end_before


def row_of(completion):
    return RolloutRow(
        chunk=0, question_index=0, solution_index=0, question="7 + 15?", answer=None, steps=[completion.text],
        finished=True, num_tokens=completion.num_tokens, unusable=None, sampler={},
        token_ids=list(completion.token_ids),
    )  # fmt: skip


@pytest.mark.parametrize("stop", ["apples", "pples", "les.", "otal", " of 22"])
def test_the_whole_text_before_a_stop_string_is_trained_on(stop):
    tokenizer = zoo.byte_level_bpe()
    prompt_format, prompt = PromptFormat(tokenizer), Prompt("7 + 15?")
    ids = tokenizer("7 + 15 = 22, a total of 22 apples.", add_special_tokens=False)["input_ids"]
    sampled = Completion(tokenizer.decode(ids), False, len(ids), tuple(ids))
    ended = end_before(sampled, [stop], tokenizer, prompt, prompt_format.encode(prompt))

    trained = completion_ids(prompt_format, prompt, row_of(ended))

    assert tokenizer.decode(trained) == ended.text == sampled.text.partition(stop)[0]
    assert trained[: len(ended.token_ids) - 1] == list(ended.token_ids[:-1])


def test_the_end_token_of_a_solution_is_trained_on():
    tokenizer = zoo.byte_level_bpe()
    ids = (*tokenizer("a total of 22", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    row = row_of(Completion("a total of 22", True, len(ids), ids))

    assert completion_ids(PromptFormat(tokenizer), Prompt("7 + 15?"), row) == list(ids)
