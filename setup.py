"""Builds every `ext/NAME.pyx` into `marsx._ext.NAME` (Limited API, floor 3.11: one build runs on 3.11 and newer).

Environment:
  MARS_EXT=a,b      build only these extensions (an unknown name is an error)
  MARS_BUILD=kind   release (default), debug (-O1 -g, asserts), annotate (Cython's html pages in build/cython),
                    coverage (full API, line tracing; Python 3.11 only; generated C beside the sources), asan (address
                    and undefined behaviour sanitizers, into build/asan/marsx/_ext: call build_ext without --inplace)

Generated C goes to build/cython/NAME, object files to a directory of their own: builds of different extensions may run
at the same time in one tree, builds of the same one wait for each other.
"""
from __future__ import annotations

import fcntl
import glob
import importlib.util
import os
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

os.chdir(Path(__file__).resolve().parent)

KINDS = ("release", "debug", "annotate", "coverage", "asan")
KIND = os.environ.get("MARS_BUILD") or "release"
LOCKS: list[int] = []
LIMITED_API = "0x030b0000"
WARNINGS = ["-Wall", "-Wno-unused-function", "-Wno-unused-variable", "-fvisibility=hidden"]
FLAGS = {
    "release": ["-O3", "-g0", "-ffunction-sections", "-fdata-sections"],
    "annotate": ["-O3", "-g0", "-ffunction-sections", "-fdata-sections"],
    "debug": ["-O1", "-g", "-UNDEBUG", "-fno-omit-frame-pointer"],
    "coverage": ["-O1", "-g"],
    "asan": ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
# Kinds that must not stand beside the others: where they go.
PLACE = {"asan": {"build_lib": "build/asan", "build_temp": "build/asan/temp"}}
LINK = ["-Wl,--exclude-libs,ALL", "-Wl,--gc-sections", "-Wl,-z,relro,-z,now"]
LINK_MORE = {"release": ["-s"], "annotate": ["-s"], "asan": ["-fsanitize=address,undefined"]}

# gcc 12 at -O3 turns the 128-bit code of XXH3 into code that is four times slower; without its vectoriser it is fast.
KERNEL_FLAGS = {"xxh3_": ["-fno-tree-vectorize"]}

# What an extension needs besides its own ext/NAME.pyx and ext/NAME_*.c. What is not used is dropped by the linker.
XXH3 = "ext/xxh3_*.c"
EXTRA = {
    "marssum": {"sources": [XXH3], "blosc2": True},
    "marslog": {"sources": [XXH3]},
    "marsshadow": {"sources": [XXH3]},
    "marsdirect": {"sources": [XXH3]},
    "marsdev": {"sources": [XXH3]},
    "marsinject": {"sources": [XXH3]},
    "marsscan": {"sources": [XXH3]},
    "marsreplay": {"sources": [XXH3]},
    "marscmp": {"sources": [XXH3]},
}


def blosc2_home() -> Path:
    """Directory of the installed blosc2 wheel: its header and static library are all we take from it."""
    spec = importlib.util.find_spec("blosc2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("setup.py: the package blosc2 is missing\n  run: make deps")
    home = Path(spec.submodule_search_locations[0])
    if not (home / "lib/libblosc2.a").exists():
        raise SystemExit(f"setup.py: {home}/lib/libblosc2.a is missing\n  run: make deps (it needs blosc2's wheel)")
    return home


def wanted() -> list[str]:
    """Names of the extensions to build."""
    there = sorted(Path(path).stem for path in glob.glob("ext/*.pyx"))
    chosen = [name for name in os.environ.get("MARS_EXT", "").split(",") if name]
    unknown = sorted(set(chosen) - set(there))
    if unknown:
        raise SystemExit(f"setup.py: MARS_EXT names no ext/NAME.pyx: {', '.join(unknown)}")
    return chosen or there


def extension(name: str) -> Extension:
    """The build description of one extension; its C kernels are compiled by BuildExt."""
    extra = EXTRA.get(name, {})
    include, objects, libraries = ["ext"], [], []
    if extra.get("blosc2"):
        home = blosc2_home()
        include.append(str(home / "include"))
        objects.append(str(home / "lib/libblosc2.a"))
        libraries += ["m", "dl", "pthread"]
    limited = KIND != "coverage"
    macros = [("Py_LIMITED_API", LIMITED_API)] if limited else [("CYTHON_TRACE_NOGIL", "1")]
    result = Extension(
        f"marsx._ext.{name}",
        [f"ext/{name}.pyx"],
        include_dirs=include,
        define_macros=[("_GNU_SOURCE", None), *macros],
        extra_objects=objects,
        extra_compile_args=WARNINGS + FLAGS[KIND],
        extra_link_args=LINK + LINK_MORE.get(KIND, []),
        libraries=libraries,
        depends=sorted(glob.glob("ext/*.h") + glob.glob("ext/*.pxd") + ["setup.py"]),
        py_limited_api=limited,
    )
    return result


def kernels(name: str) -> list[str]:
    """Plain C files that belong to the extension NAME."""
    patterns = [f"ext/{name}_*.c", *EXTRA.get(name, {}).get("sources", [])]
    return sorted({path for pattern in patterns for path in glob.glob(pattern)})


class BuildExt(build_ext):
    """build_ext with its own object directory per extension and own flags per C kernel."""

    def build_extensions(self) -> None:
        # A pyenv interpreter puts its own library path into what it links; ours must not look there on other hosts.
        self.compiler.linker_so = [arg for arg in self.compiler.linker_so if not arg.startswith(("-Wl,-rpath", "-L"))]
        super().build_extensions()

    def build_extension(self, ext: Extension) -> None:
        name = ext.name.rpartition(".")[2]
        sources = kernels(name)
        ext.depends = [*ext.depends, *sources, *ext.extra_objects]
        if not self.force and self.is_fresh(ext):
            return
        shared, self.build_temp = self.build_temp, os.path.join(self.build_temp, name)
        given = list(ext.extra_objects)
        try:
            ext.extra_objects = [*self.compile_kernels(ext, sources), *given]
            super().build_extension(ext)
        finally:
            self.build_temp, ext.extra_objects = shared, given

    def is_fresh(self, ext: Extension) -> bool:
        """True when the built file is newer than everything it is made of."""
        built = Path(self.get_ext_fullpath(ext.name))
        return built.exists() and all(os.path.getmtime(path) < built.stat().st_mtime
                                      for path in [*ext.sources, *ext.depends])

    def compile_kernels(self, ext: Extension, sources: list[str]) -> list[str]:
        """Object files of the C kernels."""
        objects: list[str] = []
        for source in sources:
            stem = Path(source).name
            flags = [flag for start, more in KERNEL_FLAGS.items() if stem.startswith(start) for flag in more]
            objects += self.compiler.compile(
                [source], output_dir=self.build_temp, include_dirs=ext.include_dirs, macros=[("_GNU_SOURCE", None)],
                extra_postargs=ext.extra_compile_args + flags)
        return objects


def locked(name: str) -> int:
    """Descriptor that holds the lock of one extension until this process ends."""
    Path("build").mkdir(exist_ok=True)
    fd = os.open(f"build/.{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def modules() -> list[Extension]:
    """All wanted extensions, through Cython."""
    if KIND not in KINDS:
        raise SystemExit(f"setup.py: MARS_BUILD={KIND} is not one of {', '.join(KINDS)}")
    extensions = [extension(name) for name in wanted()]
    if not extensions:
        return []
    from Cython.Build import cythonize

    directives = {"language_level": 3}
    if KIND == "coverage":
        directives["linetrace"] = True
    result = []
    for ext in extensions:
        name = ext.name.rpartition(".")[2]
        LOCKS.append(locked(name))
        result += cythonize(
            [ext],
            build_dir=None if KIND == "coverage" else f"build/cython/{name}",
            include_path=[".", "ext"],
            compiler_directives=directives,
            annotate=KIND == "annotate",
            quiet=True,
        )
    return result


setup(
    packages=find_packages(include=["marsx", "marsx.*"]),
    package_data={"marsx.monitor": ["share/*"]},
    ext_modules=modules(),
    cmdclass={"build_ext": BuildExt},
    options={"build_ext": PLACE.get(KIND, {}), **({} if KIND == "coverage" else
             {"bdist_wheel": {"py_limited_api": "cp311"}})},
)
