"""What setup.cfg cannot say: the compiled parts, which are left out where no compiler is at hand."""

from setuptools import Extension, setup


def kernel(name: str, *headers: str) -> Extension:
    """Return one compiled part."""
    return Extension(
        f"drumline.{name}",
        [f"engine/drumline/{name}.c"],
        depends=[f"engine/drumline/{header}" for header in headers],
        define_macros=[("Py_LIMITED_API", "0x030B0000")],
        extra_compile_args=["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"],
        py_limited_api=True,
        optional=True,
    )


setup(
    ext_modules=[
        kernel("_spectra", "_spectra_frames.h"),
        kernel("_pcm"),
        kernel("_listing"),
        kernel("_records"),
    ]
)
