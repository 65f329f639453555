"""Throughput of scoring and labelling: the real model and an 8B model with random weights as reward models, labels per
GPU-hour of the sampler, and the same with vLLM where it is installed."""

import gc
import time
from importlib.util import find_spec
from typing import Any

import torch
from gsm8k_experiment import PROMPT, SPLITTER
from transformers import AutoTokenizer

from erprm_trl import PRMFormat, StepScorer, TransformersSampler, VLLMSampler, collect_rollouts
from erprm_trl.reward_model import encode_solutions
from erprm_trl.rollouts import Question, load_questions

from .measures import PeakMemory, synchronize
from .records import Stage
from .references import reference_solutions
from .training import RUNS, TINY, build


FORMAT = PRMFormat(separator="\n", splitter=SPLITTER)
BATCH_TOKENS = (16_384, 65_536)


def score(stage: Stage, model: str, scorer: StepScorer, questions: list[str], steps: list[list[str]]) -> None:
    """Measures the solutions per second of a scorer after a warm-up."""
    scorer.score(questions[: len(questions) // 8], steps[: len(steps) // 8])
    with PeakMemory() as memory:
        synchronize()
        started = time.perf_counter()
        scorer.score(questions, steps)
        synchronize()
        seconds = time.perf_counter() - started
    encoded = encode_solutions(scorer.tokenizer, scorer.prm_format, questions, steps)
    tokens = sum(len(solution.input_ids) for solution in encoded)
    stage.record(
        "scoring", model=model, max_batch_tokens=scorer.max_batch_tokens, solutions=len(steps), tokens=tokens,
        solutions_per_second=len(steps) / seconds, tokens_per_second=tokens / seconds, memory_gib=memory.gib,
    )  # fmt: skip


def label(stage: Stage, backend: str, sampler: Any, questions: list[Question]) -> None:
    """Measures a collection with 2 solutions per question and 8 continuations per prefix."""
    started = time.perf_counter()
    rollouts = collect_rollouts(
        questions, sampler, stage.work / f"labelling-{backend}", num_solutions=2, num_continuations=8,
        splitter=SPLITTER, chunk_size=len(questions), show_progress=False,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    labels = sum(len(rewards) > 0 for row in rollouts for rewards in row.prefix_rewards)
    stage.record(
        "labelling", backend=backend, questions=len(questions), labels=labels, seconds=seconds,
        labels_per_hour=3600 * labels / seconds,
    )  # fmt: skip


def run(stage: Stage) -> None:
    """Measures the local scorer, the sampler, the 8B model, and vLLM."""
    on_gpu = torch.cuda.is_available()
    dtype = "bfloat16" if on_gpu else "float32"
    questions, steps = reference_solutions(stage.train_data, 8 if stage.rehearse else 2000)
    for tokens in BATCH_TOKENS:
        options = {"batch_size": 1024, "max_batch_tokens": tokens, "dtype": dtype}
        score(stage, "policy", StepScorer.from_pretrained(stage.model, prm_format=FORMAT, **options), questions, steps)
    settings = {
        "temperature": 0.7, "max_new_tokens": 64 if stage.rehearse else 320, "prompt_template": PROMPT,
    }  # fmt: skip
    to_label = load_questions(str(stage.train_data), max_questions=2 if stage.rehearse else 48)
    sampler = TransformersSampler.from_pretrained(
        stage.model, model_init_kwargs={"dtype": dtype}, batch_size=2048, **settings
    )
    label(stage, "transformers", sampler, to_label)
    del sampler
    gc.collect()
    shape = TINY if stage.rehearse else RUNS["Llama 3.1 8B, LoRA"].shape
    large = build(shape, "sdpa", torch.bfloat16 if on_gpu else torch.float32, on_gpu)
    tokenizer = AutoTokenizer.from_pretrained(stage.model)
    scorer = StepScorer(large, tokenizer, FORMAT, batch_size=1024, max_batch_tokens=BATCH_TOKENS[0])
    score(stage, "tiny" if stage.rehearse else "8B", scorer, questions[:500], steps[:500])
    del large, scorer
    gc.collect()
    if not find_spec("vllm"):
        stage.record("scoring", model="policy in vLLM", note="vllm is not installed")
        return
    options = {"dtype": dtype, "gpu_memory_utilization": 0.4}
    label(stage, "vllm", VLLMSampler(str(stage.model), engine_kwargs=options, **settings), to_label)
