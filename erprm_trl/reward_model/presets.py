"""The formats of public process reward models, as fields of `PRMFormat`, and the names of these models.

`PRMFormat.preset(name)` reads them. `expected_ids` are token ids of the tokenizer that the model was trained with.
"""

import math
from pathlib import Path
from typing import Any


# The chat template of Qwen2.5-Math with its default system prompt.
_QWEN_MATH_CHAT = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
    "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
)

# RLHFlow's chat template. Each step is a user turn, and the first turn is the question and step 1. Every earlier step
# has the answer "+". The score of a step is read where the assistant's answer to it is predicted.
_RLHFLOW: dict[str, Any] = {
    "separator": "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "between_steps": "+<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    "prompt_template": "{bos_token}<|start_header_id|>user<|end_header_id|>\n\n{question} ",
    "tokenization": "text",
    "splitter": "blank_line",
    "aggregation": "mean",
    "expected_ids": {"separator": 271, "good_token": 10, "bad_token": 12},
}

PRESETS: dict[str, dict[str, Any]] = {
    # peiyi9979/math-shepherd-mistral-7b-prm. Steps begin with "Step 1: ", "Step 2: ", ... Its published labels are
    # hard estimates: + if one of the continuations succeeds.
    "math-shepherd": {
        "separator": " ки",
        "between_steps": "\n",
        "prompt_template": "{question} ",
        "tokenization": "text",
        "expected_ids": {"separator": 12902, "good_token": 648, "bad_token": 387},
        "eta": math.inf,
    },
    # HanningZhang/Llama3.1-Math-PRM, the paper's model. No newline follows the separator, and the good and the bad
    # token begin with a space. Taken from an independent evaluation of the model, compute-optimal-tts.
    "er-prm": {
        "separator": " ки",
        "good_token": " +",
        "bad_token": " -",
        "prompt_template": "{question} ",
        "tokenization": "text",
        "expected_ids": {"separator": 116624, "good_token": 489, "bad_token": 482},
    },
    # RLHFlow/Llama3.1-8B-PRM-Mistral-Data: the first chat template of Llama 3.1, which has no system turn.
    "rlhflow-mistral": _RLHFLOW,
    # RLHFlow/Llama3.1-8B-PRM-Deepseek-Data: the later template, which has two dates in its system turn.
    "rlhflow": {
        **_RLHFLOW,
        "prompt_template": (
            "{bos_token}<|start_header_id|>system<|end_header_id|>\n\n"
            "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n{question} "
        ),
    },
    # Qwen/Qwen2.5-Math-PRM-7B, -72B and Qwen2.5-Math-7B-PRM800K.
    "qwen2.5-math-prm": {
        "separator": "<extra_0>",
        "prompt_template": _QWEN_MATH_CHAT,
        "head": "token_mlp",
        "num_labels": 2,
        "tokenization": "text",
        "splitter": "blank_line",
        "aggregation": "product",
        "expected_ids": {"separator": 151651},
    },
    # Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B and -7B. Lines keep their leading and trailing white space. The
    # published code also scores blank lines. Here a blank line belongs to the step before it.
    "skywork-o1-prm": {
        "separator": "\n",
        "prompt_template": "{bos_token}{question}\n",
        "head": "token",
        "splitter": "raw_lines",
        "aggregation": "mean",
        "expected_ids": {"separator": 198},
    },
    # jinachris/PURE-PRM-7B, trained with TRL. The format is from its model card. The published reward of a step is
    # 2 * score - 1, and the published aggregation is a soft minimum.
    "pure-prm": {
        "separator": "\n",
        "prompt_template": "{question}",
        "head": "token",
        "num_labels": 2,
        "splitter": "blank_line",
        "expected_ids": {"separator": 198},
    },
    # PRIME-RL/EurusPRM-Stage1 and -Stage2. Steps begin with "Step 1: ", "Step 2: ", ... The published example sums one
    # or two tokens beyond the end of a step. Here the sum stops at the end of the step.
    "eurus-prm": {
        "separator": "",
        "between_steps": "\n\n",
        "prompt_template": _QWEN_MATH_CHAT,
        "head": "implicit",
        "reference_model": "Qwen/Qwen2.5-Math-7B-Instruct",
        "beta": 0.001,
        "tokenization": "text",
        "splitter": "blank_line",
    },
    # Models of TRL's PRMTrainer (until TRL 1.13), with its default separator.
    "trl-prm": {"separator": "\n", "prompt_template": "{bos_token}{question}", "head": "token", "num_labels": 2},
}

# Preset of each public model, by the model's name on the Hub without its owner.
MODELS = {
    "math-shepherd-mistral-7b-prm": "math-shepherd",
    "Llama3.1-Math-PRM": "er-prm",
    "Llama3.1-8B-PRM-Mistral-Data": "rlhflow-mistral",
    "Llama3.1-8B-PRM-Deepseek-Data": "rlhflow",
    "Qwen2.5-Math-PRM-7B": "qwen2.5-math-prm",
    "Qwen2.5-Math-PRM-72B": "qwen2.5-math-prm",
    "Qwen2.5-Math-7B-PRM800K": "qwen2.5-math-prm",
    "Skywork-o1-Open-PRM-Qwen-2.5-1.5B": "skywork-o1-prm",
    "Skywork-o1-Open-PRM-Qwen-2.5-7B": "skywork-o1-prm",
    "PURE-PRM-7B": "pure-prm",
    "EurusPRM-Stage1": "eurus-prm",
    "EurusPRM-Stage2": "eurus-prm",
}


def preset_of(path_or_id: str | Path) -> str | None:
    """The preset of a public model, found by the last part of its Hub id or folder."""
    return MODELS.get(Path(path_or_id).name)
