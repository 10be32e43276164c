"""Packaging of metalit: everything that varies is read from settings.ini, which nbdev reads too."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

settings = ConfigParser(delimiters=["="])
settings.read("settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]

readme = Path("README.md")

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    keywords=cfg["keywords"].split(),
    license_expression="Apache-2.0",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=" + cfg["min_python"],
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    package_data={cfg["lib_path"]: ["py.typed", "widgets/js/*.js", "widgets/data/*"]},
    install_requires=cfg["requirements"].split(),
    extras_require={
        "dev": cfg["dev_requirements"].split(),
        "site:python_version>='3.11'": cfg["site_requirements"].split(),
        "bench": cfg["bench_requirements"].split(),
        "data": cfg["data_requirements"].split(),
        "design": cfg["design_requirements"].split(),
        "widgets": cfg["widgets_requirements"].split(),
        "tensorboard": cfg["tensorboard_requirements"].split(),
    },
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        # nbdev finds the names of a library through this entry, to link them in the documentation.
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
    zip_safe=False,
)
