"""Scans in, batches out: reading, geometry, the cohorts as TFDS builders, the tf.data pipeline.

Nothing here imports JAX. Only `input_pipeline`, `template_cohort` and `nifti_cohort` import
TensorFlow.
"""
