"""Code blocks of the README and the pages of docs/, and a folder in which they run: tiny models and datasets in the
place of those that the pages name."""

import importlib
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from unittest import mock


ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "erprm_trl" / ".agents" / "skills" / "erprm-trl" / "SKILL.md",
        *(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "api"),
        *(ROOT / "recipes").rglob("*.md"),
    ]
)
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
_NOT_RUN = re.compile(r"<!-- not run: [^>]+ -->\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line of the page that it begins at, and whether it is run."""

    language: str
    text: str
    line: int
    is_run: bool


def blocks(page: Path, language: str) -> list[Block]:
    """
    The fenced blocks of a page in a language.

    A block that cannot run follows a comment `<!-- not run: why -->`.
    """
    source = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(source):
        if match["language"] == language:
            text = re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
            line = source.count("\n", 0, match.start()) + 2
            found.append(Block(language, text, line, _NOT_RUN.search(source[: match.start()]) is None))
    return found


def page_name(page: Path) -> str:
    """How tests name a page."""
    return str(page.relative_to(ROOT))


# The stand-ins. A relative folder with the name of a Hub repository is read in its place by transformers and datasets.

QUESTIONS = [
    {"question": f"Tom has {n} bags of {n + 1} apples. How many?", "answer": f"{n} * {n + 1}.\n#### {n * (n + 1)}"}
    for n in range(2, 6)
]
STEPWISE = [
    {"prompt": row["question"], "completions": ["There are some bags.", "The answer is 6."], "labels": [True, n == 0]}
    for n, row in enumerate(QUESTIONS * 4)
]
JUDGED = [
    {"id": f"{n}", "problem": f"What is {n // 2} + 1?", "steps": [f"{n // 2} + 1 = {n}", f"{n}"], "label": n % 2 - 1}
    for n in range(40)
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MODEL_NAME = re.compile(
    r'"((?!outputs/|recipes/|tests/|docs/|openai/|trl-lib/|HuggingFaceH4/)[A-Za-z][\w-]+/[\w.-]+)"'
)


def make_world(folder: Path, code: str) -> None:
    """
    Writes the models, datasets and results that the code of a page reads into a folder.

    Args:
        folder (`Path`):
            The working directory of the code.
        code (`str`):
            The code. Models are made for the names in it, and results of earlier stages unless the code makes them.
    """
    import json

    def write(name: str, rows: list[dict]) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    splits = [{"split": split, "path": f"{split}.jsonl"} for split in ("train", "test")]
    for name, rows in {
        "openai/gsm8k": QUESTIONS,
        "HuggingFaceH4/MATH-500": QUESTIONS,
        "trl-lib/math_shepherd": STEPWISE,
        "trl-lib/prm800k": STEPWISE,
    }.items():
        for split in ("train", "test"):
            write(f"{name}/{split}.jsonl", rows)
        config = json.dumps({"configs": [{"config_name": "main", "data_files": splits, "default": True}]})
        (folder / name / "README.md").write_text(f"---\n{config}\n---\n")
    write("rows.jsonl", STEPWISE)
    write("Qwen/ProcessBench/gsm8k.jsonl", JUDGED)
    for name in sorted(set(MODEL_NAME.findall(code)) - {"Qwen/ProcessBench"}):
        make_model(folder / name)
    make_results(folder, code)


def make_model(folder: Path) -> None:
    """A tiny policy, or a public reward model where the name says so."""
    from dataclasses import replace

    import trl
    from public_models import QwenPRM, byte_tokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    if "PRM" in folder.name:
        public = QwenPRM(folder)
        replace(public.prm_format, expected_ids=None).save(folder)  # the tiny tokenizer has other ids
        return
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"])
    if "Instruct" in folder.name:
        tokenizer.chat_template = CHAT_TEMPLATE
    elif "Qwen3" in folder.name:  # a template with tools, whose calls TRL can parse
        tokenizer.chat_template = Path(trl.__file__).with_name("chat_templates").joinpath("qwen3.jinja").read_text()
    policy_of_short_lines(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def policy_of_short_lines(tokenizer):
    """A random Llama whose next token is independent of the text: a number, a line break or the end."""
    import torch
    from zoo import tiny_llama

    model = tiny_llama(
        len(tokenizer),
        max_position_embeddings=4096,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    likely = {"\n": 0.2, **dict.fromkeys("0123456789", 0.06)}
    ids = {tokenizer.encode(text, add_special_tokens=False)[0]: share for text, share in likely.items()}
    ids[tokenizer.eos_token_id] = 0.2
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(1.0)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.fill_(-20.0 / model.config.hidden_size)
        for token, share in ids.items():
            model.lm_head.weight[token] = torch.tensor(share).log() / model.config.hidden_size
    return model


def let_scores_differ(folder: Path) -> None:
    """Lets the probability of "+", which samples do not contain, depend on the text before it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        model.model.embed_tokens.weight += 0.3 * torch.randn_like(model.model.embed_tokens.weight)
        model.model.layers[0].self_attn.o_proj.weight.normal_(std=0.3)
        model.lm_head.weight[tokenizer.encode("+", add_special_tokens=False)[0]].normal_(
            mean=-20.0 / model.config.hidden_size, std=0.3
        )
    model.save_pretrained(folder)


def make_results(folder: Path, code: str) -> None:
    """Reward models and rollouts, as earlier stages leave them."""
    from public_models import TRLPRM

    from erprm_trl import PRMFormat, TransformersSampler, collect_rollouts, load_questions

    outputs = folder / "outputs"
    outputs.mkdir()
    for name in ("erprm", "my-erprm", "prm"):
        make_model(outputs / name)
        let_scores_differ(outputs / name)
        PRMFormat(splitter="newline", eta=0.0).save(outputs / name)
    if '"outputs/implicit"' in code and 'ERPRMConfig("outputs/implicit"' not in code:
        make_model(outputs / "implicit")
        let_scores_differ(outputs / "implicit")
        reference = str(outputs / "erprm")
        PRMFormat(head="implicit", beta=0.05, reference_model=reference).save(outputs / "implicit")
    TRLPRM(outputs / "trl-prm")
    sampler = TransformersSampler.from_pretrained(str(outputs / "erprm"), max_new_tokens=32)
    for name, solutions, continuations in (("rollouts", 2, 2), ("held_out", 2, 2), ("samples", 4, 0)):
        if not re.search(rf'collect_rollouts\([^)]*"outputs/{name}"', code):
            collect_rollouts(
                load_questions(QUESTIONS),
                sampler,
                outputs / name,
                num_solutions=solutions,
                num_continuations=continuations,
                show_progress=False,
            )


def shrink(arguments) -> None:
    """Changes the arguments of a training to one small step on the CPU."""
    arguments.use_cpu, arguments.bf16, arguments.gradient_checkpointing = True, False, False
    arguments.max_steps, arguments.report_to, arguments.disable_tqdm = 1, "none", True
    limits = {"max_completion_length": 16, "generation_batch_size": 8, "questions_per_round": 4}
    for name, most in {**limits, "refresh_reward_model": 2}.items():
        if getattr(arguments, name, None) is not None:
            setattr(arguments, name, min(getattr(arguments, name), most))


def names(folder: Path) -> dict:
    """What the pages take for granted in a program that uses the library."""
    from datasets import Dataset

    rows = [{"prompt": row["question"], "answer": row["answer"].split("#### ")[1]} for row in QUESTIONS * 4]

    def your_reward(completions, **kwargs):
        return [float(len(completion)) for completion in completions]

    return {
        "__name__": "page",
        "dataset": Dataset.from_list(rows),
        "your_reward": your_reward,
        "accuracy_reward": your_reward,
        "questions": [row["question"] for row in QUESTIONS],
        "completions": ["2 + 3 = 5\nThe answer is 5."] * len(QUESTIONS),
    }


# Commands

_INLINE = re.compile(r"`((?:python|erprm|make|accelerate|torchrun) [^`]+)`")


def commands(page: Path) -> list[tuple[list[str], int]]:
    """The commands of a page, in ```bash blocks and in running text: words and line."""
    source = page.read_text(encoding="utf-8")
    texts = [(block.text.replace("\\\n", " "), block.line) for block in blocks(page, "bash") if block.is_run]
    prose = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), source)
    texts += [
        (match[1].replace("\n", " "), prose.count("\n", 0, match.start()) + 1) for match in _INLINE.finditer(prose)
    ]
    found = []
    for text, line in texts:
        text = re.sub(r"<<'(\w+)'\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)  # a program in a here-document
        for part in re.split(r"\n|&&|;|\|\|? ", text):
            words = _words(part)
            if words:
                found.append((words, line))
    return found


def _words(command: str) -> list[str]:
    """The words of a command without comments, variables before it and a process in the background."""
    words = [word for word in shlex.split(command, comments=True) if word not in ("&", "(", ")")]
    while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0]):
        words = words[1:]
    return words


def command_problems(words: list[str]) -> list[str]:
    """What is wrong with a command of a page: a file, target, command or option that does not exist."""
    program, arguments = Path(words[0]).name, words[1:]
    problems = [
        f"no file {value}"
        for option, value in zip(arguments, arguments[1:], strict=False)
        if option in ("--config", "--config_file") and "." in value.strip(".") and not (ROOT / value).is_file()
    ]
    script = next((word for word in arguments if re.fullmatch(r"(recipes|tests)/[\w/]+\.py", word)), None)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        problems += [f"no target {word}" for word in arguments if "=" not in word and word not in targets]
    elif program == "erprm":
        problems += _erprm_problems(arguments)
    elif script is not None:
        problems += [] if (ROOT / script).is_file() else [f"no file {script}"]
        if not problems:
            problems += _script_problems(script, arguments[arguments.index(script) + 1 :])
    elif program == "python" and "-m" in arguments:
        module = arguments[arguments.index("-m") + 1]
        if module.startswith("erprm_trl") and not (ROOT / f"{module.replace('.', '/')}.py").is_file():
            problems.append(f"no module {module}")
    return problems


def _erprm_problems(arguments: list[str]) -> list[str]:
    from erprm_trl import cli
    from erprm_trl.scripts import outcome, parser

    name = arguments[0]
    if name.startswith("-") or name == "COMMAND":
        return []
    if name not in cli.COMMANDS:
        return [f"no command erprm {name}"]
    if "--help" in arguments:
        return []
    options, rest = parser.split_options(_without_placeholders(arguments[1:]))
    if options.config and not (ROOT / options.config).is_file():
        options = options._replace(config=None)
    command = cli.COMMANDS[name]
    stage = importlib.import_module(f"erprm_trl.scripts.{command.module}")
    stage_parser = parser.StageParser(name, stage.main, command.stage, command.several_processes)
    try:
        with mock.patch.dict(os.environ):
            stage_parser.set_config(options)
        unknown = [word for word in stage_parser.unknown_words(rest) if word.startswith("--")]
    except outcome.UsageError as error:
        return [str(error)]
    if unknown and command.several_processes:
        from erprm_trl.scripts import launcher

        unknown = launcher.not_of_accelerate(unknown)
    return [f"erprm {name} has no option {word}" for word in unknown]


def _without_placeholders(words: list[str]) -> list[str]:
    """Without `...` and the option before it; a shell variable becomes a number."""
    words = re.sub(r"(--\w+\0)?\.\.\.(\0|$)", "", "\0".join(words)).split("\0")
    return ["1" if word.startswith("$") else word for word in words if word]


def _script_problems(script: str, arguments: list[str]) -> list[str]:
    """Options of a benchmark must be in its source. Those of a recipe are the ones of its `erprm` command."""
    options = [word.split("=")[0] for word in arguments if word.startswith("--")]
    if script.startswith("recipes/"):
        from erprm_trl import cli

        stem = Path(script).stem
        stage = {"collect_rollouts": "collect", "serve_scorer": "serve", "estimate_memory": "memory"}.get(stem, stem)
        name = next(
            (name for name, command in cli.COMMANDS.items() if stage in (command.module, command.stage, name)), None
        )
        return [f"no command for {script}"] if name is None else _erprm_problems([name, *arguments])
    source = (ROOT / script).read_text(encoding="utf-8")
    return [f"{script} has no option {option}" for option in options if f'"{option}"' not in source]
