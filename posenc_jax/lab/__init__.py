"""The laboratory: models, tasks, runs, training, evaluation and analyses around the library."""
