"""The options of conf/ go into the installed package as harness/conf; all else is in pyproject.toml."""

from setuptools import find_namespace_packages, find_packages, setup

groups = (f"harness.conf.{one}" for one in find_namespace_packages("conf"))
setup(
    packages=[*find_packages(include=["harness*", "analysis*"]), "harness.conf", *groups],
    package_dir={"harness.conf": "conf"},
)
