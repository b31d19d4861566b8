"""Serve folders by vLLM and write what it says of prompts; needs vLLM and nothing of this project.

    python by_vllm.py prompts.json FOLDER…

Prompts are rows of tokens. A line of JSON a folder: greedy continuations, and log-probabilities of the
prompts' tokens but the first, or the error.
"""

import os

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

NEW = 12


def said(folder, prompts):
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    served = LLM(
        model=folder, model_impl="transformers", trust_remote_code=True, dtype="float32",
        enforce_eager=True, max_model_len=256, max_num_seqs=len(prompts), disable_log_stats=True,
    )  # fmt: skip
    asked = SamplingParams(temperature=0, min_tokens=NEW, max_tokens=NEW, prompt_logprobs=0)
    found = served.generate([{"prompt_token_ids": row} for row in prompts], asked, use_tqdm=False)
    return {
        "continuations": [list(each.outputs[0].token_ids) for each in found],
        "log_probabilities": [
            [
                by_token[token].logprob
                for by_token, token in zip(each.prompt_logprobs[1:], row[1:], strict=True)
            ]
            for each, row in zip(found, prompts, strict=True)
        ],
    }


if __name__ == "__main__":
    from answers import write_answers  # type: ignore[import-not-found]  # of this folder

    write_answers(said)
