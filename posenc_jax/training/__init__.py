"""Training: configs, the step, checkpoints, the loop. Nothing here is needed to use an encoding."""
