"""Memory of a rewrite does not grow with the model: measured on a checkpoint of half a gigabyte."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch

from calque.model.checkpoint import Checkpoint

from .. import tiny

MEASURED = """
    import json, sys, threading, time
    from pathlib import Path
    import numpy as np
    from scipy.sparse import eye_array
    import transformers.models.llama.modeling_llama
    from calque.merge.transplant import transplant
    from calque.model.checkpoint import Checkpoint
    from calque.vocab.map import build_map
    from calque.vocab.tokens import Tokens

    def anonymous():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    peak = 0
    def watch():
        global peak
        while True:
            peak = max(peak, anonymous())
            time.sleep(0.002)

    base = Checkpoint.open(sys.argv[1])
    tokens = Tokens.of(base.tokenizer())
    size = len(tokens)
    vocab_map = build_map(tokens, tokens, eye_array(size).tocsr(), np.zeros(size, np.uint8), ("same",),
                          fallback="mean")
    start = anonymous()
    threading.Thread(target=watch, daemon=True).start()
    out = transplant(base, vocab_map, tokens).write(Path(sys.argv[2]), text=["the house"])
    print(json.dumps({"peak": peak - start, "written": out.nbytes}))
"""
ROWS, WIDTH = 16_000, 1024


def big_tokenizer(folder):
    """The tiny tokenizer with words added up to ROWS tokens."""
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"mawu{number}" for number in range(ROWS - len(tokenizer))])
    tokenizer.save_pretrained(folder)


def measured(folder, out):
    code = [sys.executable, "-c", textwrap.dedent(MEASURED), str(folder), str(out)]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_memory_is_bounded_by_the_embedding_not_the_model(tmp_path):
    peaks, written = [], []
    for layers in (3, 16):
        folder = tiny.model(
            tmp_path / f"layers-{layers}", dtype=torch.bfloat16, vocab_size=ROWS, hidden_size=WIDTH,
            intermediate_size=4096, num_hidden_layers=layers, num_attention_heads=16, head_dim=64,
        )  # fmt: skip
        big_tokenizer(folder)
        found = measured(folder, tmp_path / f"out-{layers}")
        assert found["written"] == Checkpoint.at(folder).nbytes
        peaks.append(found["peak"])
        written.append(found["written"])
    table = 4 * ROWS * WIDTH
    assert written[0] < 0.2e9 and written[1] > 0.5e9
    assert max(peaks) < 2.5 * table + 64e6, peaks
    assert peaks[1] < peaks[0] + 64e6, peaks
