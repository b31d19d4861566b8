"""What transformers says of prompts, written as `by_vllm` does; needs nothing of this project."""

import torch
from transformers import AutoModelForCausalLM

NEW = 12


def said(folder, prompts):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    tokens = torch.tensor(prompts)
    with torch.inference_mode():
        written = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=NEW,
            min_new_tokens=NEW,
        )  # fmt: skip
        logits = model(tokens).logits[:, :-1].float().log_softmax(-1)
    return {
        "continuations": written[:, tokens.shape[1] :].tolist(),
        "log_probabilities": logits.gather(-1, tokens[:, 1:, None])[..., 0].tolist(),
    }


if __name__ == "__main__":
    from answers import write_answers  # type: ignore[import-not-found]  # of this folder

    write_answers(said)
