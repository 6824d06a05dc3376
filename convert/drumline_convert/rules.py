"""Labels read off names, by the strict rules of a rule file (`label_rules.yml` is the default).

The file is data and explains itself; another naming habit is another file. A name says a *set* of labels:
none, one, or several, and what is not exactly one is never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from drumline.errors import ConfigError
from drumline.inputs import LARGEST_JSON_BYTES, read_regular

__all__ = ["DEFAULT_RULES", "LabelRules", "Phrase", "read_rules", "words_of"]

DEFAULT_RULES = Path(__file__).with_name("label_rules.yml")

_GAP = re.compile(r"[\W\d_]+")
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SECTIONS = {
    "labels": dict,
    "silent": list,
    "doubtful": list,
    "covers": dict,
    "folder_words": list,
    "plain_folders": list,
    "confidence": dict,
}
_CACHED_NAMES = 1 << 16

Phrase = tuple[tuple[str, ...], ...]
"""Parts that may stand anywhere in a name; the words of a part stand side by side."""


def words_of(name: str) -> tuple[str, ...]:
    """Cut a name into words, lower case: ``"HiHat_Open-03"`` → ``("hi", "hat", "open")``."""
    parts = (part for gap in _GAP.split(name) for part in _CAPITAL.split(gap))
    return tuple(part.casefold() for part in parts if part)


@dataclass(frozen=True)
class LabelRules:
    """What names say.

    Parameters
    ----------
    phrases
        (phrase, label); the label is None for a phrase that says nothing.
    covers
        Label → the finer labels that win over it.
    doubtful
        Words that cast doubt on any label of a file.
    folder_words
        Words that may stand beside a label in a folder's name.
    plain_folders
        Words of folders that name neither a label nor a kit.
    confidence
        ``label_conf`` of a corpus's metadata → weight in the training loss.
    """

    phrases: tuple[tuple[Phrase, str | None], ...]
    covers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    doubtful: frozenset[str] = frozenset()
    folder_words: frozenset[str] = frozenset()
    plain_folders: frozenset[tuple[str, ...]] = frozenset()
    confidence: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Folder names come again with every file below them.
        object.__setattr__(self, "_found", lru_cache(_CACHED_NAMES)(self._found))

    @cached_property
    def _by_first_word(self) -> dict[str, list[tuple[Phrase, str | None]]]:
        """Phrases that a name can hold, by a word that it then has: most names have none of most words."""
        found: dict[str, list[tuple[Phrase, str | None]]] = {}
        for phrase, label in self.phrases:
            for word in (phrase[0][0], phrase[0][0] + "s"):
                found.setdefault(word, []).append((phrase, label))
        return found

    @property
    def labels(self) -> tuple[str, ...]:
        """All labels that a name can say, sorted."""
        return tuple(sorted({label for _, label in self.phrases if label is not None}))

    def said_by(self, name: str) -> frozenset[str]:
        """Return the labels that a name says."""
        return self.finest(label for label, _ in self._found(name) if label is not None)

    def said_by_folder(self, name: str) -> frozenset[str]:
        """Return the labels that a folder's name says, which has to say nothing else.

        ``01 Kick Drums`` says Kick; ``Paper Moon Loops`` is a vendor.
        """
        words = words_of(name)
        told = {place for _, places in self._found(name) for place in places}
        told |= {place for place, word in enumerate(words) if word in self.folder_words}
        return self.said_by(name) if len(told) == len(words) else frozenset()

    def _found(self, name: str) -> list[tuple[str | None, frozenset[int]]]:
        """Return (label, numbers of the words that say it), less what is part of a longer phrase."""
        words = words_of(name)
        possible = (entry for word in set(words) for entry in self._by_first_word.get(word, ()))
        found = [(label, places) for phrase, label in possible for places in _places(phrase, words)]
        return [entry for entry in found if not any(entry[1] < places for _, places in found)]

    def finest(self, labels: Iterable[str]) -> frozenset[str]:
        """Return `labels` without those that cover another one of them."""
        every = frozenset(labels)
        return frozenset(label for label in every if not self.covers.get(label, frozenset()) & every)

    def decide(self, file_name: str, folders: Sequence[str]) -> frozenset[str]:
        """Return the labels that a file's name and its folders (outermost first) say together.

        Returns
        -------
        frozenset of str
            One label where the names agree; none where they say nothing; several where they contradict.
        """
        own = self.said_by(file_name)
        speaking = (said for name in reversed(folders) if (said := self.said_by_folder(name)))
        above = next(speaking, frozenset[str]())
        if not own or not above:
            return own or above
        if len(own) == 1 and own <= above:
            return own
        return self.finest(own | above)

    def doubt(self, file_name: str) -> str | None:
        """Return the word of a file's name that casts doubt on its label, or None."""
        return next((word for word in words_of(file_name) if word in self.doubtful), None)

    def is_plain(self, folder: str) -> bool:
        """Return whether a folder's name says neither a label nor a kit."""
        return words_of(folder) in self.plain_folders

    def text_before_label(self, stem: str) -> str:
        """Return what stands in a file name before the words that say its label, without separators."""
        pieces = re.split(r"[\s_.-]+", stem)
        spoken = (index for index in range(len(pieces)) if self.said_by(" ".join(pieces[: index + 1])))
        return " ".join(pieces[: next(spoken, 0)])


def _places(phrase: Phrase, words: tuple[str, ...]) -> list[frozenset[int]]:
    """Return the sets of word numbers at which a phrase is found."""
    found = []
    for part in phrase:
        starts = [start for start in range(len(words) - len(part) + 1) if _is_at(part, words, start)]
        if not starts:
            return []
        found.append([range(start, start + len(part)) for start in starts])
    return [frozenset(place for part in chosen for place in part) for chosen in product(*found)]


def _is_at(part: tuple[str, ...], words: tuple[str, ...], start: int) -> bool:
    pairs = zip(part, words[start : start + len(part)], strict=True)
    return all(word in (wanted, wanted + "s") for wanted, word in pairs)


def read_rules(path: Path = DEFAULT_RULES) -> LabelRules:
    """Read a rule file.

    Raises
    ------
    ConfigError
        When it cannot be read, or naming what in it is wrong.
    """
    try:
        value = yaml.safe_load(read_regular(path, LARGEST_JSON_BYTES))
        return _rules(value)
    except OSError as error:
        raise ConfigError(f"cannot read the label rules {str(path)!r}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"the label rules {str(path)!r} are wrong: {error}",
            f"Start from a copy of {DEFAULT_RULES.name}, which says how they are written.",
        ) from error


def _rules(value: Any) -> LabelRules:
    if not isinstance(value, dict):
        raise ValueError("they are no mapping")
    for section, content in value.items():
        if section not in _SECTIONS or not isinstance(content, _SECTIONS[section]):
            raise ValueError(f"section {section!r} is unknown or of the wrong kind")
    labels: dict[str, list[str]] = value.get("labels") or {}
    if not labels:
        raise ValueError("there is no section 'labels'")
    spoken = [(_phrase(text), label) for label, texts in labels.items() for text in texts]
    silent = [(_phrase(text), None) for text in value.get("silent", ())]
    covers = {label: frozenset(finer) for label, finer in value.get("covers", {}).items()}
    _check_covers(covers, set(labels))
    return LabelRules(
        (*spoken, *silent),
        covers,
        _words(value, "doubtful"),
        _words(value, "folder_words"),
        frozenset(words_of(str(name)) for name in value.get("plain_folders", ())),
        {str(name): float(weight) for name, weight in value.get("confidence", {}).items()},
    )


def _words(value: dict[str, Any], section: str) -> frozenset[str]:
    return frozenset(word for name in value.get(section, ()) for word in words_of(str(name)))


def _phrase(text: object) -> Phrase:
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is no text: set it in quotes")
    parts = tuple(words_of(part) for part in text.split("+"))
    if not all(parts):
        raise ValueError(f"the phrase {text!r} has a part without words")
    return parts


def _check_covers(covers: Mapping[str, frozenset[str]], labels: set[str]) -> None:
    named = set(covers).union(*covers.values())
    astray = sorted(named - labels)
    if astray:
        raise ValueError(f"'covers' names {astray[0]!r}, which is no label of the section 'labels'")
