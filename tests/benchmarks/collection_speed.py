"""Speed of sampling continuations: `TransformersSampler` compared with the usual loop over prefixes with
`generate(num_return_sequences=K)`: `python tests/benchmarks/collection_speed.py [--model dial|20m]`.

Both start and end with texts, and alternate in one process. The benchmark also prints where the time of
`TransformersSampler` goes: forward passes over prompts, forward passes over new tokens (the lower bound of decoding),
the part of these for rows that have ended, and the rest (sampling, stopping, padding, text).
"""

import argparse
import json
import os
import statistics
import time
from contextlib import contextmanager
from pathlib import Path


os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from erprm_trl import TransformersSampler, dial
from erprm_trl.rollouts import Prompt, split_steps


VOCABULARY = 8192
ENDS = 160  # a random model ends with probability 160 / 8192 per token, after 51 tokens on average


def dial_case(batch_size: int, count: int):
    """The shipped policy and the prefixes of its own solutions."""
    sampler = TransformersSampler.from_pretrained(dial.BASE_PATH, max_new_tokens=64, batch_size=batch_size)
    questions = [row["question"] for row in dial.make_questions(count, seed=0)]
    prompts = []
    for question, (solution,) in zip(
        questions, sampler.sample([Prompt(question) for question in questions], 1, seed=0), strict=True
    ):
        steps = split_steps(solution.text, dial.SEPARATOR)
        prompts += [Prompt(question, "".join(steps[:length])) for length in range(1, len(steps))]
    return sampler, prompts[:count]


def random_case(batch_size: int, count: int):
    """A random Llama of 20M parameters and random prefixes of 100 to 200 tokens, 150 on average."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=1024, **sizes)).eval()
    model.generation_config.eos_token_id = list(range(ENDS))
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", pad_token="w1")
    sampler = TransformersSampler(model, tokenizer, max_new_tokens=256, batch_size=batch_size)
    lengths = torch.randint(100, 201, (count,)).tolist()
    texts = [" ".join(f"w{i}" for i in torch.randint(ENDS, VOCABULARY, (length,)).tolist()) for length in lengths]
    return sampler, [Prompt(text) for text in texts]


@torch.inference_mode()
def loop_over_prefixes(sampler: TransformersSampler, prompts: list[Prompt], k: int) -> list[list[str]]:
    """The usual implementation: a loop over prefixes."""
    model, tokenizer, texts = sampler.model, sampler.tokenizer, []
    for prompt in prompts:
        inputs = tokenizer(prompt.question + prompt.prefix, return_tensors="pt").to(model.device)
        ids = inputs["input_ids"]
        if ids[0, -1] == tokenizer.eos_token_id:
            ids = ids[:, :-1]
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_p=1.0, top_k=0,
            num_return_sequences=k, max_new_tokens=sampler.max_new_tokens, pad_token_id=sampler.pad_token_id,
        )  # fmt: skip
        texts.append(tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True))
    return texts


@contextmanager
def timed_forwards(model, seconds: dict[str, float], rows: dict[str, int]):
    """Measures the time in the model, separately for prompts and for single new tokens."""
    forward = model.forward

    def timed(*args, **kwargs):
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        kind = "decoding" if ids.shape[1] == 1 else "prompts"
        started = time.perf_counter()
        out = forward(*args, **kwargs)
        if ids.device.type == "cuda":
            torch.cuda.synchronize()
        seconds[kind] = seconds.get(kind, 0.0) + time.perf_counter() - started
        rows[kind] = rows.get(kind, 0) + ids.numel()
        return out

    model.forward = timed
    try:
        yield
    finally:
        model.forward = forward


def where_time_goes(sampler: TransformersSampler, prompts: list[Prompt], k: int) -> dict[str, float]:
    """The shares of the time of one run of `TransformersSampler`."""
    seconds: dict[str, float] = {}
    rows: dict[str, int] = {}
    started = time.perf_counter()
    with timed_forwards(sampler.model, seconds, rows):
        samples = sampler.sample(prompts, k, seed=1)
    total = time.perf_counter() - started
    needed = sum(completion.num_tokens for completions in samples for completion in completions)
    ended = seconds["decoding"] * max(0.0, 1 - needed / rows["decoding"])
    return {
        "prompts": seconds.get("prompts", 0.0) / total,
        "decoding": (seconds["decoding"] - ended) / total,
        "decoding of rows that have ended": ended / total,
        "the rest": 1 - sum(seconds.values()) / total,
    }


def main() -> dict:
    """Times both alternately, and prints completions per second and where the time goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="dial", choices=["dial", "20m"])
    parser.add_argument("--prefixes", type=int, default=96)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--output")
    options = parser.parse_args()
    case = dial_case if options.model == "dial" else random_case
    sampler, prompts = case(options.batch_size, options.prefixes)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sampler.model.to(device)
    ways = {
        "loop over prefixes": lambda: loop_over_prefixes(sampler, prompts, options.k),
        "ours": lambda: sampler.sample(prompts, options.k, seed=1),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.turns + 1):  # the first turn is a warm-up
        for name, way in ways.items():
            started = time.perf_counter()
            completions = sum(map(len, way()))
            if turn:
                rates[name].append(completions / (time.perf_counter() - started))
    ratios = [ours / loop for ours, loop in zip(rates["ours"], rates["loop over prefixes"], strict=True)]
    shares = where_time_goes(sampler, prompts, options.k)
    lengths = [len(sampler.prompt_format.encode(prompt)) for prompt in prompts]
    print(
        f"{options.model} on {device}, {torch.get_num_threads()} threads: {len(prompts)} prefixes of "
        f"{statistics.mean(lengths):.0f} tokens, K = {options.k}, batches of {options.batch_size} sequences"
    )
    for name, values in rates.items():
        print(
            f"{name:20}{statistics.median(values):9.1f} completions per second "
            f"({min(values):.1f} to {max(values):.1f})"
        )
    print(f"TransformersSampler / loop: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print("ours: " + ", ".join(f"{name} {100 * share:.0f}%" for name, share in shares.items()))
    result = {
        "model": options.model, "device": device, "k": options.k, "batch_size": options.batch_size,
        "completions_per_second": rates, "shares": shares,
        "ratios": {"collect_vs_prefix_loop": (statistics.median(ratios), min(ratios), max(ratios))},
    }  # fmt: skip
    if options.output:
        Path(options.output).parent.mkdir(parents=True, exist_ok=True)
        Path(options.output).write_text(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    main()
