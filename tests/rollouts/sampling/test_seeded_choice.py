"""Seeds per prompt: the distribution of a row's tokens, and samples that do not depend on other prompts."""

import pytest
import torch

from erprm_trl import EndpointSampler, TransformersSampler, dial
from erprm_trl.rollouts import Prompt
from erprm_trl.rollouts.sampling.seeded_choice import SeededChoice


def chosen(choice, logits, length=1):
    scores = choice(torch.zeros(len(logits), length, dtype=torch.long), logits)
    assert (scores.isfinite().sum(-1) == 1).all()
    return scores.argmax(-1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((1.0, 1.0, 0), [0.1, 0.6, 0.0, 0.3]),
        ((0.5, 1.0, 0), [0.01 / 0.46, 0.36 / 0.46, 0.0, 0.09 / 0.46]),
        ((1.0, 1.0, 2), [0.0, 2 / 3, 0.0, 1 / 3]),
        ((1.0, 0.5, 0), [0.0, 1.0, 0.0, 0.0]),
    ],
)
def test_tokens_have_the_models_probabilities(options, expected):
    logits = torch.tensor([0.1, 0.6, 0.0, 0.3]).log().expand(4000, 4)
    tokens = chosen(SeededChoice(range(4000), 1, 1, *options), logits)
    assert (tokens.bincount(minlength=4) / 4000).tolist() == pytest.approx(expected, abs=0.025)


def test_a_row_draws_by_its_seed_and_position():
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    choice = SeededChoice([5, 6, 7, 8, 9, 5], 1, 8, 1.0, 1.0, 0)
    first, second = chosen(choice, logits), chosen(choice, logits, length=2)
    same = chosen(choice, logits[:1].expand(6, 50))
    assert same[0] == same[5] and len(set(same.tolist())) > 2 and first.tolist() != second.tolist()
    choice.keep([1, 4])
    assert chosen(choice, logits[[1, 4]], length=2).tolist() == second[[1, 4]].tolist()


@pytest.mark.parametrize("fork_cache", [True, False])
def test_samples_depend_on_the_prompts_own_seed(dial_policy, fork_cache):
    sampler = TransformersSampler(*dial_policy, max_new_tokens=40, batch_size=64, fork_cache=fork_cache)
    prompts = [Prompt(row["question"]) for row in dial.make_questions(4, seed=1)]
    seeds = [3, 1, 4, 3]
    whole = sampler.sample(prompts, 3, 0, prompt_seeds=seeds)
    sampler.batch_size = 5
    assert sampler.sample(prompts[::-1], 3, 1, prompt_seeds=seeds[::-1])[::-1] == whole
    for prompt, seed, samples in zip(prompts, seeds, whole, strict=True):
        assert sampler.sample([prompt], 2, 2, prompt_seeds=[seed]) == [samples[:2]]
    assert len({completion.text for samples in whole for completion in samples}) > 4
    stopped = sampler.sample(prompts, 3, 0, stop=[dial.SEPARATOR], prompt_seeds=seeds)
    pairs = [(short, long) for s, w in zip(stopped, whole, strict=True) for short, long in zip(s, w, strict=True)]
    assert all(long.text.startswith(short.text) for short, long in pairs)


def test_a_server_gets_the_prompts_own_seeds(dial_policy):
    from faulty_server import FaultyServer

    prompts = [Prompt(row["question"]) for row in dial.make_questions(3, seed=1)]

    def sent(order):
        with FaultyServer() as server:
            sampler = EndpointSampler("dial", server.url, dial_policy[1])
            sampler.sample([prompts[i] for i in order], 2, 0, prompt_seeds=[10 + i for i in order])
        return sorted((body["prompt"], body["seed"]) for body in server.bodies)

    assert sent([0, 1, 2]) == sent([2, 0, 1]) and len({seed for _, seed in sent([0, 1, 2])}) == 6
