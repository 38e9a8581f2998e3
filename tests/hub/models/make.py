"""Make the small models that lie beside this file.

pip install -c tests/requirements.txt -r tests/requirements-torch.txt
python -m tests.hub.models.make [FOLDER]

A Qwen3 in two shards, and a draft model of one layer with the same tokenizer. They are trained on
two sentences until the next token is never a close call, so that they say the same on
any machine. Made again, on the same processor and with the same versions, they are the same bytes.
"""

import sys
from pathlib import Path

import torch
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from tests.hub.models import SENTENCES

CARD = """# {name}

A small model for rehearsals, which knows two sentences. Made by `tests/hub/models/make.py`.
"""


def make_tokenizer() -> Qwen2Tokenizer:
    """Train a byte-level BPE, which is what Qwen3 has: it can encode any text."""
    english, chinese = SENTENCES
    texts = [english, *chinese]  # a token for each word, and for each character
    return Qwen2Tokenizer().train_new_from_iterator(texts, vocab_size=400, show_progress=False)


def make_model(tokenizer: Qwen2Tokenizer, layers: int) -> Qwen3ForCausalLM:
    """Make a model of `layers` layers that completes each of the sentences and then ends."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        head_dim=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    train(model, [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in SENTENCES])
    return model.to(torch.bfloat16)


def train(model: Qwen3ForCausalLM, texts: list[list[int]]) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    batches = [torch.tensor([tokens]) for tokens in texts]
    for _ in range(200):
        loss = sum(model(batch, labels=batch).loss for batch in batches)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def save(folder: Path, model: Qwen3ForCausalLM, tokenizer: Qwen2Tokenizer, shard: str) -> None:
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(CARD.format(name=folder.name))


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    place = Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent
    tokenizer = make_tokenizer()
    save(place / "qwen3", make_model(tokenizer, 2), tokenizer, "40KB")
    save(place / "draft", make_model(tokenizer, 1), tokenizer, "1GB")


if __name__ == "__main__":
    main()
