"""GGUF files as the `gguf` package writes them, of tiny random models, with the logits that llama.cpp computes.

`exchange_gguf/NAME.gguf` is a model in float32, `NAME.safetensors` has `ids` [2, 12] and llama.cpp's `logits`
[2, 12, V], with keys and values cached in float32. `types.gguf` has one matrix in every type that Alpha reads, and
`types.safetensors` the matrix and what the package reads back. Rows of queries and keys are reordered here as
convert_hf_to_gguf.py of llama.cpp does. Needs gguf, cyllama and safetensors; imports nothing of Alpha.

    python tests/golden/generate_gguf.py
"""

import math
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from llama_cpp_logits import logits
from safetensors.numpy import save_file

FOLDER = Path(__file__).resolve().parent / "exchange_gguf"
WIDTH, HEADS, KV_HEADS, FEED_FORWARD, LAYERS, CONTEXT = 16, 2, 1, 24, 2, 16
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = [chr(byte) for byte in PRINTABLE] + [chr(256 + index) for index in range(256 - len(PRINTABLE))]
TOKENS = [*BYTES, "\u0120t", "th", "<think>", "<|endoftext|>"]
TYPES = {"F32": gguf.GGMLQuantizationType.F32, "F16": gguf.GGMLQuantizationType.F16,
         "BF16": gguf.GGMLQuantizationType.BF16, "Q8_0": gguf.GGMLQuantizationType.Q8_0}  # fmt: skip


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def tensors(name: str, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Random tensors by their names in GGUF. The norms' weights are around 1."""
    head, key_rows = WIDTH // HEADS, WIDTH // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (len(TOKENS), WIDTH), "output_norm.weight": (WIDTH,)}
    if name == "gpt2":
        shapes |= {"position_embd.weight": (CONTEXT, WIDTH), "output_norm.bias": (WIDTH,)}
    if name in ("qwen3", "apertus"):  # the others' heads are the embedding, which llama.cpp's apertus cannot have
        shapes["output.weight"] = (len(TOKENS), WIDTH)
    for layer in range(LAYERS):
        block = {"attn_norm.weight": (WIDTH,), "ffn_norm.weight": (WIDTH,), "attn_output.weight": (WIDTH, WIDTH),
                 "ffn_up.weight": (FEED_FORWARD, WIDTH), "ffn_down.weight": (WIDTH, FEED_FORWARD)}  # fmt: skip
        if name == "gpt2":
            block |= {"attn_qkv.weight": (3 * WIDTH, WIDTH), "attn_qkv.bias": (3 * WIDTH,)}
            block |= {f"{each}.bias": (WIDTH,) for each in ("attn_norm", "ffn_norm", "attn_output", "ffn_down")}
            block["ffn_up.bias"] = (FEED_FORWARD,)
        else:
            block |= {"attn_q.weight": (WIDTH, WIDTH), "attn_k.weight": (key_rows, WIDTH)}
            block["attn_v.weight"] = (key_rows, WIDTH)
        if name in ("llama", "qwen3"):
            block["ffn_gate.weight"] = (FEED_FORWARD, WIDTH)
        if name in ("qwen3", "apertus"):
            block |= {"attn_q_norm.weight": (head,), "attn_k_norm.weight": (head,)}
        shapes |= {f"blk.{layer}.{key}": shape for key, shape in block.items()}
    return {
        key: ((len(shape) == 1 and key.endswith("weight")) + 0.4 * draw.normal(size=shape)).astype(np.float32)
        for key, shape in shapes.items()
    }


def write_model(name: str, path: Path, draw: np.random.Generator) -> None:
    writer = gguf.GGUFWriter(path, name)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    if name == "gpt2":
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_head_count_kv(KV_HEADS)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(50000.0)
        writer.add_rope_dimension_count(WIDTH // HEADS)
    if name == "apertus":
        writer.add_xielu_alpha_n([-100.0] * LAYERS)
        writer.add_xielu_alpha_p([math.log(math.e - 1)] * LAYERS)
        writer.add_xielu_beta([0.0] * LAYERS)
        writer.add_xielu_eps([-1e-6] * LAYERS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    kinds = {"<think>": gguf.TokenType.USER_DEFINED, "<|endoftext|>": gguf.TokenType.CONTROL}
    writer.add_token_types([kinds.get(token, gguf.TokenType.NORMAL) for token in TOKENS])
    writer.add_token_merges(["\u0120 t", "t h"])
    writer.add_eos_token_id(len(TOKENS) - 1)
    for key, array in tensors(name, draw).items():
        is_rotated = name in ("llama", "arcee") and (".attn_q.weight" in key or ".attn_k.weight" in key)
        heads = HEADS if ".attn_q." in key else KV_HEADS
        writer.add_tensor(key, permuted(array, heads) if is_rotated else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_types(draw: np.random.Generator) -> None:
    matrix = draw.normal(size=(4, 64)).astype(np.float32) * np.float32(10.0) ** np.arange(-4, 4, 2)[:, None]
    matrix = matrix.astype(np.float32)
    matrix[1, :32] = 0
    matrix[2, :32] = (np.arange(32) - 16) / 16  # every other one is a half of the scale, 1/8
    matrix[2, 0] = 127 / 8
    writer = gguf.GGUFWriter(FOLDER / "types.gguf", "none")
    read_back = {"matrix": matrix}
    for name, kind in TYPES.items():
        content = matrix if name == "F32" else quantize(matrix, kind)
        writer.add_tensor(name, content, raw_dtype=kind)
        read_back[name] = np.ascontiguousarray(dequantize(content, kind), np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(read_back, FOLDER / "types.safetensors")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for seed, name in enumerate(("gpt2", "llama", "qwen3", "arcee", "apertus")):
        draw = np.random.Generator(np.random.PCG64(seed))
        write_model(name, FOLDER / f"{name}.gguf", draw)
        ids = draw.integers(0, len(TOKENS), (2, 12)).astype(np.int32)
        save_file({"ids": ids, "logits": logits(str(FOLDER / f"{name}.gguf"), ids)}, FOLDER / f"{name}.safetensors")
    write_types(np.random.Generator(np.random.PCG64(9)))


if __name__ == "__main__":
    main()
