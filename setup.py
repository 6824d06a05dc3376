"""What setup.cfg cannot say: the compiled part, which is left out where no compiler is at hand."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "drumline._spectra",
            ["engine/drumline/_spectra.c"],
            depends=["engine/drumline/_spectra_frames.h"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"],
            py_limited_api=True,
            optional=True,
        )
    ]
)
