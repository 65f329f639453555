"""A policy with a tool and without a model, for tests of conversations."""

import random
import re

from erprm_trl.dial.environment import build_agent_tokenizer
from erprm_trl.dial.task import DialQuestion
from erprm_trl.rollouts import Completion, PromptFormat


class DialAgent:
    """
    Solves dial questions with the tool of `DialEnvironment`. `call(move, position, rng)` returns the next call, by
    default the right one. `calls` holds the prompts of all calls of `sample`.
    """

    def __init__(self, call=None, max_new_tokens=60):
        self.tokenizer = build_agent_tokenizer()
        self.prompt_format = PromptFormat(self.tokenizer)
        self.settings = {"backend": "scripted", "max_new_tokens": max_new_tokens}
        self.call = call or (lambda move, position, rng: (position, *move))
        self.calls = []

    def sample(self, prompts, num_samples, seed):
        self.calls.append(prompts)
        return [
            [self._completion(prompt, random.Random(f"{seed}/{index}/{sample}")) for sample in range(num_samples)]
            for index, prompt in enumerate(prompts)
        ]

    def turn(self, text, rng=None):
        """The next turn after the text of a prompt and a conversation."""
        asked = DialQuestion.parse(re.search(r"<user> (.*?\?)", text)[1])
        results = re.findall(r"<tool> (\d+|error)", text)
        position = results[-1] if results else asked.start
        if len(results) == len(asked.moves):
            return f"answer {position} </s>"
        move = asked.moves[len(results)]
        return " ".join(map(str, self.call(move, 0 if position == "error" else int(position), rng))) + " </s>"

    def _completion(self, prompt, rng):
        text = self.tokenizer.decode(self.prompt_format.encode(prompt))
        turn = self.turn(text, rng)
        ids = tuple(self.tokenizer(turn)["input_ids"])[: self.settings["max_new_tokens"]]
        return Completion(turn.removesuffix(" </s>"), ids[-1] == self.tokenizer.eos_token_id, len(ids), ids)


def careless(move, position, rng):
    """A call whose amount is wrong in one of three cases."""
    operator, amount = move
    return position, operator, amount % 19 + 1 if rng.random() < 1 / 3 else amount
