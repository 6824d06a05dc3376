"""Names as sample vendors, samplers and years of backups leave them: packs, files, clutter, accidents."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

__all__ = ["CLUTTER", "ODD_NAMES", "Pack", "make_pack"]

_VENDORS = (
    "Volt & Vinyl", "Nordlys Audio", "Brass Monkey Samples", "Cellar Door Sound", "Tape_Hiss_Collective",
    "KRACH!", "Ostinato Labs", "Paper Moon Loops", "808 Garage", "Club Tropicana FX", "Süd-Ton",
    "Dusty Crates Co.", "MPC Heritage", "Low End Theory", "Rue des Tambours", "Sine Language",
    "Gravel Pit Audio", "Moth & Flame",
)  # fmt: skip
_FIRST = (
    "Analog", "Dusty", "Broken", "Golden", "Midnight", "Lo-Fi", "Modular", "Warehouse", "Organic", "Cassette",
    "Neon", "Vintage", "Concrete", "Velvet", "Digital", "Tropical", "Frozen", "Heavy", "Hollow", "Electric",
)  # fmt: skip
_SECOND = (
    "Drums", "Machines", "Breaks", "Grit", "Percussion", "Rituals", "Kits", "Knock", "Circuits", "Beats",
    "Tape Sessions", "Foundations", "One Shots", "Artifacts", "Pulse", "Rooms",
)  # fmt: skip

_FOLDERS = {
    "Kick": ("Kicks", "BD", "01 Kick Drums", "Bass Drum"),
    "Snare": ("Snares", "SD", "02 Snares", "Snare Drum"),
    "Rim": ("Rims", "RS", "Sidesticks", "Rimshots"),
    "HihatClosed": ("Hats/Closed", "CH", "Closed Hats", "Hi-Hats"),
    "HihatOpen": ("Hats/Open", "OH", "Open Hats", "Hi-Hats"),
    "TomLow": ("Toms", "Toms/Low", "LT", "Tom"),
    "TomMid": ("Toms", "Toms/Mid", "MT", "Tom"),
    "TomHigh": ("Toms", "Toms/High", "HT", "Tom"),
    "Crash": ("Cymbals", "Crashes", "CR", "Cymbals/Crash"),
    "Ride": ("Cymbals", "Rides", "RD", "Cymbals/Ride"),
    "Clap": ("Claps", "CP", "Claps & Snaps", "Clap"),
    "Cowbell": ("Perc", "Percussion", "CB", "Bells"),
    "Shaker": ("Shakers", "Perc", "MA", "Percussion"),
    "Synth": ("Synth Shots", "Tonal", "Keys", "Stabs"),
}
_WORDS = {
    "Kick": ("Kick", "BD", "Kik", "BassDrum"),
    "Snare": ("Snare", "SD", "Snr", "SN"),
    "Rim": ("Rim", "Rimshot", "RS", "SideStick"),
    "HihatClosed": ("CHH", "ClosedHat", "HH Closed", "hat"),
    "HihatOpen": ("OHH", "OpenHat", "HH Open", "hat open"),
    "TomLow": ("TomLow", "LT", "Floor Tom", "tom3"),
    "TomMid": ("TomMid", "MT", "Mid Tom", "tom2"),
    "TomHigh": ("TomHi", "HT", "High Tom", "tom1"),
    "Crash": ("Crash", "CR", "Cym Crash", "crash cymbal"),
    "Ride": ("Ride", "RD", "Cym Ride", "ride cymbal"),
    "Clap": ("Clap", "CP", "Clp", "handclap"),
    "Cowbell": ("Cowbell", "CB", "Bell", "cow"),
    "Shaker": ("Shaker", "Maracas", "Shk", "cabasa"),
    "Synth": ("Stab", "Note", "Keys", "Synth"),
}
_ADJECTIVES = (
    "Deep",
    "Tight",
    "Fat",
    "Crunch",
    "Room",
    "Dry",
    "Punchy",
    "Soft",
    "Hard",
    "Vinyl",
    "Big",
    "Short",
)
_KEYS = ("C", "C#", "D", "Eb", "F", "F#", "G", "A", "Bb")
_SHELVES = ("", "", "Drums", "One Shots", "WAV/Drums", "Samples/One-Shots/Drums", "24bit")

ODD_NAMES: tuple[bytes, ...] = (
    b"-rf kick",
    b"snare\nsecond line",
    b"Gro\xdfe Trommel \xfc",
    "🥁 fat snare 🔥".encode(),
    "Caisse claire été".encode(),
    "Be\u0301be\u0301 cloche".encode(),
    b"x" * 236 + b"",
    b"  two  spaces before",
    "スネア 03".encode(),
    b"kick.wav.final (2)",
    b"$(echo hat) `ls` & ; 'q' \"qq\"",
    b"back\\slash",
    b"tab\tand\rreturn",
    b"100% %s %d {}",
    "טום נמוך".encode(),
    b"CON",
    b"nul .",
    b"Same Name",
    b"same name",
    b"\xff\xfe\x80",
)
"""File names that have broken programs, without their suffix."""

CLUTTER: tuple[tuple[bytes, bytes], ...] = (
    (b"readme.txt", b"Thanks for buying! All samples are royalty free.\r\n"),
    (b"pack.nfo", b"\xdb\xdb\xb2\xb1 DRUMZ \xb1\xb2\xdb\xdb\r\n"),
    (b".DS_Store", b"\0\0\0\1Bud1" + b"\0" * 120),
    (b"Thumbs.db", b"\xd0\xcf\x11\xe0" + b"\0" * 60),
    (b"cover.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF" + b"\0" * 40 + b"\xff\xd9"),
    (b"kit.sfz", b"<region> sample=Kick 01.wav key=36\n"),
    (b"desktop.ini", b"[.ShellClassInfo]\r\n"),
    (b"Kick 01.wav.asd", b"\0" * 90),
)
"""What lies beside the samples: (name, content)."""


@dataclass(slots=True)
class Pack:
    """One product of one vendor: how its folders and files are named.

    Parameters
    ----------
    folder
        Path of the pack in the archive.
    sorted_by_label
        Whether each instrument has a folder of its own.
    style
        Which of the ways to name files it keeps to.
    """

    folder: str
    sorted_by_label: bool
    style: int
    made: int = 0

    def next_path(self, label: str, suffix: str, random: Random) -> bytes:
        """Return the relative path of the pack's next file; no two are equal, also when case is ignored."""
        self.made += 1
        folder = self.folder
        if self.sorted_by_label:
            folder = f"{folder}/{_FOLDERS[label][self.style % 4]}"
        if random.random() < 0.04:
            suffix = suffix.upper()
        return f"{folder}/{self._name(label, random)}{suffix}".encode()

    def _name(self, label: str, random: Random) -> str:
        word, number = _WORDS[label][self.style % 4], self.made
        flavour = random.choice(_ADJECTIVES)
        match self.style:
            case 0:
                return f"{word} {number:02d}"
            case 1:
                return f"{word}_{flavour}_{number:03d}"
            case 2:
                return f"{word.upper()}{number:04d}"
            case 3:
                return f"{self.folder[:2].strip()}_{word}_{flavour}_{random.choice(_KEYS)}_{number}"
            case 4:
                return f"{number:05d}"
            case 5:
                return f"{number:03d}-{word} ({flavour}) [{random.randrange(70, 175)}bpm]"
            case _:
                return f"{word.lower()} v{random.randrange(1, 128)} #{number}"


def make_pack(number: int, random: Random) -> Pack:
    """Invent the pack with this number; no two packs of one archive share a folder."""
    title = f"{random.choice(_FIRST)} {random.choice(_SECOND)}"
    volume = f"Vol. {number + 1}" if random.random() < 0.6 else f"[{number + 1:03d}]"
    shelf = random.choice(_SHELVES)
    folder = f"{random.choice(_VENDORS)}/{title} {volume}" + (f"/{shelf}" if shelf else "")
    return Pack(folder, random.random() < 0.75, random.randrange(7))
