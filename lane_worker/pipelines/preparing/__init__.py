"""From published files to a folder that a lane loads. `lane_worker.checkpoints` decides, this writes."""
