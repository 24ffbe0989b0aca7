"""Methods: each joins networks, losses and randomization into a value with one interface.

A method has
    stage                       its name in the workdir and in the configuration
    trainable                   names of the parameter groups it trains
    init(key)                   parameter groups, by name
    prepare(params, volumes)    the same, started from training volumes `(n, x, y, z, 1)`
    loss(params, batch, key)    (loss, metrics) of `{'image', 'brain'}`, `(batch, x, y, z, 1)`
    reconstruct(params, volume, key)    healthy counterparts, shaped as the volumes given
and the trainer, the evaluator and the predictor know no more of it.
"""
