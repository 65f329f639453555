"""Memory of a training step of a reward model against the size of the vocabulary:
`python tests/benchmarks/memory_vs_vocabulary.py`.

Each line is a separate process with a 4-layer Llama with LoRA and batches of 32 sequences of 256 tokens with 8
labelled steps. The benchmark prints the increase of the peak resident memory during training and, for comparison, the
memory of float32 logits at every position.
"""

import resource
import subprocess
import sys

import torch


def peak(vocab_size):
    """Increase of the process' peak memory during five training steps, in megabytes."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    from erprm_trl.functional import soft_step_cross_entropy
    from erprm_trl.reward_model.prm_format import FormatTokenIds
    from erprm_trl.reward_model.step_logits import step_logits

    torch.manual_seed(0)
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=vocab_size, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4
    )
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=8, target_modules="all-linear"))
    optimizer = torch.optim.AdamW(model.parameters())
    input_ids = torch.randint(0, vocab_size, (32, 256))
    positions = torch.arange(31, 256, 32).expand(32, 8)
    mask = torch.ones_like(positions, dtype=torch.bool)
    labels = torch.rand(256)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(5):
        ids = FormatTokenIds(1, 2, 3)
        logits = step_logits(model, "lm", ids, input_ids, torch.ones_like(input_ids), positions, mask)
        soft_step_cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main():
    """Runs one process per vocabulary, because the peak memory of a process never decreases."""
    if len(sys.argv) > 1:
        print(f"{peak(int(sys.argv[1])):.0f}")
        return
    print(f"{'vocabulary':>12}{'training adds':>16}{'all logits would take':>26}")
    for vocab_size in (512, 8_192, 131_072):
        added = subprocess.run([sys.executable, __file__, str(vocab_size)], capture_output=True, text=True, check=True)
        whole = 32 * 256 * vocab_size * 4 / 2**20
        print(f"{vocab_size:>12,}{added.stdout.strip():>13} MB{whole:>23,.0f} MB")


if __name__ == "__main__":
    main()
