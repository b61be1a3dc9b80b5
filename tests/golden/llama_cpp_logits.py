"""The logits that llama.cpp computes, with keys and values cached in float32. Needs cyllama; imports nothing of Alpha.

    python tests/golden/llama_cpp_logits.py MODEL.gguf OUT.npy

reads ids [rows, length] from OUT.npy.ids.npy, and writes logits [rows, length, V].
"""

import sys

import numpy as np
from cyllama.llama import llama_cpp


class Model(llama_cpp.LlamaModel):
    n_vocab = property(lambda self: self.get_vocab().n_vocab)


def logits(path: str, ids: np.ndarray) -> np.ndarray:
    model = Model(path_model=path, params=llama_cpp.LlamaModelParams(), verbose=False)
    parameters = llama_cpp.LlamaContextParams()
    parameters.type_k = parameters.type_v = 0  # float32
    parameters.flash_attn_type = 0
    context = llama_cpp.LlamaContext(model=model, params=parameters, verbose=False)
    result = []
    for row in ids:
        context.kv_cache_clear()
        for place, token in enumerate(row):
            batch = llama_cpp.LlamaBatch(n_tokens=1, embd=0, n_seq_max=1)
            batch.add(int(token), place, [0], True)
            context.decode(batch)
            result.append(np.array(context.get_logits_ith(0), np.float32))
    return np.stack(result).reshape(*ids.shape, -1)


if __name__ == "__main__":
    model, out = sys.argv[1:]
    np.save(out, logits(model, np.load(f"{out}.ids.npy")))
