"""Width, depth and heads of the usual ViTs; the common configs have ViT-B/16."""

VIT_S = dict(embed_dim=384, depth=12, num_heads=6)
VIT_B = dict(embed_dim=768, depth=12, num_heads=12)
VIT_L = dict(embed_dim=1024, depth=24, num_heads=16)
VIT_H = dict(embed_dim=1280, depth=32, num_heads=16)
VIT_H14 = VIT_H | dict(patch_size=14)
