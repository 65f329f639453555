"""Reference results for vLLM's samples: transformers, one prompt at a time."""

from collections import Counter

import torch


def greedy_ids(model, tokenizer, questions, max_new_tokens):
    """Greedy token ids from full forward passes, including the end token."""
    completions = []
    for question in questions:
        ids = tokenizer(question)["input_ids"]
        length = len(ids)
        while len(ids) < length + max_new_tokens and ids[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        completions.append(ids[length:])
    return completions


def assert_drawn_from(tokens, probabilities):
    """Pearson's chi-square test of counts. Cells with an expected count below 5 are merged."""
    counts = Counter(tokens)
    assert all(probabilities[token] > 0 for token in counts)
    expected = probabilities.double() * len(tokens)
    observed = torch.tensor([counts[token] for token in range(len(expected))], dtype=torch.double)
    large = expected >= 5
    cells = [(observed[large], expected[large])]
    if expected[~large].sum() > 0:
        cells.append((observed[~large].sum()[None], expected[~large].sum()[None]))
    statistic = sum(((seen - due) ** 2 / due).sum() for seen, due in cells)
    freedom = sum(len(due) for _, due in cells) - 1
    assert freedom >= 3
    p_value = torch.special.gammaincc(torch.tensor(freedom / 2).double(), statistic / 2)
    assert p_value > 1e-6, f"chi-square {statistic:.1f} with {freedom} degrees of freedom"


def next_token_probabilities(model, tokenizer, question, temperature=1.0, top_k=None):
    """The probabilities of the first token after a question."""
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer(question)["input_ids"]])).logits[0, -1] / temperature
    if top_k is not None:
        logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
    return logits.softmax(-1)
