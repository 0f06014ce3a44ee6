"""An engine that says what it is told: the text after "say:" in the prompt, one byte a token.

Words before "say:" change how: "slowly" takes 20 ms a step, "endless" repeats the text for ever,
"fail" makes the step raise, "hungry" run out of memory, "stuck" hang, "die" ends the process. Where
a grammar does not allow what it would say, it says the first token that is allowed and goes on.
"""

import os
import time

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from turbosparse.engine.config import EngineConfig
from turbosparse.engine.core import EngineCore  # noqa: F401  (what this runner is written for)
from turbosparse.engine.grammar import masks
from turbosparse.engine.messages import (
    Activity,
    AttentionInfo,
    EngineInfo,
    PredictorInfo,
    TokenLogprobs,
)
from turbosparse.engine.request import Request
from turbosparse.engine.scheduler import Sampled, Schedule

SPECIAL = ["<|im_end|>", "<|im_start|>", "<s>"]
CONTEXT = 2000
VOCAB = 300  # larger than the tokenizer's
CHAT_TEMPLATE = (
    "{% if mood %}mood: {{ mood }}\n{% endif %}"
    "{% for message in messages %}{% if message.role == 'bad' %}{{ raise_exception('bad role') }}"
    "{% endif %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer() -> Tokenizer:
    """One token a byte: every character beyond ASCII comes in parts, every stop string too."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    return tokenizer


TOKENIZER = make_tokenizer()
EOS = TOKENIZER.token_to_id("<|im_end|>")


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


Launched = tuple[Schedule, list[tuple[Request, range]]]


class EchoRunner:
    def launch(self, schedule: Schedule) -> Launched:
        prompts = [TOKENIZER.decode(item.request.token_ids) for item in schedule.items]
        if any("slowly" in p for p in prompts):
            time.sleep(0.02)
        if any("stuck" in p for p in prompts):
            time.sleep(60)
        if any("fail" in p for p in prompts):
            raise ValueError("it was told to fail")
        if any("hungry" in p for p in prompts):
            raise MemoryError("it was told to take too much")
        if any("die" in p for p in prompts):
            os._exit(3)
        return schedule, [
            (item.request, item.request.unscored(item.start, item.end)) for item in schedule.items
        ]

    def settle(self, launched: Launched) -> Sampled:
        schedule, unscored = launched
        return Sampled(
            [(i.request, *self.sample(i.request)) for i in schedule.items if i.samples],
            scored=[(r, [self.score(r, p) for p in places]) for r, places in unscored if places],
            ffn_mode="token",
            activity=Activity([0.05, 0.15], [0.2, 0.4]),
            active=[0.1 * item.num_tokens for item in schedule.items],
        )

    def score(self, request: Request, place: int) -> TokenLogprobs:
        """Of the token after a place: a number that says which place it was."""
        return TokenLogprobs(-float(place + 1), [(0, -0.25)][: request.sampling.prompt_logprobs])

    def sample(self, request: Request) -> tuple[int, TokenLogprobs | None]:
        prompt = TOKENIZER.decode(
            request.token_ids[: request.num_prompt_tokens], skip_special_tokens=False
        )
        before, _, text = prompt.rpartition("say:")
        said = ids(text.partition("<|im_end|>")[0])
        at = len(request.token_ids) - request.num_prompt_tokens
        if "endless" in before:
            at %= len(said)
        token = said[at] if at < len(said) else EOS
        if request.constraint is not None:
            token = self.allowed(request, token)
        wanted = request.sampling.logprobs
        top = [(token, -0.5), (0, -1.5), (1, float("-inf"))][:wanted]
        return token, None if wanted is None else TokenLogprobs(-0.5, top)

    def allowed(self, request: Request, token: int) -> int:
        [words] = masks([request.constraint], VOCAB)
        bits = np.unpackbits(words.view(np.uint8), bitorder="little")
        return token if bits[token] else int(bits.argmax())

    def release(self, request: Request) -> None:
        pass

    def is_fatal(self, error: Exception) -> bool:
        return False

    def is_out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, MemoryError)


def build(config: EngineConfig) -> tuple[EchoRunner, EngineInfo]:
    info = EngineInfo(
        model=config.model,
        family="echo",
        exact=True,
        approximation=None,
        device="cpu",
        dtype="float32",
        kernels={"ffn": "none"},
        num_parameters=1,
        vocab_size=VOCAB,
        max_model_len=CONTEXT,
        page_size=config.page_size,
        num_pages=config.num_pages or 1000,
        max_num_seqs=config.max_num_seqs,
        eos_token_ids=[EOS],
        sparse=True,
        predictors=PredictorInfo("low_rank", [0.0]),
        attention=AttentionInfo("full", ["full", "bound"], 512, 1.0, 64, 0),
        ffn_modes={8: "token", 64: "dense"},
    )
    return EchoRunner(), info
