import json
import subprocess
import sys

HEAVY = {"torch", "transformers", "datasets", "deepspeed", "accelerate", "numpy"}


def test_importing_the_configuration_loads_no_heavy_package():
    code = "import json, sys, megatune.config; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert "pydantic" in loaded
    assert not loaded & HEAVY
