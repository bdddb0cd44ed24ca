"""`slow_backbone`: an optimizer's `custom_keys` for a pretrained backbone under a transformer head.

The backbone learns at a tenth of the rate, and its norms do not decay. mmengine takes the longest
key that is a part of a parameter's name, and asks `norm_decay_mult` only where there is none: so
the backbone's norms stand here by name. `no_decay_on_biases` are its biases, for recipes that
spare these too.
"""

slow_backbone = {
    'backbone': dict(lr_mult=0.1),
    **{
        name: dict(lr_mult=0.1, decay_mult=0.0)
        for name in (
            *(f'.patch_embed.proj.{i}.' for i in (1, 4, 7, 10)),
            *('.downsample.norm.', 'backbone.extra_norms.'),
            *('.retention_layer_norm.', '.final_layer_norm.'),
            *(f'.norm{i}.{each}' for i in (1, 2) for each in ('weight', 'bias')),
        )
    },
}
no_decay_on_biases = {
    f'.{name}.bias': dict(lr_mult=0.1, decay_mult=0.0)
    for name in (
        *(f'patch_embed.proj.{i}' for i in (0, 3, 6, 9)),
        *('downsample.reduction', 'pos.conv', 'lepe.conv'),
        *(f'retention.{name}_proj' for name in ('q', 'k', 'v', 'out')),
        *('attn.qkvo', 'attn.proj'),
        *('ffn.fc1', 'ffn.fc2', 'ffn.dwconv.conv'),
    )
}
