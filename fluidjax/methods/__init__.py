"""Methods: each joins networks, losses and randomization into a value with one interface.

A method has
    stage                       its name in the workdir and in the configuration
    trainable                   names of the parameter groups it trains
    needs_mask                  whether `reconstruct` must be told where the lesion is
    init(key)                   parameter groups, by name
    prepare(params, volumes)    the same, started from training volumes `(n, x, y, z, 1)`
    loss(params, batch, key)    (loss, metrics) of `{'image', 'brain'}`, `(batch, x, y, z, 1)`
    reconstruct(params, volume, key[, mask])    healthy counterparts, shaped as the volumes given
and, where it draws samples,
    num_counterparts            how many
    counterparts(params, volume, key)    each of them as a volume, along a leading axis
The trainer, the evaluator and the predictor know no more of it. `fluidjax.runs.stages` makes methods of
a configuration.
"""
