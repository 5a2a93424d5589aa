"""Starts llama.cpp's OpenAI-compatible server on loopback, from Python, for `generate`, `score` and studies.

    pip install xllamacpp
    python -m scripts.serve_gguf model.gguf --port 8080 --in-parallel 4

Prints its address, then serves until it is ended. `--context-tokens` is the context length of each request. `--exact`
turns off what llama.cpp computes in float16 (flash attention, the cache), so that it agrees with float32 to 1e-5.
"""

import argparse
import os
import sys
import threading


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--context-tokens", type=int, default=2048)
    parser.add_argument("--in-parallel", type=int, default=2, help="requests worked on at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--until-input-ends", action="store_true", help="never outlive who started it with a pipe")
    options = parser.parse_args()
    address_file = os.dup(1)
    os.dup2(2, 1)  # llama.cpp logs to standard output too, which is to hold the address alone
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.n_ctx, params.n_parallel = options.context_tokens * options.in_parallel, options.in_parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.port, params.fit_params, params.ui = options.port, False, False
    if options.exact:
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.sampling.seed = 7
    server = xllamacpp.Server(params)
    os.write(address_file, f"{server.listening_address}\n".encode())
    if options.until_input_ends:
        sys.stdin.read()
    else:
        threading.Event().wait()


if __name__ == "__main__":
    main()
