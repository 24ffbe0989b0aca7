"""The scores of the tables: their names, their direction, and a plain sentence on each."""

from __future__ import annotations

from typing import NamedTuple


class Score(NamedTuple):
    """How a score is shown. `better` is +1 (more is better), -1 (less is) or 0 (not ranked)."""

    label: str
    better: int
    digits: int
    explanation: str


SCORES: dict[str, Score] = {
    'dice_validated': Score(
        'Dice (validated)', 1, 3,
        'Overlap of the thresholded map with the true lesion, 0 to 1, at a threshold chosen on '
        'validation subjects. The headline: it is what a new scan would get.'),
    'dice_global': Score(
        'Dice (global)', 1, 3,
        'Dice of all voxels of all test subjects pooled, at the one threshold that suits this test '
        'set best. Optimistic: the threshold has seen the truth.'),
    'dice_oracle': Score(
        'Dice (oracle)', 1, 3,
        'Dice at the best threshold of each scan, averaged. An upper bound no user can reach; '
        'many papers report this one.'),
    'ap': Score(
        'AP', 1, 3,
        'Average precision: area under the precision-recall curve of the voxels, over all '
        'thresholds. A map without information scores the share of the brain that is lesion.'),
    'auroc': Score(
        'AUROC', 1, 3,
        'Chance that a lesion voxel scores higher than a healthy one; 0.5 is guessing. '
        'Flattering where lesions are small.'),
    'fpr': Score(
        'FPR', -1, 4,
        'Share of the healthy brain voxels marked as lesion at the validated threshold.'),
    'lesion_f1': Score(
        'Lesion F1', 1, 3,
        'Whole lesions instead of voxels: a true lesion is found if the marked region touches it, '
        'a marked region is false if it touches none. 2 found / (2 found + missed + false).'),
    'l1': Score(
        'L1', -1, 4,
        'Mean absolute difference of the healthy counterpart to the healthy image in the whole '
        'brain, or, where that is unknown, to the scan outside the lesion. Range of intensity 0 '
        'to 1.'),
    'psnr': Score(
        'PSNR (dB)', 1, 1,
        'Peak signal-to-noise ratio of the same comparison.'),
    'ssim': Score(
        'SSIM', 1, 3,
        'Structural similarity of the same comparison, 1 is identical.'),
    'seconds': Score(
        'Seconds', 0, 2,
        'Time per scan, from the scan on the model\'s grid to its anomaly map.'),
}
