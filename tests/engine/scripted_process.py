"""What the engine process builds in these tests: the scripted runner, and ways to go wrong."""

import os
import time

from scripted import EOS, ScriptedRunner

from turbosparse.engine.config import EngineConfig
from turbosparse.engine.messages import EngineInfo


class SlowRunner(ScriptedRunner):
    """Steps take 2 ms; a token 13 in the prompt raises, 44 hangs, 66 kills the process."""

    def launch(self, schedule):
        time.sleep(0.002)
        tokens = {t for item in schedule.items for t in item.request.token_ids[:3]}
        if 66 in tokens:
            os._exit(7)
        if 44 in tokens:
            time.sleep(60)
        if 13 in tokens:
            raise ValueError("thirteen")
        return super().launch(schedule)


def info(config: EngineConfig) -> EngineInfo:
    return EngineInfo(
        model=config.model,
        family="scripted",
        exact=True,
        approximation=None,
        device="cpu",
        dtype="float32",
        kernels={},
        num_parameters=0,
        vocab_size=1000,
        max_model_len=4000,
        page_size=config.page_size,
        num_pages=2000,
        max_num_seqs=config.max_num_seqs,
        eos_token_ids=[EOS],
    )


def build(config: EngineConfig):
    return SlowRunner(config.page_size, config.max_num_seqs), info(config)


def refuse(config: EngineConfig):
    raise ValueError(f"{config.model} is no model")


def crash(config: EngineConfig):
    os._exit(9)
