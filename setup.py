"""Lists what a wheel has: the package, and in its folder `installed` the configs, the measured
claims, and a module of the benchmarks that sweeps import. In the repository these lie beside the
package. pyproject.toml has everything else.
"""

from setuptools import find_packages, setup

INSTALLED = 'posenc_jax.installed'
CONFIGS = find_packages(include=['configs*'])
FOLDERS = [*CONFIGS, 'docs.claims', 'benchmarks']

setup(
    packages=[
        *find_packages(include=['posenc_jax*']),
        *(f'{INSTALLED}.{name}' for name in (*CONFIGS, 'docs.claims')),
    ],
    py_modules=[f'{INSTALLED}.benchmarks.measure'],
    package_dir={f'{INSTALLED}.{name}': name.replace('.', '/') for name in FOLDERS},
)
