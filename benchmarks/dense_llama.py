"""A small dense Llama trained from text in minutes: something for `turbosparse sparsify` to try."""

import argparse
import itertools
import math
import time
from pathlib import Path

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer

from turbosparse.models.tools.mix import Encoder, Rows, read_documents, read_mix
from turbosparse.models.tools.recovery import next_token_loss

EOS = "</s>"


def train_tokenizer(out: Path, sources, vocab: int) -> None:
    tokenizer = ByteLevelBPETokenizer()
    texts = itertools.chain.from_iterable(read_documents(source.path) for source in sources)
    tokenizer.train_from_iterator(
        texts, vocab, special_tokens=[EOS], show_progress=False, min_frequency=2
    )
    tokenizer.save(str(out / "tokenizer.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="as of turbosparse sparsify")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--neurons", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=16, help="of a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    arguments = parser.parse_args()
    sources = read_mix(arguments.data)
    arguments.out.mkdir(parents=True)
    train_tokenizer(arguments.out, sources, arguments.vocab)
    config = transformers.LlamaConfig(
        hidden_size=arguments.hidden,
        num_hidden_layers=arguments.layers,
        intermediate_size=arguments.neurons,
        vocab_size=arguments.vocab,
        num_attention_heads=arguments.hidden // 32,
        num_key_value_heads=arguments.hidden // 64,
        max_position_embeddings=4 * arguments.length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)
    rows = Rows(sources, Encoder(arguments.out, 0, arguments.vocab), arguments.length, seed=0)
    started, step = time.perf_counter(), 0
    while (done := (time.perf_counter() - started) / 60 / arguments.minutes) < 1:
        rate = arguments.learning_rate * min(1, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))
        ids = torch.tensor(list(itertools.islice(rows, arguments.rows)))
        loss = next_token_loss(model(input_ids=ids).logits, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step:5}  loss {loss.item():.4f}  {done:.0%}", flush=True)
        step += 1
    model.save_pretrained(arguments.out)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    tokens = step * arguments.rows * arguments.length
    print(f"{parameters:.1f} M parameters, {tokens} tokens, last loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
