"""Methods: each joins networks, losses and randomization, and all have the same interface.

A method is a frozen dataclass with
    stage               its name in the workdir and in the configuration
    trainable           names of the parameter groups that it trains
    needs_mask          whether `reconstruct` takes the lesion's mask as a fourth argument
    is_random           whether its counterparts depend on the key
    num_counterparts    how many healthy counterparts of a scan it makes
    separate            whether a head sees each of them, instead of their mean
    pairs               the `PairMaker` of its training pairs, or None
    autoencoder         the `AutoencoderMethod` whose latents it works on, or None
    init(key)                           parameter groups, by name
    prepare(params, volumes)            the same, started from training volumes `(n, x, y, z, 1)`
    loss(params, batch, key, share)     (loss, metrics) of a batch `{'image', 'brain'}`, each
                                        `(batch, x, y, z, 1)`
    reconstruct(params, volumes, key)   healthy counterparts, shaped as the volumes
If a part of that loss does not say how good the method is (else None)
    validation_loss(params, batch, key, share)  (loss, metrics) for validation
If it makes several counterparts, also
    counterparts(params, volumes, key)  all of them, along a leading axis
If it also says where a lesion is (else None),
    probability(params, volumes, counterparts)  probability of a lesion in each voxel, in [0, 1], of
                                                scans and all of their counterparts
If it trains on latents, which the trainer can then keep and use several times (else both are None),
    examples(params, batch, key, share)         latents of new pairs, a tree of `(batch, ...)`
    example_loss(params, examples, key, share)  (loss, metrics) of such latents

The trainer, the evaluator and the predictor use nothing else. `fluidjax.runs.stages` makes methods
from a configuration.
"""


class Method:
    """Defaults of the interface. A method sets `stage`, `trainable`, `pairs` and `autoencoder`."""

    needs_mask = False
    is_random = False
    num_counterparts = 1
    separate = False
    validation_loss = None
    examples = None
    example_loss = None
    probability = None

    def views(self, params, volumes, key, *masks):
        """The counterparts that a head sees, `(n, batch, x, y, z, 1)`: all, or their mean."""
        if self.separate:
            return self.counterparts(params, volumes, key)
        if self.num_counterparts > 1:  # as in use, and not the volume of the mean latent
            return self.counterparts(params, volumes, key).mean(axis=0, keepdims=True)
        return self.reconstruct(params, volumes, key, *masks)[None]
