"""From a scan and its healthy counterpart to an anomaly map, its scores and a report of both.

`anomaly_map` runs on the device (JAX); everything else here is numpy on the host and knows
neither a model nor a configuration.
"""
