"""FastFoundationStereo at widths that a test can wait for, under the names of the spec's `model` section."""

NARROW = {
    "motion_encoder_widths": [16, 16, 8, 8],
    "motion_encoder_final": 12,
    "gru_hidden": 16,
    "gru_gating_conv_widths": [24, 32],
    "disp_head_intermediate": 12,
    "disp_head_pwconv1_widths": [24, 24],
    "mask_widths": [16, 8],
    "stem_2_widths": [8, 8],
    "spx_2_gru_widths": [8, 8, 8, 16],
    "cnet_conv04_widths": [16, 16],
    "cam_mid_channels": 4,
}
