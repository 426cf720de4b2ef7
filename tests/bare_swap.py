"""The bare script that `make swap` is measured against: drop the pipeline, load the other one, run it, write the video.

No proof, no second process, no worker. Reads the name of a model per line, answers with the seconds it took.
"""

import ctypes
import gc
import sys
import time
from pathlib import Path

import torch

from contracts.settings import load_settings
from lane_worker.pipelines.load import load_pipeline, run_pipeline
from lane_worker.pipelines.video import write_video
from tests.heavy import heavy_models, parameters_of


def main() -> None:
    folder, video = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    models = heavy_models(load_settings().catalog("tiny"), folder)
    pipeline = None
    for line in sys.stdin:
        entry = models[line.strip()]
        begun_s = time.perf_counter()
        pipeline = None
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        pipeline = load_pipeline(entry.checkpoint, folder, device="cpu")
        parameters = parameters_of(entry)
        frames = run_pipeline(pipeline, parameters, None, lambda _: None)
        write_video(frames, video, fps=parameters.fps)
        print(time.perf_counter() - begun_s, flush=True)


if __name__ == "__main__":
    main()
