"""The scores of the tables: their names, their direction, and an explanation of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

COHORT_SCORES = (  # of a whole test set, not of a subject
    'dice_global',
    'dice_best',
    'threshold_loss',
    'sensitivity_1fp',
    'healthy_ml',
    'healthy_ml_90',
    'strict_ml',
    'strict_ml_90',
    'found_below_1ml',
    'found_1_to_5ml',
    'found_5_to_20ml',
    'found_above_20ml',
    'core_found',
    'false_regions',
    'calibration_error',
)
# A lesion with over nine tenths of its contrast left looks as in the scan.
COPY_CONTRAST = 0.1
# Copies by a decoder also change: an L1 of 0.015 (UNA's table) is a few per cent of a brain's mean
# intensity, and the demo's autoencoder at 4 mm changes 6 %.
COPY_CHANGE = 0.1
# An all-zero counterpart has 1; at half of that, more of the brain is lost than in any lesion.
BLANK_CHANGE = 0.5


class Score(NamedTuple):
    """How a score is shown. `better` is +1 (more is better), -1 (less is) or 0 (not ranked)."""

    label: str
    better: int
    digits: int
    explanation: str


SCORES: dict[str, Score] = {
    'dice_validated': Score(
        'Dice (validated)',
        1,
        3,
        'Overlap of the thresholded map with the true lesion, 0 to 1, at a threshold chosen on '
        'validation subjects. The main score: what to expect for a new scan.',
    ),
    'dice_global': Score(
        'Dice (global)',
        1,
        3,
        'Dice of all voxels of all test subjects pooled, at the best threshold for this test set. '
        'Optimistic: the threshold is chosen with the truth.',
    ),
    'dice_best': Score(
        'Dice (best common threshold)',
        1,
        3,
        'Mean Dice over the scans at the one threshold that is best for this test set. Optimistic: '
        'the threshold is chosen with the truth.',
    ),
    'threshold_loss': Score(
        'Threshold loss',
        -1,
        3,
        'Dice at the best common threshold less Dice (validated): what is lost because the '
        'threshold was chosen on other lesions.',
    ),
    'dice_oracle': Score(
        'Dice (oracle)',
        1,
        3,
        'Dice at the best threshold of each scan, averaged. An upper bound that no user can reach, '
        'although many papers report it.',
    ),
    'ap': Score(
        'AP',
        1,
        3,
        'Average precision: area under the precision-recall curve of the voxels, over all '
        'thresholds. A map without information scores the share of the brain that is lesion.',
    ),
    'auroc': Score(
        'AUROC',
        1,
        3,
        'Chance that a lesion voxel scores higher than a healthy one; 0.5 is guessing. '
        'Flattering where lesions are small.',
    ),
    'fpr': Score(
        'FPR',
        -1,
        4,
        'Share of the healthy brain voxels marked as lesion at the validated threshold.',
    ),
    'lesion_f1': Score(
        'Lesion F1',
        1,
        3,
        'Whole lesions instead of voxels: a true lesion is found if the marked region touches it, '
        'a marked region is false if it touches none. 2 found / (2 found + missed + false). '
        'One region that covers the whole brain finds everything: read it beside the Dice.',
    ),
    'lesion_precision': Score(
        'Lesion precision',
        1,
        3,
        'Of found lesions and false regions together, the share that are found lesions; counted as '
        'for the lesion F1. Undefined where nothing is marked.',
    ),
    'lesion_recall': Score(
        'Lesion recall', 1, 3, "Share of a scan's true lesions that the marked region touches."
    ),
    'sensitivity_1fp': Score(
        'Sensitivity at 1 FP',
        1,
        3,
        'Share of all true lesions of the test set that are found where the threshold allows one '
        'false region per scan on average. A region counts as a hit if a tenth of it or more is '
        'lesion. Optimistic like the global Dice: the threshold is chosen with the truth.',
    ),
    'found_below_1ml': Score(
        'Found below 1 ml',
        1,
        2,
        'Share of the true lesions of 0.1 to 1 ml that are found at the validated threshold: a '
        'marked region touches them of which a tenth or more is lesion.',
    ),
    'found_1_to_5ml': Score('Found 1 to 5 ml', 1, 2, 'The same of lesions of 1 to 5 ml.'),
    'found_5_to_20ml': Score('Found 5 to 20 ml', 1, 2, 'The same of lesions of 5 to 20 ml.'),
    'found_above_20ml': Score('Found above 20 ml', 1, 2, 'The same of lesions above 20 ml.'),
    'core_found': Score(
        'Core found',
        1,
        2,
        'Share of the voxels in lesions above 20 ml that lie more than 4 mm below their surface '
        'and are marked at the validated threshold.',
    ),
    'false_regions': Score(
        'False regions',
        -1,
        2,
        'Marked regions per scan of which less than a tenth is lesion, at the validated threshold.',
    ),
    'calibration_error': Score(
        'Calibration error',
        -1,
        3,
        'Mean difference between the probability of a lesion that the map stands for, chosen on '
        'validation cases, and the share of lesion among voxels with it, over tenths of the '
        'probability. In the reliability diagram, the distance from the diagonal.',
    ),
    'healthy_ml': Score(
        'Marked in healthy scans (ml)',
        -1,
        1,
        'Volume that is marked in a healthy scan at the validated threshold, median over scans.',
    ),
    'healthy_ml_90': Score(
        'The same, 90th percentile', -1, 1, 'Its 90th percentile: one scan in ten has more marked.'
    ),
    'strict_ml': Score(
        'Marked in healthy scans at healthy_1ml',
        -1,
        1,
        'Median volume that is marked in a healthy scan at the threshold healthy_1ml, which was '
        'chosen so that at most 1 ml is marked in 90 % of new healthy scans.',
    ),
    'strict_ml_90': Score(
        'The same, 90th percentile', -1, 1, 'Its 90th percentile, which should be at most 1 ml.'
    ),
    'l1': Score(
        'L1',
        -1,
        4,
        'Mean absolute difference of the healthy counterpart to the healthy image in the whole '
        'brain, or, where that is unknown, to the scan outside the lesion. Range of intensity 0 '
        'to 1.',
    ),
    'psnr': Score('PSNR (dB)', 1, 1, 'Peak signal-to-noise ratio of the same comparison.'),
    'ssim': Score('SSIM', 1, 3, 'Structural similarity of the same comparison, 1 is identical.'),
    'l1_outside': Score(
        'L1 outside',
        -1,
        4,
        'Mean absolute difference of the healthy counterpart to the scan itself, in the brain '
        'outside the lesion: what healthy tissue loses. A copy of the scan has 0.',
    ),
    'psnr_outside': Score(
        'PSNR outside (dB)', 1, 1, 'Peak signal-to-noise ratio to the scan outside the lesion.'
    ),
    'ssim_outside': Score(
        'SSIM outside',
        1,
        3,
        'Structural similarity to the scan outside the lesion, 1 is identical.',
    ),
    'l1_inside': Score(
        'L1 inside',
        -1,
        4,
        'Mean absolute difference of the healthy counterpart to the healthy image within the '
        'lesion. Only where the healthy image is known.',
    ),
    'psnr_inside': Score(
        'PSNR inside (dB)', 1, 1, 'Peak signal-to-noise ratio of the same comparison.'
    ),
    'ssim_inside': Score('SSIM inside', 1, 3, 'Structural similarity of the same comparison.'),
    'l1_filled': Score(
        'L1 filled',
        -1,
        4,
        'As L1 inside, of the scan whose lesion is filled by its true mask: the counterpart with '
        'the level and the texture of the tissue around.',
    ),
    'psnr_filled': Score(
        'PSNR filled (dB)', 1, 1, 'Peak signal-to-noise ratio of the same comparison.'
    ),
    'ssim_filled': Score('SSIM filled', 1, 3, 'Structural similarity of the same comparison.'),
    'sharpness': Score(
        'Sharpness',
        0,
        2,
        'Mean difference of neighbouring voxels of the counterpart outside the lesion, divided by '
        "the scan's: 1 is as sharp as the scan, below 1 blurred. Noise counts as detail.",
    ),
    'contrast_removed': Score(
        'Contrast removed',
        1,
        3,
        "Share of the lesion's contrast that is gone from the counterpart: 1 is the healthy "
        'image, 0 a copy of the scan, below 0 worse than the scan. Only where the healthy image '
        'is known.',
    ),
    'healthy_changed': Score(
        'Healthy changed',
        -1,
        3,
        'Mean change of the brain outside the lesion as a share of its mean intensity: 0 is a '
        'copy, 1 a blank volume. Read it beside the contrast removed.',
    ),
    'seconds': Score(
        'Seconds', 0, 2, "Time per scan, from the scan on the model's grid to its anomaly map."
    ),
}


def verdict(summary: Mapping[str, Mapping]) -> str:
    """What is obviously wrong with a method's counterparts.

    Args:
      summary: {score: {mean, ...}} of one method, from `evaluate.summarise`.

    Returns:
      'blank' if healthy tissue is lost too; 'copies the scan' if neither the lesion nor healthy
      tissue is changed; '' in all other cases, or if the scores are unknown.
    """
    removed, changed = (
        (summary.get(score) or {}).get('mean') for score in ('contrast_removed', 'healthy_changed')
    )
    if changed is not None and changed > BLANK_CHANGE:
        return 'blank'
    if None not in (removed, changed) and removed < COPY_CONTRAST and changed < COPY_CHANGE:
        return 'copies the scan'
    return ''
