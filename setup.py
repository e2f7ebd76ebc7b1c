"""Build the one compiled part where there is a C compiler: without it all works, a ranking takes longer. Everything else is setup.cfg's."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "recsys_batch.ranking._score_pairs",
            ["recsys_batch/ranking/_score_pairs.c"],
            # Values of 32 bytes are passed between functions that are all inlined.
            extra_compile_args=["-O3", "-Wno-psabi"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
