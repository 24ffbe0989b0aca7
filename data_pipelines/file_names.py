"""What a file contains, and whose it is, as far as its name says.

BIDS names (`sub-01_acq-seg_FLAIR.nii.gz`) are read by their entities and suffix; in other names
(`BraTS19_CBICA_1_t1ce.nii.gz`, `p01_T1_lesion.nii`) whole words count, never parts of words.
"""

from __future__ import annotations

import enum
import os
import re
import unicodedata
from pathlib import Path

from data_pipelines.volume_io import strip_ending


class Kind(enum.Enum):
    """What a file contains by its name."""

    T1W = 'T1w'
    UNNAMED = 'an image that its name does not describe'
    OTHER = 'an image of another contrast'
    LESION = 'a lesion mask'
    ANATOMY = 'a mask or label map of anatomy'
    RESULT = 'a result of fluidjax'


# Images of a FreeSurfer subject (its folder `mri`) that can be its scan, the best one first.
FREESURFER_SCANS = ('norm.mgz', 'brainmask.mgz', 'T1.mgz', 'nu.mgz', 'orig.mgz')
# Files that `fluidjax predict` writes, of this and of former versions.
_RESULT = re.compile(
    r'_desc-(healthy_(T1w|T2w|FLAIR)|(anomaly|fused)_(mask|probseg|map)|probability_probseg'
    r'|uncertainty_(probseg|map))$'
)
_BIDS_NAME = re.compile(r'sub-[A-Za-z0-9+]+(_[A-Za-z]+-[A-Za-z0-9+]+)*(_[A-Za-z0-9]+)?$')
_MASK_SUFFIXES = {'mask', 'dseg', 'probseg', 'mseg', 'seg', 'roi', 'label', 'lesion', 'synthseg'}

_T1W = re.compile(r'(3d)?t1(w|n|wi|3d)?(mprage|mpr|spgr|fspgr|bravo)?|mprage|mpr|fspgr|spgr|bravo')
_CONTRAST_AGENT = re.compile(
    r't1(w|wi)?(c|ce|gd|gad|post|postcontrast|contrast|km|cm)|ce|gd|gad|gadolinium|postcontrast'
)
_OTHER = re.compile(
    r'(3d)?t2\w*|\w*flair|pdw|pdt2|inplanet[12]|dwi|adc|dti|trace|tracew|b[0-9]{3,4}|bold|epi|asl'
    r'|cbf|cbv|mtt|tmax|swi|swan|qsm|phase|tof|mra|angio|cta|fieldmap|fmap|phasediff'
    r'|(magnitude|phase)[12]|sbref|m0scan|[tr][12]s?(star)?map|mtsat|mtr|chimap|s0map|m0map|t1rho'
    r'|mp2rage|unit1|irt1|vfa|megre|mese'
)
# Like b-values and T2 images, but at the beginning of a name (B101_T1, T201_lesion) subjects.
_SUBJECT_AT_START = re.compile(r'b[0-9]{3,4}|t2[0-9]{2,}')
# Initials and groups as well (PD_001 has Parkinson's disease), so that they count at the end only.
_OTHER_AT_END = re.compile(r'pd|fa|md|rd|ad|mag|uni|ct|dir|b0|pet|suv')
_MASK = re.compile(
    r'(brain|head|skull|tissue|cortex|lesions?|tumou?r|stroke|infarct|glioma|wmh|ms|wm|gm|csf|t1w?'
    r'|t2w?|flair|manual|auto|gt|binary|bin|final|deface|prob|[adm])?'
    r'(masks?|segs?|segmentations?|segmented|labels?|labelmap|rois?|lesions?)[0-9]?'
    r'|aseg|aparc|synthseg|wmparc|ribbon|wmh|parcellation'
)
# At the end of a name these are masks; elsewhere they say what the patients have.
_MASK_AT_END = re.compile(r'tumou?rs?|infarcts?|gtv|ctv')
_ANATOMY = re.compile(
    r'brain|skull|head|aseg|aparc|synthseg|wmparc|tissue|ribbon|cort|[dm]seg|probseg|deface|parcellation'
    r'|ventric|hippocamp|thalam|(?<![a-z])(gm|wm|csf)(?![a-z])'
)
_DISEASE = re.compile(
    r'lesion|tumou?r|stroke|infarct|glioma|wmh|metasta|ha?emorr|ha?ematoma|o?edema|abscess'
    r'|anomal|abnormal|patholog|gtv|ctv'
)
# Words that describe the content of a file, not the subject.
_DESCRIPTIVE = re.compile(
    r'brain|masked|stripped|skullstripped|bet|manual|raw|orig|native|n4|registered|mni|norm'
    r'|normali[sz]ed|resampled|anat|image|img|final'
)


def contrast_named(path: str | os.PathLike[str]) -> str:
    """The contrast of a file of another one than T1w, 't2w', 'flair' or 't1ce'; '' for others."""
    kind, word = kind_of(path)
    word = word.lower()
    if kind != Kind.OTHER:
        return ''
    if word.startswith('ce-') or _CONTRAST_AGENT.fullmatch(word):
        return 't1ce'
    if word.endswith('flair'):
        return 'flair'
    return 't2w' if re.fullmatch(r'(3d)?t2(w|n|wi|3d)?', word) else ''


def contrast_in_name(path: str | os.PathLike[str]) -> str:
    """The contrast that a file's name says, T1w too; '' if it says none."""
    return 't1w' if kind_of(path)[0] == Kind.T1W else contrast_named(path)


def kind_of(path: str | os.PathLike[str]) -> tuple[Kind, str]:
    """What a file contains by its name, and the word that says so ('' if none does)."""
    name = strip_ending(path)
    if _RESULT.search(name):
        return Kind.RESULT, name.rpartition('_desc-')[2]
    if _BIDS_NAME.match(name):
        return _by_suffix(name)
    return _by_words(name)


def is_bids_name(path: str | os.PathLike[str]) -> bool:
    """Whether a name has a subject, entities and a suffix, as BIDS wants it."""
    name = strip_ending(path)
    return bool(_BIDS_NAME.match(name)) and _entities(name)[1] != ''


def label_of(path: Path, entity: str) -> str | None:
    """The label of a BIDS entity in a file's name: '01' of `sub` in `sub-01_T1w.nii`; or None."""
    return _entities(strip_ending(path))[0].get(entity)


def _entities(name: str) -> tuple[dict[str, str], str]:
    """The entities of a name and its suffix ('' if it has none)."""
    pairs, suffix = {}, ''
    for part in name.split('_'):
        key, hyphen, label = part.partition('-')
        if hyphen:
            pairs[key] = label
        else:
            suffix = part
    return pairs, suffix


def _by_suffix(name: str) -> tuple[Kind, str]:
    entities, suffix = _entities(name)
    if suffix.lower() in _MASK_SUFFIXES:
        described = f'{entities.get("label", "")} {entities.get("desc", "")} {suffix}'.lower()
        return _mask_kind(described), suffix
    if suffix.lower() in ('t1w', 't1'):
        if 'ce' in entities:
            return Kind.OTHER, f'ce-{entities["ce"]}'
        part = entities.get('part', 'mag')
        return (Kind.T1W, suffix) if part == 'mag' else (Kind.OTHER, f'part-{part}')
    is_other = any(p.fullmatch(suffix.lower()) for p in (_OTHER, _OTHER_AT_END, _CONTRAST_AGENT))
    return (Kind.OTHER, suffix) if is_other else (Kind.UNNAMED, '')


def _by_words(name: str) -> tuple[Kind, str]:
    """The last word that describes the content decides."""
    words = _words(name)
    for number, word in reversed(list(enumerate(words))):
        last = number == len(words) - 1
        if _MASK.fullmatch(word) or (last and number and _MASK_AT_END.fullmatch(word)):
            return _mask_kind(' '.join(words)), word
        if _CONTRAST_AGENT.fullmatch(word):
            return Kind.OTHER, word
        if _T1W.fullmatch(word):
            return Kind.T1W, word
        if not number and _SUBJECT_AT_START.fullmatch(word):
            return Kind.UNNAMED, ''
        if _OTHER.fullmatch(word) or (last and number and _OTHER_AT_END.fullmatch(word)):
            return Kind.OTHER, word
    return Kind.UNNAMED, ''


def _mask_kind(words: str) -> Kind:
    """A mask is one of lesions, unless its name has a word of anatomy and none of a disease."""
    if _ANATOMY.search(words) and not _DISEASE.search(words):
        return Kind.ANATOMY
    return Kind.LESION


def _words(name: str) -> list[str]:
    """The words of a name in any alphabet, in lower case; accents in one spelling."""
    name = unicodedata.normalize('NFC', without_bytes(name).lower())
    # Marks are vowels in Indic names, so that they are parts of words.
    letters = (c if c.isalnum() or unicodedata.category(c)[0] == 'M' else ' ' for c in name)
    return ''.join(letters).split()


def subject_words(path: Path) -> tuple[str, ...]:
    """The words of a file's name that are not about its content; of a BIDS name its subject."""
    name = strip_ending(path)
    if name.startswith('sub-'):
        return (name.split('_')[0],)
    about_content = (_MASK, _MASK_AT_END, _T1W, _CONTRAST_AGENT, _OTHER, _DESCRIPTIVE)
    return tuple(
        word
        for number, word in enumerate(_words(name))
        if (not number and _SUBJECT_AT_START.fullmatch(word))
        or not any(pattern.fullmatch(word) for pattern in about_content)
    )


def is_mask_folder(name: str) -> bool:
    """Whether a folder's name says that it holds masks: `labelsTr`, `masks`, `lesions`."""
    return bool(
        re.fullmatch(
            r'(lesion|tumou?r)?_?(labels?|masks?|segs?|segmentations?|rois?|lesions?)(tr|ts)?',
            name.lower(),
        )
    )


def result_name(path: Path) -> str:
    """What the results of a scan are called: its name without ending and suffix `_T1w`.

    A FreeSurfer subject's image is called by its subject. Bytes that are not UTF-8 become digits.
    """
    path = Path(path)
    if path.parent.name == 'mri' and path.name in FREESURFER_SCANS:
        path = path.parent.parent
    stem = strip_ending(path)
    name = re.sub(r'_t1w$', '', stem, flags=re.IGNORECASE) or stem
    return without_bytes(name)


def without_bytes(name: str) -> str:
    """A name in which bytes that are not UTF-8 are written as hexadecimal digits."""
    return ''.join(
        f'{ord(letter) - 0xDC00:02x}' if '\udc80' <= letter <= '\udcff' else letter
        for letter in name
    )
