"""In place of depth_net-launch where only the graph matters: outputs that follow from what came in, at once."""

import hashlib
import json
import sys
from pathlib import Path

action, text = sys.argv[1:]
message = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
inputs, outputs = message["inputs"], message["outputs"]
said = [[item["metadata"] for item in port["artifacts"]] for port in inputs["artifacts"].values()]
digest = hashlib.sha256(json.dumps([action, inputs["parameterValues"], said], sort_keys=True).encode()).hexdigest()
for port, made in outputs["artifacts"].items():
    (item,) = made["artifacts"]
    Path(item["uri"]).write_text(f"{action} {port} {digest}")
    item["metadata"] = {"kind": port, "sha256": digest}
for place in outputs["parameters"].values():
    Path(place["outputFile"]).write_text("0.5")
Path(outputs["outputFile"]).write_text(json.dumps({"parameterValues": {}, "artifacts": outputs["artifacts"]}))
