"""The TOSA specification string: version, profiles, extensions and level.

`TOSA-1.0+INT+int16` reads: version 1.0, integer profile, int16 extension, level 8K. The spelling is that of
ExecuTorch's Arm backend (`TOSA-1.00+INT`, extensions in lower case, `u55`-like targets are not known here);
case does not matter. Profiles and extensions: specification section 1.4; levels: section 1.5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tosaic.errors import SpecError

PROFILES = ("INT", "FP")
# extension -> the profile that it belongs to (specification, table "Profile extensions")
EXTENSIONS = {
    "int16": ("INT",),
    "int4": ("INT",),
    "doubleround": ("INT",),
    "inexactround": ("INT",),
    "bf16": ("FP",),
    "fp8e4m3": ("FP",),
    "fp8e5m2": ("FP",),
    "fft": ("FP",),
    "variable": ("INT", "FP"),
    "cf": ("INT", "FP"),
    "dynamic": ("INT", "FP"),
}


@dataclass(frozen=True)
class Level:
    """Limits that every implementation of a level supports (specification section 1.5)."""

    name: str
    max_rank: int
    max_kernel: int
    max_stride: int
    max_scale: int
    max_log2_size: int
    max_tensor_list_size: int


LEVELS = {
    "8K": Level("8K", 6, 8192, 8192, 256, 31, 64),
    "NONE": Level("NONE", 32, 2**31 - 1, 2**31 - 1, 2048, 63, 256),
}


@dataclass(frozen=True)
class Spec:
    """A parsed specification string.

    Attributes:
        profiles: subset of {"INT", "FP"}.
        extensions: subset of `EXTENSIONS`.
        level: the limits that operators must keep.
    """

    profiles: frozenset[str]
    extensions: frozenset[str] = frozenset()
    level: Level = LEVELS["8K"]

    @staticmethod
    def parse(text: str) -> Spec:
        """Parse e.g. `TOSA-1.0+INT+FP+int16`.

        Raises:
            SpecError: the text is no specification string; the message lists what is known.
        """
        head, *parts = text.strip().split("+")
        version = re.fullmatch(r"TOSA-(\d+)\.(\d+)(\.\d+)?", head.strip(), re.IGNORECASE)
        if version is None:
            raise SpecError(f"'{text}' is not a TOSA specification string", remedy="write it like TOSA-1.0+INT+int16")
        if (int(version[1]), int(version[2])) != (1, 0):
            raise SpecError(f"'{text}': version {version[1]}.{version[2]} is not supported", remedy="use TOSA-1.0")
        profiles, extensions, level = set(), set(), LEVELS["8K"]
        for part in parts:
            word = part.strip()
            if word.upper() in PROFILES:
                profiles.add(word.upper())
            elif word.lower() in EXTENSIONS:
                extensions.add(word.lower())
            elif word.upper() in ("8K", "NONE"):
                level = LEVELS[word.upper()]
            else:
                known = ", ".join((*PROFILES, *EXTENSIONS, "8k", "none"))
                raise SpecError(f"'{text}': unknown part '{word}'", remedy=f"known are {known}")
        if not profiles:
            raise SpecError(f"'{text}' names no profile", remedy="add +INT, +FP or both")
        for extension in sorted(extensions):
            if not profiles & set(EXTENSIONS[extension]):
                need = " or ".join(EXTENSIONS[extension])
                raise SpecError(f"'{text}': extension {extension} belongs to profile {need}", remedy=f"add +{need}")
        return Spec(frozenset(profiles), frozenset(extensions), level)

    def holds(self, requirement: str) -> bool:
        """Whether a profile or extension (`A|B`: one of them, `A&B`: both) is part of this specification."""
        have = self.profiles | self.extensions
        return any(all(r in have for r in either.split("&")) for either in requirement.split("|"))

    def plus(self, *requirements: str) -> Spec:
        """This specification with profiles or extensions added, and a profile that an extension belongs to."""
        wanted = set(requirements)
        profiles, extensions = self.profiles | (wanted & set(PROFILES)), self.extensions | (wanted & set(EXTENSIONS))
        for extension in sorted(extensions):
            if not profiles & set(EXTENSIONS[extension]):
                profiles |= {EXTENSIONS[extension][0]}
        return Spec(frozenset(profiles), frozenset(extensions), self.level)

    def __str__(self) -> str:
        parts = ["TOSA-1.0"]
        parts += [p for p in PROFILES if p in self.profiles]
        parts += [e for e in EXTENSIONS if e in self.extensions]
        if self.level.name != "8K":
            parts.append(self.level.name.lower())
        return "+".join(parts)
