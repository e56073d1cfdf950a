"""LoMaR and MAE from pixels to loss, patch by patch and head by head: what the models must equal.

Nothing but tensors by their official names; no batches, no modules.
"""

import math

import torch
import torch.nn.functional as F

from lomar_det.layers import TokenGrid, bucket_table


def literal_blocks(p, x, prefix, heads, buckets):
    """(N, C) tokens through ``prefix``0, 1, ...; iRPE where the names say so."""
    dim = x.shape[-1]
    for n in range(sum(name.startswith(prefix) and name.endswith("qkv.weight") for name in p)):
        b = f"{prefix}{n}."
        y = F.layer_norm(x, (dim,), p[b + "norm1.weight"], p[b + "norm1.bias"], 1e-6)
        q, key, v = F.linear(y, p[b + "attn.qkv.weight"], p[b + "attn.qkv.bias"]).chunk(3, -1)
        outs = []
        for head in range(heads):
            part = slice(head * dim // heads, (head + 1) * dim // heads)
            qh, kh, vh = q[:, part], key[:, part], v[:, part]
            logits = qh @ kh.T / math.sqrt(dim // heads)
            if b + "attn.rpe_k.lookup_table_weight" in p:
                table = p[b + "attn.rpe_k.lookup_table_weight"][0]
                logits = logits + torch.einsum("id,dij->ij", qh, table[:, buckets])
            outs.append(logits.softmax(-1) @ vh)
        out = torch.cat(outs, -1)
        x = x + F.linear(out, p[b + "attn.proj.weight"], p[b + "attn.proj.bias"])
        y = F.layer_norm(x, (dim,), p[b + "norm2.weight"], p[b + "norm2.bias"], 1e-6)
        y = F.gelu(F.linear(y, p[b + "mlp.fc1.weight"], p[b + "mlp.fc1.bias"]))
        x = x + F.linear(y, p[b + "mlp.fc2.weight"], p[b + "mlp.fc2.bias"])
    return x


def _norm(p, name, x):
    return F.layer_norm(x, x.shape[-1:], p[name + ".weight"], p[name + ".bias"], 1e-6)


def _patch(p, image, patch_id):
    """Token and target of one patch: (C,), (p * p * 3,)."""
    size = p["patch_embed.proj.weight"].shape[-1]
    columns = image.shape[2] // size
    y, x = patch_id // columns * size, patch_id % columns * size
    pixels = image[:, y : y + size, x : x + size]
    token = (p["patch_embed.proj.weight"] * pixels).sum((1, 2, 3)) + p["patch_embed.proj.bias"]
    flat = pixels.permute(1, 2, 0).flatten()
    return token, (flat - flat.mean()) / (flat.var() + 1e-6).sqrt()


def _position(p, name, index):
    return p[name][0, index] if name in p else 0


def literal_lomar_loss(p, images, windows, heads):
    """Absolute positions, if any, must be laid out for the size of ``images``."""
    k = math.isqrt(windows.patch_ids.shape[1])
    buckets = bucket_table(TokenGrid(k, k, True))
    errors = []
    for image_id, ids, mask in zip(
        windows.image_ids.tolist(), windows.patch_ids.tolist(), windows.mask.tolist(), strict=True
    ):
        tokens, targets = [p["cls_token"][0, 0] + _position(p, "pos_embed", 0)], []
        for patch_id, masked in zip(ids, mask, strict=True):
            token, target = _patch(p, images[image_id], patch_id)
            token = p["mask_token"][0, 0] if masked else token
            tokens.append(token + _position(p, "pos_embed", 1 + patch_id))
            targets.append(target)
        x = _norm(p, "norm", literal_blocks(p, torch.stack(tokens), "blocks.", heads, buckets))
        pred = F.linear(x, p["encoder_pred.weight"], p["encoder_pred.bias"])[1:]
        errors += [
            (pred[n] - targets[n]).square().mean() for n, masked in enumerate(mask) if masked
        ]
    return torch.stack(errors).mean()


def literal_mae_loss(p, images, noise, grid, mask_ratio, heads, decoder_heads):
    """``grid`` is the (H, W) patch grid; the patches of lowest noise stay visible."""
    buckets = bucket_table(TokenGrid(*grid, True))
    errors = []
    for image, numbers in zip(images, noise, strict=True):
        count = len(numbers)
        visible = sorted(range(count), key=lambda i, numbers=numbers: numbers[i].item())
        visible = visible[: int(count * (1 - mask_ratio))]
        tokens = [p["cls_token"][0, 0] + _position(p, "pos_embed", 0)]
        for i in visible:
            tokens.append(_patch(p, image, i)[0] + _position(p, "pos_embed", 1 + i))
        index = torch.tensor([0] + [1 + i for i in visible])
        seen = buckets[index][:, index]
        x = _norm(p, "norm", literal_blocks(p, torch.stack(tokens), "blocks.", heads, seen))
        pred = _literal_decoder(p, x, visible, count, decoder_heads, buckets)
        for i in set(range(count)) - set(visible):
            errors.append((pred[i] - _patch(p, image, i)[1]).square().mean())
    return torch.stack(errors).mean()


def literal_asymmetric_loss(p, images, windows, heads, decoder_heads):
    """LoMaR with a decoder; absolute positions, if any, as in `literal_lomar_loss`."""
    k = math.isqrt(windows.patch_ids.shape[1])
    buckets = bucket_table(TokenGrid(k, k, True))
    errors = []
    for image_id, ids, mask in zip(
        windows.image_ids.tolist(), windows.patch_ids.tolist(), windows.mask.tolist(), strict=True
    ):
        visible = [n for n, masked in enumerate(mask) if not masked]
        patches = [_patch(p, images[image_id], patch_id) for patch_id in ids]
        tokens = [p["cls_token"][0, 0] + _position(p, "pos_embed", 0)]
        tokens += [patches[n][0] + _position(p, "pos_embed", 1 + ids[n]) for n in visible]
        index = torch.tensor([0] + [1 + n for n in visible])
        seen = buckets[index][:, index]
        x = _norm(p, "norm", literal_blocks(p, torch.stack(tokens), "blocks.", heads, seen))
        pred = _literal_decoder(p, x, visible, k * k, decoder_heads, buckets)
        for n in set(range(k * k)) - set(visible):
            errors.append((pred[n] - patches[n][1]).square().mean())
    return torch.stack(errors).mean()


def _literal_decoder(p, x, visible, count, heads, buckets):
    """Tokens (1 + visible, C) of the encoder -> pixels of all patches (count, p * p * 3)."""
    latent = F.linear(x, p["decoder_embed.weight"], p["decoder_embed.bias"])
    tokens = [latent[0] + _position(p, "decoder_pos_embed", 0)]
    for i in range(count):
        token = latent[1 + visible.index(i)] if i in visible else p["mask_token"][0, 0]
        tokens.append(token + _position(p, "decoder_pos_embed", 1 + i))
    x = literal_blocks(p, torch.stack(tokens), "decoder_blocks.", heads, buckets)
    x = _norm(p, "decoder_norm", x)
    return F.linear(x, p["decoder_pred.weight"], p["decoder_pred.bias"])[1:]


def literal_logits(p, image, heads):
    """The classifier on one image (3, height, width): (num_classes,)."""
    size = p["patch_embed.proj.weight"].shape[-1]
    H, W = image.shape[1] // size, image.shape[2] // size
    tokens = [p["cls_token"][0, 0] + _position(p, "pos_embed", 0)]
    for i in range(H * W):
        tokens.append(_patch(p, image, i)[0] + _position(p, "pos_embed", 1 + i))
    buckets = bucket_table(TokenGrid(H, W, True))
    x = literal_blocks(p, torch.stack(tokens), "blocks.", heads, buckets)
    return F.linear(_norm(p, "fc_norm", x[1:].mean(0)), p["head.weight"], p["head.bias"])
