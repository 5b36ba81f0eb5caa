"""Trains recurrent layers that read points along snakes on the classes of five shapes.

The model is evaluated at 1, 2 and 4 times the trained number of points.

Command:  python train.py --config=configs/points.py [--config.task='shapes(order="random")']
"""

from ml_collections import ConfigDict

from configs import default

ORDERS = ('xyz', 'yzx', 'zxy', 'hilbert')


def pattern(mixer: str, orders: tuple[str, ...] = ORDERS, size: float = 0.25) -> tuple[str, ...]:
    """Layers that read points in these orders, with coordinates added before every layer."""
    layers = [f"pcm_layer({mixer}, order='{order}', size={size})" for order in orders]
    return (f'pcm() | {layers[0]}', *layers[1:])


def get_config() -> ConfigDict:
    config = default.get_config()
    config.task = 'shapes()'
    config.pattern = pattern('cheems(chunk=32, dt=0.05)')
    config.model.update(kind='encoder', layers=4, width=64, heads=4, mlp_width=128)
    config.train.update(steps=300, batch=32, length=128, min_length=128, lr=3e-3, warmup=50)
    config.train.update(log_every=50, save_every=300, eval_every=100)
    config.eval.update(lengths=(128, 256, 512), samples=512)
    return config
