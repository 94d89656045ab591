"""Says why and fails."""

import sys

print("why it failed")
sys.exit(3)
