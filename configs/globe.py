"""Fits a network of sines on spherical harmonics to a checkerboard of 100 cells on the globe.

Command:  python train.py --config=configs/globe.py [--config.features='geo_grid()']
              [--config.field='linear()'] [--config.task='land()']
Time:     27 s of processor time; it took 5 min on two CPU cores that ten other programs used too.
Number:   accuracy 0.944 (0.937-0.950) on a lattice of 5000 places, 0.945 on one of 20000; beyond 60
          degrees of latitude 0.957 (0.938-0.970) and 0.946. eval/map.png has the map, its errors
          and the accuracy by latitude.
Paper:    reproduced small: about 0.94 for all places and 0.96 beyond 60 degrees, with 100 cells, 16
          classes, 5000 places and 1500 steps.
"""

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.model.kind = 'field'
    config.task = 'checkerboard(support=100, classes=16, samples=5000)'
    config.features = 'geo_sh(degrees=8)'
    config.field = "siren(width=64, layers=2, preset='geo')"
    config.train.update(steps=1500, batch=1024, length=5000, lr=2e-3, warmup=20)
    config.train.update(weight_decay=0.0, eval_every=500, eval_batches=4, save_every=500)
    config.train.update(log_every=100)
    config.eval.lengths = (5000, 20_000)
    return config
