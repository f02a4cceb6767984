"""Installs cadc_jax; pyproject.toml says what it is and needs."""

import setuptools

setuptools.setup(
    # The configurations lie beside the package and travel in it.
    packages=[*setuptools.find_packages(include=["cadc_jax", "cadc_jax.*"]), "cadc_jax.configs"],
    package_dir={"cadc_jax.configs": "configs"},
    package_data={
        "cadc_jax": ["py.typed"],
        "cadc_jax.study": ["page.html"],
        "cadc_jax.data.tfds_builders.criteo_clicks": ["CITATIONS.bib", "README.md"],
    },
)
