"""Records every stage of FastFoundationStereo under the goldens' name for it."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stereo_core.models.fast_foundation_stereo import model as network_module
from stereo_core.models.fast_foundation_stereo.model import FastFoundationStereo
from stereo_core.models.foundation_stereo import model as base_module

# GOLDENS.md, "Fast-FoundationStereo goldens": rel-L2, and max-abs over the golden's standard deviation, or in px.
TOLERANCES = [
    (r"edgenext\.|feature\.|stem_2|proj_cmb|volume\.(gwc|concat)$", 1e-5, 1e-4, "std"),
    (r"volume\.|cost_agg\.|classifier\.", 5e-5, 1e-3, "std"),
    (r"init_disp$|disp_low", 1e-5, 1e-3, "px"),
    (r"iter\d\.geo_feat$", 2e-4, 1e-2, "px"),
    (r"iter1\.|gru\.|cnet\.|upsample\.", 1e-4, 2e-3, "std"),
    (r"disp$|disp_up", 1e-5, 5e-3, "px"),
    (r"input\.|gt_disp$", 0.0, 0.0, "std"),
]
BP2_DISPARITY = 2e-3  # px

# Golden name -> module whose output it is.
COMMON = {
    "edgenext.stem": "feature.stem",
    "edgenext.stage0.block0": "feature.stages.0.blocks.0",
    **{f"edgenext.stage{i}": f"feature.stages.{i}" for i in range(4)},
    "feature.up16": "feature.deconv32_16.conv1",
    "feature.x32": "feature.stages.3",
    "feature.x16": "feature.deconv32_16",
    "feature.x8": "feature.deconv16_8",
    "feature.x4_pre": "feature.deconv8_4",
    "feature.x4": "feature.conv4",
    "stem_2.0": "stem_2.0",
    "stem_2x": "stem_2",
    "volume.feature_att": "corr_feature_att",
    "cost_agg.conv1_up": "cost_agg.conv1_up",
    "volume.filtered": "cost_agg",
    "classifier.logits": "classifier",
    "cnet.net04": "cnet.conv04.0",
    "cnet.inp04": "cnet.conv04.1",
    "gru.cam": "cam",
    "gru.att.04": "sam",
    "upsample.spx2_last": "spx_2_gru",
    "upsample.logits_last": "spx_gru",
}
UNPRUNED = {
    **{f"volume.corr_stem.{i}": f"corr_stem.{i}" for i in range(3)},
    "volume.corr_stem": "corr_stem",
    "volume.corr_feature_att.logit": "corr_feature_att.feat_att",
    "cost_agg.conv1.0": "cost_agg.conv1.0",
    "cost_agg.conv1.1.conv1": "cost_agg.conv1.1.conv1",
    "cost_agg.conv1": "cost_agg.conv1",
    "cost_agg.s8_down": "cost_agg.feature_att_8",
    "cost_agg.s16_down": "cost_agg.feature_att_16",
    "cost_agg.s32_down": "cost_agg.feature_att_32",
    "cost_agg.conv3_up": "cost_agg.conv3_up",
    "cost_agg.agg_0": "cost_agg.agg_0",
    "cost_agg.s16_up": "cost_agg.feature_att_up_16",
    "cost_agg.conv2_up": "cost_agg.conv2_up",
    "cost_agg.s8_up": "cost_agg.feature_att_up_8",
    "cost_agg.conv_patch": "cost_agg.conv_patch",
    "cost_agg.disp_transformer.layer0.attn": "cost_agg.atts.4.sa.0.self_attn",
    "cost_agg.disp_transformer.layer0": "cost_agg.atts.4.sa.0",
    "cost_agg.disp_transformer": "cost_agg.atts.4",
    "cost_agg.conv_out.0": "cost_agg.conv_out.0",
    "classifier.0": "classifier.0",
    "classifier.pre": "classifier.1",
}
BP2 = {
    "volume.corr.0": "corr_feature_att.layers.0",
    "volume.corr.1": "corr_feature_att.layers.1",
    "volume.corr_feature_att.logit": "corr_feature_att.layers.2.feat_att",
    **{f"cost_agg.feature_att_{n}.{i}": f"cost_agg.feature_att_{n}.layers.{i}" for n in (8, 16) for i in (0, 1)},
    "cost_agg.s8_down": "cost_agg.feature_att_8",
    "cost_agg.s16_down": "cost_agg.feature_att_16",
    "cost_agg.conv3": "cost_agg.conv3",
    "cost_agg.s32_down": "cost_agg.feature_att_32",
    "cost_agg.post32_to_16.up": "cost_agg.post32_to_16.upsample.0",
    **{f"cost_agg.post32_to_16.out{i}": f"cost_agg.post32_to_16.out.{i}" for i in range(3)},
    "cost_agg.s16_up": "cost_agg.post32_to_16",
    "cost_agg.post16_to_8.up": "cost_agg.post16_to_8.upsample.0",
    **{f"cost_agg.post16_to_8.out{i}": f"cost_agg.post16_to_8.out.{i}" for i in range(2)},
    "cost_agg.s8_up": "cost_agg.post16_to_8",
    "cost_agg.post8_to_4.patch": "cost_agg.post8_to_4.upsample.0",
    "cost_agg.disp_transformer.layer0.attn": "cost_agg.post8_to_4.upsample.1.sa.0.self_attn",
    "cost_agg.disp_transformer": "cost_agg.post8_to_4.upsample.1",
    "cost_agg.post8_to_4.up": "cost_agg.post8_to_4.upsample.2",
    "cost_agg.post8_to_4.out0": "cost_agg.post8_to_4.out.0",
}
FIRST_ITERATION = {
    "iter1.encoder.convc1": "encoder.convc1",
    "iter1.encoder.convd1": "encoder.convd1",
    "iter1.motion": "encoder",
    "iter1.gru.x": "gru04.conv0",
    "iter1.gru.hx": "gru04.conv1",
    "iter1.gru.small": "gru04.small_gru",
    "iter1.gru.large": "gru04.large_gru",
    "iter1.h.04": "gru04",
    "iter1.disp_head.2": "disp_head.conv.2",
    "iter1.disp_head.3": "disp_head.conv.3",
    "iter1.delta": "disp_head",
}


def misses(golden, name: str, value: Tensor, bp2: bool, noise: float = 1.0) -> str | None:
    """None where the tensor matches its golden within the tolerance of its stage, else what is off.

    noise: of the golden itself, as a multiple of the goldens' for which the tolerances were measured.
    """
    rel_l2, limit, unit = next(row[1:] for row in TOLERANCES if re.search(row[0], name))
    limit *= noise
    if bp2 and re.search(r"^disp$|disp_up", name):
        limit = BP2_DISPARITY
    result = golden.compare(name, value)
    worst = result["max_abs"] if unit == "px" else result["rel"]
    if result["rel_l2"] <= rel_l2 and worst <= limit:
        return None
    return f"{name}: rel-L2 {result['rel_l2']:.2g} (limit {rel_l2:g}), max {worst:.2g} {unit} (limit {limit:g})"


class Recorder:
    """Runs a model and keeps each stage under the goldens' name for it."""

    def __init__(self, model: FastFoundationStereo, monkeypatch):
        self.model, self.seen = model, {}
        self.disparities: list[Tensor] = []
        topology = BP2 if model.config.topology == "bp2" else UNPRUNED
        for name, path in (COMMON | topology).items():
            self.after(name, model.get_submodule(path))
        for name, path in FIRST_ITERATION.items():
            self.after(name, model.update_block.get_submodule(path), first=True)
        sides = iter(("left", "right"))
        model.proj_cmb.register_forward_hook(lambda m, args, out: self.keep(f"proj_cmb.{next(sides)}", out))
        if topology is BP2:
            # `.sum` is what the first layer after it reads
            first = model.cost_agg.post8_to_4.out[0]
            first.register_forward_hook(lambda m, args, out: self.keep("cost_agg.post8_to_4.sum", args[0]))
        self.function("volume.gwc", network_module, "group_correlation", monkeypatch)
        self.function("volume.concat", base_module, "concatenation", monkeypatch)
        model.update_block.register_forward_hook(self.iteration)
        model.spx_2_gru.register_forward_pre_hook(self.mask)

    def keep(self, name: str, value: Tensor) -> None:
        self.seen[name] = value.flatten(0, 1) if name.startswith("cost_agg.disp_transformer.layer0") else value

    def after(self, name: str, module: nn.Module, first: bool = False) -> None:
        def hook(module, args, out: Tensor) -> None:
            if not (first and name in self.seen):
                self.keep(name, out)

        module.register_forward_hook(hook)

    def function(self, name: str, module, attribute: str, monkeypatch) -> None:
        original: Callable = getattr(module, attribute)

        def recorded(*args):
            self.seen[name] = original(*args)
            return self.seen[name]

        monkeypatch.setattr(module, attribute, recorded)

    def mask(self, module, args) -> None:
        self.seen.setdefault("iter1.mask_feat", args[0])

    def iteration(self, module, args, out) -> None:
        (states, contexts, _, lookup, disp), (_, step) = args, out
        self.disparities.append(disp + step)
        if len(self.disparities) == 1:
            self.seen |= {"gru.h0.04": states[0], "gru.ctx.04": contexts[0]}
        if len(self.disparities) <= 2:
            self.seen[f"iter{len(self.disparities)}.geo_feat"] = lookup

    def run(self, left: Tensor, right: Tensor, iters: int) -> dict[str, Tensor]:
        """All stages, from normalised images; every iteration is upsampled."""
        with torch.no_grad():
            init, disparities = self.model.predict(left, right, iters, every=True)
        self.seen |= {f"disp_up.iter{i}": disp for i, disp in enumerate(disparities, start=1)}
        self.seen |= {"init_disp": init, "disp": disparities[-1], "disp_low_last": self.disparities[-1]}
        self.seen["disp_low_sequence"] = torch.stack(self.disparities)
        self.seen["upsample.weights_last"] = self.seen["upsample.logits_last"].softmax(1)
        return self.seen
