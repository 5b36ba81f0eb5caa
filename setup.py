"""Lists what a wheel has: the package, and in its folder `installed` the configs and the notebooks,
which in the repository lie beside the package. pyproject.toml has everything else.
"""

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

CONFIGS, NOTEBOOKS = 'posenc_jax.installed.configs', 'posenc_jax.installed.notebooks'


class Build(build_py):
    """Leaves out the program that runs the notebooks of the repository."""

    def find_package_modules(self, package, package_dir):
        return [] if package == NOTEBOOKS else super().find_package_modules(package, package_dir)


setup(
    cmdclass={'build_py': Build},
    packages=[*find_packages(include=['posenc_jax*']), CONFIGS, NOTEBOOKS],
    package_dir={CONFIGS: 'configs', NOTEBOOKS: 'notebooks'},
)
