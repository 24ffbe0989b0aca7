"""Scans in, batches out: reading, geometry, the cohorts as TFDS builders, the tf.data pipeline.

Nothing here knows JAX. TensorFlow is imported by `input_pipeline`, `template_cohort` and
`nifti_cohort` alone.
"""
