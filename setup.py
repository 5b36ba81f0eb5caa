"""Lists what a wheel has: the package, and in its folder `installed` the configs, which in the
repository lie beside the package. pyproject.toml has everything else.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=['posenc_jax*']), 'posenc_jax.installed.configs'],
    package_dir={'posenc_jax.installed.configs': 'configs'},
)
