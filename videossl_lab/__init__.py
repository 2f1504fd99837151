"""What is seen of VideoSSL in notebooks, and batch work around them; it imports ``videossl_core``."""

import sys

# jsonschema, and so papermill, would load it: a second for the grammar of a format that no notebook has
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
