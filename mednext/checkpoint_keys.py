"""The names that different code gives to the same tensors of a MedNeXt, brought to the official ones.

The official repository and this package share their names. MONAI's ``MedNeXt`` has lists in the place of numbered
attributes and counts the decoder from its coarsest level.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["KeyMap", "is_deep_head", "is_head"]

_STEM = re.compile(r"^(|.*\.)stem\.weight$")
_FIRST_BLOCK = {"official": "enc_block_0.0.conv1.weight", "MONAI": "enc_stages.0.0.conv1.weight"}
_MONAI_LIST = re.compile(r"^(enc_stages|down_blocks|up_blocks|dec_stages|out_blocks)\.(\d+)\.(.*)$")
_HEAD = re.compile(r"^out_(\d+)\.")


@dataclass(frozen=True)
class KeyMap:
    """How the keys of one state dict name the network's tensors.

    ``naming`` is "official" or "MONAI", ``prefix`` what a wrapper put in front of each name ("module.", "_orig_mod."),
    ``keys`` leads from official names to keys, and ``others`` are the keys without the prefix: not the network's.
    """

    naming: str
    prefix: str
    keys: dict[str, str]
    others: tuple[str, ...]

    @classmethod
    def of(cls, source: str, keys: Iterable[str]) -> KeyMap:
        """The map of a state dict with these ``keys``; ``source`` names it in the error where it is no MedNeXt's."""
        keys = list(keys)
        prefixes = [match[1] for key in keys if (match := _STEM.match(key))]
        if len(prefixes) > 1:
            raise ValueError(
                f"{source} holds {len(prefixes)} networks, under {', '.join(map(repr, prefixes))}: "
                "pass a dict with the keys of one"
            )
        prefix = prefixes[0] if prefixes else ""
        inner = [key.removeprefix(prefix) for key in keys if key.startswith(prefix)]
        naming = next((name for name, first in _FIRST_BLOCK.items() if prefixes and first in inner), None)
        if naming is None:
            raise ValueError(
                f"{source} is not the state dict of a MedNeXt: expected 'stem.weight' and one of "
                f"{', '.join(map(repr, _FIRST_BLOCK.values()))}, perhaps behind a prefix, but its keys begin with "
                f"{', '.join(map(repr, keys[:3])) or 'none at all'}"
            )
        official = _official_from_monai(inner) if naming == "MONAI" else inner
        others = tuple(key for key in keys if not key.startswith(prefix))
        return cls(naming, prefix, {name: prefix + key for name, key in zip(official, inner, strict=True)}, others)


def is_head(name: str) -> bool:
    """Whether an official name belongs to a segmentation head."""
    return _HEAD.match(name) is not None


def is_deep_head(name: str) -> bool:
    """Whether an official name belongs to a head that only deep supervision uses."""
    return is_head(name) and not name.startswith("out_0.")


def _official_from_monai(keys: list[str]) -> list[str]:
    matches = {key: _MONAI_LIST.match(key) for key in keys}
    levels = 1 + max(int(match[2]) for match in matches.values() if match and match[1] == "enc_stages")

    def rename(key: str) -> str:
        key_match = matches[key]
        if key_match is None:
            return key.replace(".global_resp_", ".grn_")
        part, index, rest = key_match[1], int(key_match[2]), key_match[3]
        renamed = {
            "enc_stages": f"enc_block_{index}",
            "down_blocks": f"down_{index}",
            "up_blocks": f"up_{levels - 1 - index}",
            "dec_stages": f"dec_block_{levels - 1 - index}",
            "out_blocks": f"out_{levels - index}",
        }[part]
        return f"{renamed}.{rest}".replace(".global_resp_", ".grn_")

    return [rename(key) for key in keys]
