"""The bare script that tasks are measured against: it calls the pipeline in its own process, and writes the video.

It has no queue, no record, no second process and no proof. `python -m tests.bench.peers.direct SETTINGS MODELS VIDEO`
reads a `Job` per line and answers each with a `Made`. The pipeline of the last job stays resident. For a job of another
model the script drops and collects the pipeline, gives its memory back, and loads the other one. An author who wants to
avoid two pipelines at once would write it so.
"""

import ctypes
import gc
import sys
import time
from pathlib import Path

import diffusers
import msgspec
import torch
import transformers

from contracts.settings import load_settings
from lane_worker.pipelines.load import load_pipeline, run_pipeline
from lane_worker.pipelines.video import write_video
from tests.bench.jobs import Job, Made


def main() -> None:
    settings, models_dir, video = map(Path, sys.argv[1:])
    torch.set_num_threads(1)  # as in the pipeline host
    for logging in (diffusers.utils.logging, transformers.utils.logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    models = load_settings(settings).catalog("tiny").models
    resident, pipeline = "", None
    for line in sys.stdin:
        begun_s = time.perf_counter()
        job = msgspec.json.decode(line, type=Job)
        load_s = 0.0
        if job.model != resident:
            pipeline = None
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            loading_s = time.perf_counter()
            pipeline = load_pipeline(models[job.model].checkpoint, models_dir, device="cpu")
            load_s = time.perf_counter() - loading_s
            resident = job.model
        running_s = time.perf_counter()
        frames = run_pipeline(pipeline, job.parameters, None, lambda _: None)
        inference_s = time.perf_counter() - running_s
        sha256 = write_video(frames, video, fps=job.parameters.fps).sha256
        made = Made(sha256=sha256, seconds=time.perf_counter() - begun_s, load_s=load_s, inference_s=inference_s)
        print(msgspec.json.encode(made).decode(), flush=True)


if __name__ == "__main__":
    main()
