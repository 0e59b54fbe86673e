"""The side of lm-eval in `choices.py`, run by the interpreter that has it; loading is not timed."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    model, task, folder, batch, out = sys.argv[1:]
    os.chdir(folder)
    import lm_eval  # pyright: ignore
    import torch
    from lm_eval.models.huggingface import HFLM  # pyright: ignore
    from lm_eval.tasks import TaskManager  # pyright: ignore

    lm: Any = HFLM(pretrained=model, dtype="float32", device="cpu", batch_size=int(batch))
    manager = TaskManager(include_path=".", include_defaults=False)
    wall, cpu = time.perf_counter(), time.process_time()
    found: Any = lm_eval.simple_evaluate(
        model=lm, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=True
    )
    seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    likely = {
        sample["doc"]["id"]: [float(response[0]) for response in sample["filtered_resps"]]
        for sample in found["samples"][task]
    }
    about = {"version": lm_eval.__version__, "threads": torch.get_num_threads()}
    with open(out, "w", encoding="utf-8") as stream:
        json.dump({**seconds, **about, "likely": likely}, stream)


if __name__ == "__main__":
    main()
