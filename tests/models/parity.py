"""What the parity tests share: the deterministic weights, the goldens, and a recorder of every stage by golden name."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from stereo_core.models.foundation_stereo import model as network
from stereo_core.models.foundation_stereo.model import FoundationStereo, normalise

# GOLDENS.md, "Measured noise": rel-L2, and max-abs over the golden's standard deviation ("px": max-abs in pixels).
TOLERANCES = [
    (r"dino\.(input|patch_embed|block0|tokens\d|cls\d)$", 2e-5, 2e-4, "std"),
    (r"dino\.(path_\d|out)$|feature\.vit_feat$", 2e-5, 2e-4, "std"),
    (r"feature\.x4$|proj_cmb|volume\.(gwc|concat)$", 5e-5, 5e-4, "std"),
    (r"edgenext\.|feature\.x(32|16|8|4_pre)$|stem_2x$", 1e-5, 1e-4, "std"),
    (r"volume\.|cost_agg\.|classifier\.", 1e-4, 1e-3, "std"),
    (r"cnet\.|gru\.", 3e-5, 5e-4, "std"),
    (r"init_disp$", 2e-5, 1e-3, "px"),
    (r"iter1\.geo_feat$", 2e-4, 1e-2, "std"),
    (r"iter1\.", 5e-5, 1e-3, "std"),
    (r"disp_low", 2e-5, 1e-3, "px"),
    (r"disp$|disp_up", 2e-5, 5e-3, "px"),
    (r"upsample\.", 5e-5, 1e-3, "std"),  # not in the table: that of the mask feature it is made from
    (r"input\.|gt_disp$", 0.0, 0.0, "std"),
]


def load(shared: Path, name: str) -> ModuleType:
    """One of the self-contained helper scripts beside the goldens: fill, pair, golden_io."""
    spec = importlib.util.spec_from_file_location(f"shared_{name}", shared / "model" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def misses(golden, name: str, value: Tensor) -> str | None:
    """None where the tensor matches its golden within the tolerance of its stage, else what is off."""
    rel_l2, limit, unit = next(row[1:] for row in TOLERANCES if re.search(row[0], name))
    result = golden.compare(name, value)
    worst = result["max_abs"] if unit == "px" else result["rel"]
    if result["rel_l2"] <= rel_l2 and worst <= limit:
        return None
    return f"{name}: rel-L2 {result['rel_l2']:.2g} (limit {rel_l2:g}), max {worst:.2g} {unit} (limit {limit:g})"


class Recorder:
    """Runs a model and keeps each stage under the goldens' name for it."""

    def __init__(self, model: FoundationStereo, monkeypatch):
        self.model, self.seen = model, {}
        self.disparities = []
        dino = model.feature.dino.depth_anything
        vit, scratch = dino.pretrained, dino.depth_head.scratch
        self.before("dino.input", vit)
        self.after("dino.patch_embed", vit.patch_embed)
        self.after("dino.block0", vit.blocks[0])
        self.numbered = 0
        vit.norm.register_forward_hook(self.tokens)
        for i in (4, 3, 2, 1):
            self.after(f"dino.path_{i}", getattr(scratch, f"refinenet{i}"))
        self.after("dino.out", dino.depth_head)
        self.after("feature.vit_feat", model.feature.dino)
        self.after("edgenext.stem", model.feature.stem)
        for i, stage in enumerate(model.feature.stages):
            self.after(f"edgenext.stage{i}", stage)
        self.after("feature.x32", model.feature.stages[3])
        self.after("feature.x16", model.feature.deconv32_16)
        self.after("feature.x8", model.feature.deconv16_8)
        self.after("feature.x4_pre", model.feature.deconv8_4)
        self.after("feature.x4", model.feature.conv4)
        self.after("stem_2x", model.stem_2)
        self.first("proj_cmb.left", model.proj_cmb)
        self.function("volume.gwc", "group_correlation", monkeypatch)
        self.function("volume.concat", "concatenation", monkeypatch)
        self.after("volume.corr_stem", model.corr_stem)
        self.after("volume.feature_att", model.corr_feature_att)
        aggregation = model.cost_agg
        self.after("cost_agg.s8_down", aggregation.feature_att_8)
        self.after("cost_agg.s16_down", aggregation.feature_att_16)
        self.after("cost_agg.s32_down", aggregation.feature_att_32)
        self.after("cost_agg.s16_up", aggregation.feature_att_up_16)
        self.after("cost_agg.s8_up", aggregation.feature_att_up_8)
        self.after("cost_agg.conv1_up", aggregation.conv1_up)
        self.after("cost_agg.conv_patch", aggregation.conv_patch)
        aggregation.atts["4"].sa[0].register_forward_hook(self.columns)
        self.after("cost_agg.disp_transformer", aggregation.atts["4"])
        self.after("volume.filtered", aggregation)
        self.after("classifier.pre", model.classifier[1])
        self.after("classifier.logits", model.classifier)
        self.after("cnet.fused", model.cnet.conv2)
        model.cnet.register_forward_hook(self.contexts)
        self.first("iter1.motion", model.update_block.encoder)
        model.update_block.register_forward_hook(self.iteration)
        model.spx_2_gru.register_forward_pre_hook(self.mask)
        self.after("upsample.spx2_last", model.spx_2_gru)
        self.after("upsample.logits_last", model.spx_gru)

    def after(self, name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda m, args, out: self.seen.__setitem__(name, out))

    def first(self, name: str, module: torch.nn.Module) -> None:
        def hook(module, args, out):
            self.seen.setdefault(name, out)

        module.register_forward_hook(hook)

    def before(self, name: str, module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda m, args, out: self.seen.__setitem__(name, args[0]))

    def function(self, name: str, attribute: str, monkeypatch) -> None:
        original = getattr(network, attribute)

        def recorded(*args):
            self.seen[name] = original(*args)
            return self.seen[name]

        monkeypatch.setattr(network, attribute, recorded)

    def tokens(self, module, args, out: Tensor) -> None:
        self.seen[f"dino.tokens{self.numbered}"], self.seen[f"dino.cls{self.numbered}"] = out[:, 1:], out[:, 0]
        self.numbered += 1

    def columns(self, module, args, out: Tensor) -> None:
        self.seen["cost_agg.disp_transformer.layer0"] = out.flatten(0, 1)

    def contexts(self, module, args, out) -> None:
        for scale, (state, context) in zip(("04", "08", "16"), out, strict=True):
            self.seen[f"cnet.net{scale}"], self.seen[f"cnet.inp{scale}"] = state, context

    def mask(self, module, args) -> None:
        self.seen.setdefault("iter1.mask_feat", args[0])

    def iteration(self, module, args, out) -> None:
        (states, contexts, attentions, lookup, disp), (new_states, step) = args, out
        if not self.disparities:
            for i, scale in enumerate(("04", "08", "16")):
                self.seen[f"gru.h0.{scale}"] = states[i]
                self.seen[f"gru.ctx.{scale}"] = contexts[i]
                self.seen[f"gru.att.{scale}"] = attentions[i]
                self.seen[f"iter1.h.{scale}"] = new_states[i]
            self.seen |= {"iter1.geo_feat": lookup, "iter1.delta": step}
        self.disparities.append(disp + step)

    def run(self, left: Tensor, right: Tensor, iters: int) -> dict[str, Tensor]:
        """All stages; every iteration is upsampled."""
        with torch.no_grad():
            init, disparities = self.model.predict(normalise(left), normalise(right), iters, every=True)
        self.seen |= {f"disp_up.iter{i}": disp for i, disp in enumerate(disparities, start=1)}
        self.seen |= {"init_disp": init, "disp": disparities[-1], "disp_low_last": self.disparities[-1]}
        self.seen["disp_low_sequence"] = torch.stack(self.disparities)
        self.seen["upsample.weights_last"] = self.seen["upsample.logits_last"].softmax(1)
        self.seen |= {"input.left": left, "input.right": right}
        return self.seen
