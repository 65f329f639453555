"""RAFT in miniature on the shipped policy: training data, killed runs, LoRA, and no answers."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import zoo
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from raft_runs import DIAL, Killed
from safetensors.torch import load_file
from transformers import TrainerCallback

from erprm_trl import StepScorer, TransformersSampler, dial
from erprm_trl.dial.experiments.chain import FORMAT
from erprm_trl.policy.raft import policy_sampler as live_policy
from erprm_trl.policy.raft import sampling as raft_sampling
from erprm_trl.policy.raft.raft_config import RAFTConfig
from erprm_trl.policy.raft.raft_trainer import RAFTTrainer
from erprm_trl.policy.raft.rounds import RoundFolder, read_rows
from erprm_trl.rollouts import Prompt, Question, RolloutDataset


ANSWERED = dial.make_questions(8, seed=1)
QUESTIONS = [
    {"question": row["question"]} for row in ANSWERED
]  # without answers there is no grading and none of its processes


@pytest.fixture(scope="module")
def scorer():
    return StepScorer.from_pretrained(dial.BASE_PATH, prm_format=FORMAT, batch_size=256)


@pytest.fixture
def build(tmp_path, scorer):
    def build(name="out", questions=QUESTIONS, eval_questions=None, policy=dial.BASE_PATH, callbacks=None, **options):
        peft_config = options.pop("peft_config", None)
        processing_class = options.pop("processing_class", None)
        return RAFTTrainer(
            policy,
            options.pop("reward_model", scorer),
            RAFTConfig(str(tmp_path / name), **{**DIAL, **options}),
            train_dataset=Dataset.from_list(questions),
            eval_dataset=None if eval_questions is None else Dataset.from_list(eval_questions),
            processing_class=processing_class,
            peft_config=peft_config,
            callbacks=callbacks,
        )

    return build


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def manifest(trainer, index):
    return json.loads(Path(trainer.args.output_dir, f"round-{index}", "manifest.json").read_text())


@pytest.mark.slow("trains several rounds")
def test_two_rounds_end_to_end(build, tmp_path):
    trainer = build(questions=ANSWERED, eval_questions=dial.make_questions(4, seed=2))
    before = weights(trainer)
    output = trainer.train()
    assert not equal(before, weights(trainer))
    logs = trainer.state.log_history
    rounds = [entry for entry in logs if "raft/round" in entry]
    assert [entry["raft/round"] for entry in rounds] == [0, 1]
    # 8 questions with one selected solution each, 2 epochs of 2 batches. The second round continues the step count.
    assert [entry["step"] for entry in logs if "loss" in entry] == list(range(1, 9))
    assert output.global_step == trainer.state.global_step == 8
    assert len([entry for entry in logs if "eval_accuracy" in entry]) == 3  # also for the first policy
    for index in (0, 1):
        entries = manifest(trainer, index)
        assert entries["kept"] == 8 and entries["kept"] + sum(entries["dropped"].values()) == 32
        picks = read_rows(tmp_path / "out" / f"round-{index}" / "picks.jsonl")
        rewards = [pick["reward"] for pick in picks]
        assert rounds[index]["raft/picked_accuracy"] == sum(rewards) / 8
        # each selected solution has the best score of its question
        scores = [
            min(entry["step_scores"]) for entry in read_rows(tmp_path / "out" / f"round-{index}" / "scores.jsonl")
        ]
        assert [pick["score"] for pick in picks] == pytest.approx([max(scores[4 * i : 4 * i + 4]) for i in range(8)])
    # the second round sampled from the policy that the first round trained
    assert equal_files(tmp_path / "out" / "round-1" / "policy", trainer)
    trainer.save_model()
    trainer.create_model_card(model_name="out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "2304.06767" in card and "- raft" in card
    TransformersSampler.from_pretrained(str(tmp_path / "out"))


def equal_files(folder, trainer):
    saved = load_file(folder / "model.safetensors")
    return all(torch.equal(saved[name], parameter) for name, parameter in trainer.model.named_parameters())


class Recorder:
    """A sampler that records its samples."""

    completions: dict = {}

    def __init__(self, *args, **kwargs):
        self.inner = TransformersSampler(*args, **kwargs)
        self.settings = self.inner.settings

    def sample(self, prompts, num_samples, seed):
        result = self.inner.sample(prompts, num_samples, seed)
        for prompt, samples in zip(prompts, result, strict=True):
            Recorder.completions[prompt.question] = (self.inner.prompt_format.encode(prompt), samples)
        return result


CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.mark.slow("trains with three tokenizers")
@pytest.mark.parametrize("kind", ["dial", "bytes", "bytes, chat"])
def test_training_uses_exactly_the_sampled_tokens(build, monkeypatch, kind):
    """A random model samples tokens that differ from the tokenizer's encoding of their text."""
    Recorder.completions = {}
    monkeypatch.setattr(live_policy, "TransformersSampler", Recorder)
    options = {"num_rounds": 1, "top_k": 2}
    if kind != "dial":
        tokenizer = zoo.byte_level_bpe()
        tokenizer.chat_template = CHAT if "chat" in kind else None
        model = zoo.tiny_llama(len(tokenizer), eos_token_id=tokenizer.eos_token_id)
        with torch.no_grad():
            model.lm_head.weight.mul_(3)
        model.lm_head.weight.data[tokenizer.eos_token_id] *= 3  # so that some solutions end
        options |= {"policy": model, "processing_class": tokenizer, "max_completion_length": 60, "num_generations": 16}
        options["questions"] = [{"prompt": [{"role": "user", "content": f"Ä {row['question']}"}]} for row in QUESTIONS]
    trainer = build(**options)
    trainer.train()
    rows = trainer.train_dataset.to_list()
    assert len(rows) > 4
    sampled = {
        tuple(prompt + list(sample.token_ids)): len(prompt)
        for prompt, samples in Recorder.completions.values()
        for sample in samples
    }
    for example in rows:
        length = sampled[tuple(example["input_ids"])]
        assert example["labels"] == [-100] * length + example["input_ids"][length:]
        assert example["input_ids"][-1] == trainer.processing_class.eos_token_id
    if kind == "dial":
        tokenizer = trainer.processing_class
        for pick in read_rows(Path(trainer.args.output_dir, "round-0", "picks.jsonl")):
            text = tokenizer(pick["prompt"] + pick["completion"])["input_ids"]
            assert text + [tokenizer.eos_token_id] == pick["prompt_ids"] + pick["completion_ids"]
    if "chat" in kind:
        assert trainer.processing_class.decode(rows[0]["input_ids"]).startswith("<user>Ä ")


PROMPTED = [
    {**row, "prompt": [{"role": "system", "content": "Ä"}, {"role": "user", "content": row["question"]}]}
    for row in QUESTIONS[:2]
]


@pytest.mark.parametrize("with_question", [True, False])
def test_the_policy_gets_the_column_prompt_unchanged(build, tmp_path, with_question):
    tokenizer = zoo.load_dial_policy()[1]
    tokenizer.chat_template = "{{ messages[0]['content'] }} check {{ messages[1]['content'] }}{{ end }}"
    rows = [row if with_question else {"prompt": row["prompt"]} for row in PROMPTED]
    trainer = build(questions=rows, processing_class=tokenizer, chat_template_kwargs={"end": " answer"})
    assert [question.question for question in trainer.questions] == [row["question"] for row in QUESTIONS[:2]]
    trainer._sampling.pick(RoundFolder(tmp_path / "out", 0), trainer.questions, 0)
    picks = read_rows(tmp_path / "out" / "round-0" / "picks.jsonl")
    assert len(picks) > 0
    for pick in picks:
        text = f"Ä check {pick['prompt']} answer"
        assert pick["prompt_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    with pytest.raises(ValueError, match="prompt_template: got a value .*column `prompt`.*Do not set them"):
        build("other", questions=rows, processing_class=tokenizer, prompt_template="check {question}")


def test_prompt_settings_are_passed_to_the_sampler(build, tmp_path):
    tokenizer = zoo.load_dial_policy()[1]
    tokenizer.chat_template = CHAT
    examples = [{"question": "1 + 1", "solution": "2"}]
    settings = {"use_chat_template": False, "examples": examples, "prompt_template": "check {question} answer"}
    trainer = build(questions=QUESTIONS[:1], processing_class=tokenizer, stop=["answer"], reasoning=True, **settings)
    trainer._sampling.pick(RoundFolder(tmp_path / "out", 0), trainer.questions, 0)
    samples = RolloutDataset(tmp_path / "out" / "round-0" / "samples")
    assert settings.items() <= samples.settings.sampler.items() and samples.settings.stop == ["answer"]
    assert samples.settings.reasoning is True and samples.settings.steps_of == trainer.scorer.prm_format.steps_of
    text = f"check 1 + 1 answer 2\n\ncheck {QUESTIONS[0]['question']} answer"
    expected = tokenizer(text)["input_ids"]
    assert all(pick["prompt_ids"] == expected for pick in read_rows(tmp_path / "out" / "round-0" / "picks.jsonl"))
    assert trainer.prompt_format.encode(Prompt(QUESTIONS[0]["question"])) == expected
    assert all(row.finished and "answer" not in row.text for row in samples)


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step, self.rounds = step, 0  # number of rounds to skip

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.rounds -= 1
            if self.rounds < 0:
                raise Killed


def killed_while_sampling(monkeypatch, trainer):
    """Kills the run in the second chunk of the second round."""
    calls = []
    sample = TransformersSampler.sample

    def dying(self, *args):
        calls.append(1)
        if len(calls) == 4:
            raise Killed
        return sample(self, *args)

    monkeypatch.setattr(TransformersSampler, "sample", dying)


def killed_after_scoring(monkeypatch, trainer):
    def dying(*args, **kwargs):
        raise Killed

    monkeypatch.setattr(raft_sampling, "pick_solutions", dying)


def killed_in_training(monkeypatch, trainer):
    """Kills the run between two checkpoints of the first round."""
    trainer.add_callback(KillAt(3))


def killed_while_saving(monkeypatch, trainer):
    """Kills the run while it saves a checkpoint, which is then incomplete."""
    save = RAFTTrainer._save_rng_state

    def dying(self, output_dir):
        if output_dir.endswith("checkpoint-4"):
            raise Killed
        save(self, output_dir)

    monkeypatch.setattr(RAFTTrainer, "_save_rng_state", dying)


def killed_after_training(monkeypatch, trainer):
    def dying(self, path):
        (path / "half").mkdir(parents=True)
        raise Killed

    monkeypatch.setattr(live_policy.PolicySampler, "save", dying)


def killed_after_a_round(monkeypatch, trainer):
    run = RAFTTrainer._run_round

    def dying(self, folder, config):
        if folder.index == 1:
            raise Killed
        run(self, folder, config)

    monkeypatch.setattr(RAFTTrainer, "_run_round", dying)


@pytest.fixture(scope="module")
def straight(scorer, tmp_path_factory):
    """Weights of an uninterrupted run, by `start_from`."""
    runs = {}
    for start_from in ("last", "first"):
        folder = tmp_path_factory.mktemp(start_from)
        args = RAFTConfig(str(folder), **{**DIAL, **RESUMED, "start_from": start_from})
        trainer = RAFTTrainer(dial.BASE_PATH, scorer, args, train_dataset=Dataset.from_list(QUESTIONS))
        trainer.train()
        runs[start_from] = weights(trainer)
    return runs


RESUMED = {"save_strategy": "steps", "save_steps": 2}


@pytest.mark.slow("trains many times")
@pytest.mark.parametrize(
    ("kill", "start_from"),
    [
        (killed_while_sampling, "last"),
        (killed_after_scoring, "last"),
        (killed_in_training, "last"),
        (killed_while_saving, "last"),
        (killed_after_training, "last"),
        (killed_after_a_round, "last"),
        (killed_after_a_round, "first"),
    ],
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_run(build, straight, kill, start_from):
    trainer = build(start_from=start_from, **RESUMED)
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, trainer)
        with pytest.raises(Killed):
            trainer.train()
    torch.manual_seed(12345)
    trainer = build(start_from=start_from, **RESUMED)
    assert trainer.train().global_step == 8
    assert equal(weights(trainer), straight[start_from])


@pytest.mark.slow("trains several rounds")
def test_train_can_be_called_again_after_an_interrupt(build, straight):
    """As in a notebook: the same trainer resumes, unless its policy has changed and is not saved."""
    kill = KillAt(1)
    trainer = build(callbacks=[kill])
    with pytest.raises(Killed):
        trainer.train()
    with pytest.raises(ValueError, match="Construct the trainer again"):
        trainer.train()
    trainer = build(callbacks=[kill])
    kill.step, kill.rounds = 3, 1
    with pytest.raises(Killed):
        trainer.train()
    kill.step = None
    trainer.train()
    assert equal(weights(trainer), straight["last"])


@pytest.mark.slow("trains several rounds")
def test_training_from_the_first_policy_differs(straight):
    assert not equal(straight["first"], straight["last"])


@pytest.mark.slow("trains several rounds")
def test_more_rounds_continue_and_another_configuration_does_not(build):
    build(num_rounds=1).train()
    trainer = build(num_rounds=2)
    trainer.train()
    straight = build("straight", num_rounds=2)
    straight.train()
    assert equal(weights(trainer), weights(straight))
    # a finished run repeats nothing
    manifests = [manifest(trainer, index) for index in (0, 1)]
    again = build(num_rounds=2)
    assert again.train().global_step == 8
    assert equal(weights(again), weights(straight))
    assert [manifest(again, index) for index in (0, 1)] == manifests
    with pytest.raises(
        ValueError, match="learning_rate was 0.001 and is now 0.002; .*temperature was 1.0 and is now 0.5"
    ):
        build(learning_rate=2e-3, temperature=0.5).train()


@pytest.mark.slow("trains several rounds")
def test_lora_trains_and_resumes(build, tmp_path):
    adapter = LoraConfig(r=4, target_modules="all-linear")
    runs = {}
    for start_from in ("last", "first"):
        trainer = build(start_from, start_from=start_from, peft_config=adapter, learning_rate=1e-2)
        base = weights(trainer)
        trainer.train()
        runs[start_from] = weights(trainer)
        moved = {name for name, weight in runs[start_from].items() if not torch.equal(weight, base[name])}
        assert moved and all("lora" in name for name in moved)
        assert (tmp_path / start_from / "round-1" / "policy" / "adapter_model.safetensors").is_file()
    assert not equal(runs["last"], runs["first"])
    # repeats only the second round, from the first round's adapter
    shutil.rmtree(tmp_path / "last" / "round-1")
    again = build("last", peft_config=adapter, learning_rate=1e-2)
    again.train()
    assert equal(weights(again), runs["last"])


@pytest.fixture
def adapter(tmp_path):
    """Folder of an adapter of the shipped policy, whose weights differ from a new adapter's."""
    model = get_peft_model(zoo.load_dial_policy()[0], LoraConfig(r=4, target_modules="all-linear"))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.02)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.slow("trains several rounds")
def test_the_training_of_a_saved_adapter_continues(build, adapter):
    trainer = build(policy=str(adapter))
    before = weights(trainer)
    trainer.train()
    assert all(entry["grad_norm"] > 0 for entry in trainer.state.log_history if "grad_norm" in entry)
    moved = {name for name, weight in weights(trainer).items() if not torch.equal(weight, before[name])}
    assert moved and all("lora" in name for name in moved)
    assert manifest(trainer, 0)["config"]["model"] == str(adapter)
    # a killed and resumed run has the same result, and another adapter is refused
    shutil.rmtree(Path(trainer.args.output_dir, "round-1"))
    again = build(policy=str(adapter))
    again.train()
    assert equal(weights(again), weights(trainer))
    shutil.copytree(adapter, adapter.with_name("other"))
    with pytest.raises(ValueError, match="model was '.*adapter' and is now '.*other'"):
        build(policy=str(adapter.with_name("other"))).train()


@pytest.mark.slow("trains a round")
def test_prefix_tuning_trains(build):
    trainer = build(peft_config=PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"), num_rounds=2)
    before = weights(trainer)
    trainer.train()
    assert trainer.state.log_history and not equal(before, weights(trainer))
    saved = load_file(Path(trainer.args.output_dir, "round-1", "policy", "adapter_model.safetensors"))
    (trained,) = (weight for weight in trainer.model.parameters() if weight.requires_grad)
    assert torch.equal(saved["prompt_embeddings"], trained)


def test_columns_are_configured_or_found_and_a_missing_column_is_an_error(build):
    rows = [{"text": row["question"], "problem": "other", "result": "1", "solution": "2"} for row in QUESTIONS]
    trainer = build(questions=rows)
    assert trainer.questions[0] == Question("other", "2")
    trainer = build(questions=rows, eval_questions=rows, question_column="text", answer_column="result")
    assert trainer.questions[0] == trainer.eval_questions[0] == Question(rows[0]["text"], "1")
    without = [{"text": row["text"]} for row in rows]
    with pytest.raises(ValueError, match="got .'text'., expected 'question' .*Name the right one with `question_col"):
        build(questions=without)
    assert build(questions=without, question_column="text").questions[0] == Question(rows[0]["text"])
    with pytest.raises(ValueError, match="got .'text'., expected 'result'.* with `answer_column`"):
        build(questions=without, question_column="text", answer_column="result")
    prompted = [{"prompt": f"{row['text']}!", "text": row["text"]} for row in rows]
    trainer = build(questions=prompted, question_column="text")
    assert trainer.questions[0] == Question(rows[0]["text"], None, rows[0]["text"] + "!")


@pytest.mark.parametrize("kind", ["question", "prompt"])
def test_columns_of_a_streaming_dataset_are_read_from_its_rows(tmp_path, scorer, kind):
    rows = Dataset.from_list(ANSWERED).to_iterable_dataset()
    rows = rows.map(lambda row: {kind: row["question"], "final_answer": row["answer"]}, remove_columns=["answer"])
    assert rows.column_names is None
    args = RAFTConfig(str(tmp_path), **{**DIAL, "drop_uniform": None})
    trainer = RAFTTrainer(dial.BASE_PATH, scorer, args, rows, rows)
    assert trainer.has_answers and trainer.drop_uniform
    assert [question.answer for question in trainer.questions] == [row["answer"] for row in ANSWERED]
    assert len(trainer.eval_questions) == 8 and (trainer.questions[0].prompt is None) == (kind == "question")


@pytest.mark.slow("trains a round")
def test_nothing_is_graded_without_answers(build, tmp_path):
    trainer = build(questions=[{"prompt": row["question"]} for row in QUESTIONS], num_rounds=1, drop_uniform=None)
    trainer.train()
    assert not any("accuracy" in key for entry in trainer.state.log_history for key in entry if "raft/" in key)
    assert {pick["reward"] for pick in read_rows(tmp_path / "out" / "round-0" / "picks.jsonl")} == {None}
    with pytest.raises(ValueError, match="no `eval_dataset`"):
        trainer.evaluate()
    with pytest.raises(ValueError, match="drop_uniform: got True for training questions without answers"):
        build(questions=[{"prompt": row["question"]} for row in QUESTIONS], drop_uniform=True)
    build(questions=ANSWERED, drop_uniform=True)


@pytest.mark.slow("trains a round")
def test_with_answers_uniform_questions_are_dropped_by_default(build):
    trainer = build(questions=ANSWERED, num_rounds=1, drop_uniform=None)
    trainer.train()
    dropped = manifest(trainer, 0)["dropped"]
    assert dropped["all_right"] > 0 and dropped["all_right"] % 4 == 0
    assert not build(questions=ANSWERED, num_generations=1, drop_uniform=None).drop_uniform


@pytest.mark.slow("trains a round")
def test_dropped_solutions_are_counted_by_reason(build):
    """With a token limit that most solutions reach."""
    trainer = build(num_rounds=1, max_completion_length=30)
    trainer.train()
    dropped = manifest(trainer, 0)["dropped"]
    assert dropped["unfinished"] > 0


FIXES = {  # settings that drop every solution, the fix in the error, and the fixed settings
    "unfinished": ({"max_completion_length": 5}, "raise max_completion_length .*512", {"max_completion_length": 64}),
    "longer_than_max_length": ({"max_length": 20}, "raise max_length", {"max_length": 100}),
    "below_threshold": ({"score_threshold": 1.1}, "lower score_threshold", {"score_threshold": 0.0}),
    "all_wrong": (
        {"drop_uniform": True, "num_generations": 1, "questions": [{**ANSWERED[0], "answer": "none"}]},
        "set drop_uniform=False",
        {"drop_uniform": False},
    ),
}


@pytest.mark.slow("trains a round")
@pytest.mark.parametrize("reason", FIXES)
def test_a_round_without_selected_solutions_is_an_error_with_fixes_that_work(build, tmp_path, reason):
    failing, remedy, changed = FIXES[reason]
    failing = {"num_rounds": 1, "num_train_epochs": 1, **failing}
    with pytest.raises(ValueError, match=rf"round-0: got no solution to train on, .*{reason}: \d+, {remedy}") as error:
        build(**failing).train()
    assert "For new settings choose another output_dir, or move this folder away." in str(error.value)
    with pytest.raises(ValueError, match="got a round with other settings"):
        build(**{**failing, **changed}).train()
    build("another", **{**failing, **changed}).train()
    shutil.move(tmp_path / "out" / "round-0", tmp_path / "away")
    assert build(**{**failing, **changed}).train().global_step > 0


def test_solutions_longer_than_the_reward_models_context_are_dropped(build, scorer, monkeypatch):
    monkeypatch.setattr(scorer.model.config, "max_position_embeddings", 20)
    with pytest.raises(ValueError, match="too_long_for_reward_model: 32, use a reward model with a longer context"):
        build().train()


@pytest.mark.slow("trains a round")
def test_the_fix_for_a_damaged_policy_works(build, tmp_path, straight):
    options, out = {"start_from": "first", **RESUMED}, tmp_path / "out"
    for damaged, moved in (("round-0/policy", out / "round-0"), ("first-policy", out)):
        build(num_rounds=1, **options).train()  # the next round loads both policies
        file = out / damaged / "model.safetensors"
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(ValueError, match=rf"damaged .*Move {moved}( and all later rounds)? away"):
            build(**options).train()
        shutil.move(moved, tmp_path / f"damaged-{moved.name}")
    trainer = build(**options)
    trainer.train()
    assert equal(weights(trainer), straight["first"])


@pytest.mark.slow("trains a round")
def test_the_reward_model_may_be_a_path(build, scorer, tmp_path):
    scorer.model.save_pretrained(tmp_path / "erprm")
    scorer.tokenizer.save_pretrained(tmp_path / "erprm")
    FORMAT.save(tmp_path / "erprm")
    trainer = build(reward_model=tmp_path / "erprm", num_rounds=1, scoring_batch_size=7)
    assert trainer.scorer.batch_size == 7
    trainer.train()


def test_evaluate_uses_new_samples(build):
    trainer = build(eval_questions=ANSWERED[:3])
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] * 12 == pytest.approx(round(metrics["eval_accuracy"] * 12))
    assert trainer.evaluate(Dataset.from_list(ANSWERED[3:5]), metric_key_prefix="test").keys() == {
        "test_accuracy",
        "test_unfinished_share",
        "test_mean_tokens",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rounds": 0}, "num_rounds: got 0"),
        ({"start_from": "best"}, "start_from: got 'best'"),
        ({"aggregation": "max"}, "aggregation: got 'max'"),
        ({"top_k": 5}, "top_k: got 5, expected at most num_generations=4"),
        ({"temperature": 0.0}, "all greedy solutions of a question are equal"),
        ({"eval_strategy": "steps"}, "eval_strategy: got"),
        ({"completion_only_loss": False}, "got completion_only_loss=False"),
    ],
)
def test_invalid_configurations_are_errors(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        RAFTConfig(str(tmp_path), **{**DIAL, **options})


def test_invalid_arguments_are_errors(build):
    with pytest.raises(ValueError, match="Columns of the given rows: got"):
        build(questions=[{"text": "?"}])
    with pytest.raises(ValueError, match="holds no reference answer"):
        build(questions=[{"prompt": "?", "answer": "1"}, {"prompt": "??", "answer": None}])
    with pytest.raises(ValueError, match="pass it as `model`"):
        build().train(resume_from_checkpoint="outputs/checkpoint-3")
