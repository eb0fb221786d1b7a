"""The plain twins of the recurrent ops: the short convolution, the gated delta rule and the state space, in pure torch.

Shapes are those of `reference.py`; besides: C channels, W taps, H heads, k and v the sizes of a key and a value. Every
sequence has a slot of state; one that begins with this pass (as many new tokens as it has context) starts from zeros.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def short_conv(
    x_TC: Tensor,
    weight_CW: Tensor,
    state_LCw: Tensor,
    slots_S: Tensor,
    starts_S1: Tensor,
    contexts_S: Tensor,
    bias_C: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    """A causal convolution of each channel over the last W tokens of its sequence, plus its bias, if there is one, and
    silu of it all, or not: float32 [T, C].

    state, float32 [slots, C, W - 1]: the inputs of the last tokens, the newest last; it is brought up to date. slots,
    starts and contexts: int32, of the sequences; rows starts[s] .. starts[s+1] are theirs.
    """
    out, past = torch.empty_like(x_TC), weight_CW.shape[1] - 1
    for s, slot in enumerate(slots_S.tolist()):
        first, last = int(starts_S1[s]), int(starts_S1[s + 1])
        if first == last:
            continue
        before = state_LCw[slot] if int(contexts_S[s]) > last - first else torch.zeros_like(state_LCw[slot])
        line_CT = torch.cat([before, x_TC[first:last].T], dim=1)
        y_CT = torch.nn.functional.conv1d(line_CT.unsqueeze(0), weight_CW.unsqueeze(1), bias_C, groups=len(weight_CW))[
            0
        ]
        out[first:last] = (torch.nn.functional.silu(y_CT) if silu else y_CT).T
        state_LCw[slot] = line_CT[:, line_CT.shape[1] - past :]
    return out


def delta_gates(ba_TJ: Tensor, rate_H: Tensor, dt_bias_H: Tensor) -> tuple[Tensor, Tensor]:
    """What the delta rule does to a state in each token, float32 [T, H] both: the logarithm of its decay,
    rate * log(1 + e^(dt + dt_bias)), and the strength of a change, a sigmoid. ba, float32 [T, 2 H]: strengths, then
    dt."""
    beta_TH, dt_TH = ba_TJ.chunk(2, dim=1)
    return rate_H * torch.nn.functional.softplus(dt_TH + dt_bias_H), beta_TH.sigmoid()


def key_gates(
    dt_TR: Tensor, b_TH: Tensor, rate_H: Tensor, dt_bias_R: Tensor, least: float | None = None
) -> tuple[Tensor, Tensor]:
    """The same where each number of a key has a decay of its own, R = H k: float32 [T, H, k] and [T, H]. dt, float32
    [T, R]; b, float32 [T, H]: of strengths. least, below 0: the decay is least * sigmoid(-rate * (dt + dt_bias))."""
    dt_THk, rate_H1 = (dt_TR + dt_bias_R).view(len(dt_TR), len(rate_H), -1), rate_H.view(-1, 1)
    if least is not None:
        return least * torch.sigmoid(-rate_H1 * dt_THk), b_TH.sigmoid()
    return rate_H1 * torch.nn.functional.softplus(dt_THk), b_TH.sigmoid()


def delta_rule(
    q_TGk: Tensor,
    k_TGk: Tensor,
    v_THv: Tensor,
    decay_TH: Tensor,
    beta_TH: Tensor,
    state_LHkv: Tensor,
    slots_S: Tensor,
    starts_S1: Tensor,
    contexts_S: Tensor,
) -> Tensor:
    """The gated delta rule, token by token: float32 [T, H, v].

        S = exp(decay) S;  S += k (beta (v - S' k))';  out = S' q

    q and k are of G heads, each of which serves H / G neighbouring heads of values. They are brought to length 1
    (`x / sqrt(|x|^2 + 1e-6)`), q besides times k^-0.5. state, float32 [slots, H, k, v], is brought up to date. decay:
    [T, H], or [T, H, k] where each row of a state has its own. Source: Gated Delta Networks (arXiv 2412.06464,
    equation 10); Kimi Linear (arXiv 2510.26692, equation 1).
    """
    by_row = decay_TH.exp().view(*decay_TH.shape, 1) if decay_TH.dim() == 3 else decay_TH.exp()[..., None, None]
    out, each = torch.empty_like(v_THv), v_THv.shape[1] // q_TGk.shape[1]
    q = (_unit(q_TGk) * q_TGk.shape[2] ** -0.5).repeat_interleave(each, 1)
    k = _unit(k_TGk).repeat_interleave(each, 1)
    for slot, tokens, S_Hkv in _running(state_LHkv, slots_S, starts_S1, contexts_S):
        for t in tokens:
            S_Hkv = S_Hkv * by_row[t]
            seen_Hv = torch.einsum("hkv,hk->hv", S_Hkv, k[t])
            change_Hv = (v_THv[t] - seen_Hv) * beta_TH[t].unsqueeze(1)
            S_Hkv = S_Hkv + k[t].unsqueeze(2) * change_Hv.unsqueeze(1)
            out[t] = torch.einsum("hkv,hk->hv", S_Hkv, q[t])
        state_LHkv[slot] = S_Hkv
    return out


def _running(
    state_LHkv: Tensor, slots_S: Tensor, starts_S1: Tensor, contexts_S: Tensor
) -> Iterator[tuple[int, range, Tensor]]:
    """Of each sequence with new tokens its slot, these, and a copy of the state that they find: zeros, of one that
    begins."""
    for s, slot in enumerate(slots_S.tolist()):
        tokens = range(int(starts_S1[s]), int(starts_S1[s + 1]))
        if tokens:
            goes_on = int(contexts_S[s]) > len(tokens)
            yield slot, tokens, state_LHkv[slot].clone() if goes_on else torch.zeros_like(state_LHkv[slot])


def _unit(x_TGk: Tensor) -> Tensor:
    return x_TGk * torch.rsqrt(x_TGk.square().sum(-1, keepdim=True) + 1e-6)


def state_space(
    x_THv: Tensor,
    b_TGk: Tensor,
    c_TGk: Tensor,
    dt_TH: Tensor,
    rate_H: Tensor,
    dt_bias_H: Tensor,
    skip_H: Tensor,
    dt_range: tuple[float, float],
    state_LHkv: Tensor,
    slots_S: Tensor,
    starts_S1: Tensor,
    contexts_S: Tensor,
) -> Tensor:
    """The state space of Mamba 2, token by token: float32 [T, H, v].

        step = log(1 + e^(dt + dt_bias)) within dt_range
        S = exp(rate step) S;  S += b (step x)';  out = S' c + skip x

    b and c are of G heads, each of which serves H / G neighbouring heads of x; rate is below 0. state, float32 [slots,
    H, k, v], is brought up to date. Source: Transformers are SSMs (arXiv 2405.21060, section 6).
    """
    out, each = torch.empty_like(x_THv), x_THv.shape[1] // b_TGk.shape[1]
    b, c = b_TGk.repeat_interleave(each, 1), c_TGk.repeat_interleave(each, 1)
    step_TH = torch.nn.functional.softplus(dt_TH + dt_bias_H).clamp(*dt_range)
    decay_TH = (rate_H * step_TH).exp()
    for slot, tokens, S_Hkv in _running(state_LHkv, slots_S, starts_S1, contexts_S):
        for t in tokens:
            added_Hv = step_TH[t].unsqueeze(1) * x_THv[t]
            S_Hkv = S_Hkv * decay_TH[t].view(-1, 1, 1) + b[t].unsqueeze(2) * added_Hv.unsqueeze(1)
            out[t] = torch.einsum("hkv,hk->hv", S_Hkv, c[t]) + skip_H.unsqueeze(1) * x_THv[t]
        state_LHkv[slot] = S_Hkv
    return out


def gated_norm(y_TC: Tensor, z_TC: Tensor, weight_C: Tensor, eps: float, groups: int = 1) -> Tensor:
    """RMSNorm of y * silu(z), each of so many groups of neighbouring channels for itself: float32 [T, C]."""
    open_TGc = (y_TC * torch.nn.functional.silu(z_TC)).unflatten(1, (groups, -1))
    normed: Tensor = open_TGc * torch.rsqrt(open_TGc.square().mean(-1, keepdim=True) + eps)
    return normed.flatten(1) * weight_C
